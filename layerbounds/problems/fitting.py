"""Grids fitted to a weight tensor: uniform ones and codebooks, by weight error or by range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, whole_number
from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.problems.codebooks import codebook
from layerbounds.problems.grids import MAX_BITS, SMALLEST_SCALE, Granularity, Grid, Range, check_range, granularity_size

#: Shrink factors tried by the MSE range (docs/grids.md).
MSE_STEPS = np.linspace(0.3, 1.1, 81)


def _weight_matrix(weight: ArrayLike) -> Float:
    matrix = as_float64(weight, "weight")
    if matrix.ndim < 2 or matrix.size == 0:
        raise InputError(f"weight has shape {matrix.shape}; pass (out, in) or (out, in, kh, kw).")
    return matrix.reshape(matrix.shape[0], -1)


def _blocks(matrix: Float, granularity: Granularity, size: int) -> Iterator[Float]:
    """The weights that share a scale, as (rows, weights) blocks, one for each scale group."""
    if granularity == "tensor":
        yield matrix.reshape(1, -1)
        return
    for start in range(0, matrix.shape[1], size):
        yield matrix[:, start : start + size]


def uniform_grid(
    weight: ArrayLike,
    bits: int,
    symmetric: bool = True,
    granularity: Granularity = "channel",
    range: Range = "mse",
) -> Grid:
    """Uniform grid fitted to a weight tensor.

    Symmetric: levels s·{−2^(b−1), …, 2^(b−1)−1}. Otherwise s·({0, …, 2^b−1} − z) with an integer zero point z,
    so that 0 is always a level. One bit is the binary codebook ±mean|w|.

    Parameters
    ----------
    weight : array_like of shape (out, in) or (out, in, kh, kw)
    bits : int
        1 to 8.
    symmetric : bool
    granularity : {"tensor", "channel"} or int
        Which weights share a scale; an integer is the number of consecutive flattened inputs in a group.
    range : {"mse", "minmax"}
        ``"mse"``: of 81 equal shrink factors in [0.3, 1.1], the one with the smallest squared weight error.
        ``"minmax"``: the smallest scale that clips nothing.

    Raises
    ------
    InputError
        On bits outside 1…8, an unknown range or granularity, or invalid weights.
    """
    bits = whole_number(bits, "bits", 1, MAX_BITS)
    flag(symmetric, "symmetric")
    check_range(range)
    matrix = _weight_matrix(weight)
    if bits == 1:
        return codebook_grid(matrix, "binary", granularity=granularity, range=range)
    size = granularity_size(granularity, matrix.shape[1])
    fit = _fit_symmetric if symmetric else _fit_asymmetric
    fitted = [fit(block, int(bits), range) for block in _blocks(matrix, granularity, size)]
    out = matrix.shape[0]
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) if symmetric else np.arange(2**bits)
    return Grid(
        codes=codes.astype(np.float64),
        scale=_columns([s for s, _ in fitted], out),
        zero_point=_columns([z for _, z in fitted], out),
        in_features=matrix.shape[1],
        group_size=size,
        uniform=True,
        label=f"{bits}-bit {'symmetric' if symmetric else 'asymmetric'} per {_per(granularity)}, {range}",
    )


def codebook_grid(
    weight: ArrayLike,
    codebook_name: str | ArrayLike,
    granularity: Granularity | None = None,
    range: Range = "mse",
) -> Grid:
    """Grid whose levels are a scaled codebook.

    Parameters
    ----------
    weight : array_like of shape (out, in) or (out, in, kh, kw)
    codebook_name : {"binary", "ternary", "nf4", "fp4", "mxfp4"} or array_like of shape (levels,)
        A name, or the codes themselves.
    granularity : {"tensor", "channel"} or int, optional
        Default: "channel"; 32 for MXFP4, whose scales are powers of two.
    range : {"mse", "minmax"}
        How the scale is fitted, as in `uniform_grid`; ``"minmax"`` maps max|w| to the largest |code|.
        The binary codebook always uses mean|w|, the minimiser of its weight error.
    """
    check_range(range)
    matrix = _weight_matrix(weight)
    name = codebook_name.lower() if isinstance(codebook_name, str) else None
    if isinstance(codebook_name, str):
        codes = codebook(codebook_name)
    else:
        codes = np.unique(as_float64(codebook_name, "codebook").ravel())
    if codes.size == 0:
        raise InputError("the codebook is empty; pass at least one level.")
    power_of_two = name == "mxfp4"
    chosen: Granularity = granularity if granularity is not None else (32 if power_of_two else "channel")
    size = granularity_size(chosen, matrix.shape[1])
    scales = [_fit_codebook(block, codes, name, range, power_of_two) for block in _blocks(matrix, chosen, size)]
    scale = _columns(scales, matrix.shape[0])
    return Grid(
        codes=codes,
        scale=scale,
        zero_point=np.zeros_like(scale),
        in_features=matrix.shape[1],
        group_size=size,
        label=f"{name or f'{codes.size}-level codebook'} per {_per(chosen)}, {range}",
    )


def _columns(parts: list[Float], out: int) -> Float:
    stacked = np.stack(parts, axis=1)
    return np.ascontiguousarray(np.broadcast_to(stacked, (out, stacked.shape[1])))


def _per(granularity: Granularity) -> str:
    return granularity if isinstance(granularity, str) else f"group of {granularity}"


def _best_of(block: Float, candidates: Float, error_of: object) -> Float:
    """Row-wise minimiser over candidate scales, shape (steps, rows); the first of equals."""
    best = np.full(block.shape[0], np.inf)
    chosen = candidates[0].copy()
    for scale in candidates:
        error = error_of(scale)  # type: ignore[operator]
        better = error < best
        best[better], chosen[better] = error[better], scale[better]
    return np.asarray(chosen)


def _fit_symmetric(block: Float, bits: int, range: Range) -> tuple[Float, Float]:
    low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    zero = np.zeros(block.shape[0])
    if range == "minmax":
        scale = np.maximum(block.max(axis=1) / high, -block.min(axis=1) / -low)
        return _positive(scale), zero
    base = _positive(np.abs(block).max(axis=1) / (2.0 ** (bits - 1) - 0.5))

    def error(scale: Float) -> Float:
        s = scale[:, None]
        return np.asarray(((block - s * np.clip(np.rint(block / s), low, high)) ** 2).sum(axis=1))

    scale = _best_of(block, MSE_STEPS[:, None] * base, error)
    return np.where(np.any(block != 0, axis=1), scale, 1.0), zero


def _fit_asymmetric(block: Float, bits: int, range: Range) -> tuple[Float, Float]:
    top = 2.0**bits - 1
    low, high = np.minimum(block.min(axis=1), 0.0), np.maximum(block.max(axis=1), 0.0)
    base = _positive((high - low) / top)
    zero = np.clip(np.rint(-low / base), 0, top)
    if range == "minmax":
        return base, zero

    def error(scale: Float) -> Float:
        s, z = scale[:, None], zero[:, None]
        return np.asarray(((block - s * (np.clip(np.rint(block / s) + z, 0, top) - z)) ** 2).sum(axis=1))

    scale = _best_of(block, MSE_STEPS[:, None] * base, error)
    return np.where(np.any(block != 0, axis=1), scale, 1.0), zero


def _fit_codebook(block: Float, codes: Float, name: str | None, range: Range, power_of_two: bool) -> Float:
    if name == "binary":
        return _positive(np.abs(block).mean(axis=1))
    peak = float(np.max(np.abs(codes)))
    base = _positive(np.abs(block).max(axis=1) / (peak or 1.0))

    def error(scale: Float) -> Float:
        scaled = block / scale[:, None]
        edges = 0.5 * (codes[1:] + codes[:-1])
        return np.asarray(((scaled - codes[np.searchsorted(edges, scaled)]) ** 2).sum(axis=1) * scale**2)

    if power_of_two:
        exponent = np.floor(np.log2(base * peak)) - np.floor(np.log2(peak))
        if range == "minmax":
            return np.asarray(2.0 ** np.ceil(np.log2(base)))
        candidates = 2.0 ** (exponent + np.arange(-2, 2)[:, None])
    elif range == "minmax":
        return base
    else:
        candidates = MSE_STEPS[:, None] * base
    scale = _best_of(block, candidates, error)
    return np.where(np.any(block != 0, axis=1), scale, 1.0)


def _positive(scale: Float) -> Float:
    """Scales of all-zero (or hardly different) blocks become 1."""
    return np.where(scale > 1e3 * SMALLEST_SCALE, scale, 1.0)
