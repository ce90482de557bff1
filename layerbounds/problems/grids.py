"""Quantization grids: the finite set of values that each weight may take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.problems.codebooks import codebook
from layerbounds.problems.levels import Levels, nearest_levels

Granularity = Literal["tensor", "channel"] | int
#: ``"gram"`` needs the layer: `layerbounds.problems.gram_range`.
Range = Literal["mse", "minmax", "gram"]

MAX_BITS = 8
#: Shrink factors tried by the MSE range (docs/grids.md).
MSE_STEPS = np.linspace(0.3, 1.1, 81)


@dataclass(frozen=True, eq=False)
class Grid:
    """Level sets ``scale · (codes − zero_point)`` of all weights of a layer.

    Attributes
    ----------
    codes : ndarray of shape (levels,)
        Sorted; integers for uniform grids.
    scale : ndarray of shape (out, scale_groups)
        Positive step sizes; scale group ``i // group_size`` belongs to flattened input ``i``.
    zero_point : ndarray of shape (out, scale_groups)
        Zero for symmetric grids and codebooks.
    in_features : int
    group_size : int
        Inputs that share a scale; the last group may be smaller.
    uniform : bool
        Whether the codes are consecutive integers.
    label : str
        How tables and files call the grid.
    """

    codes: Float
    scale: Float
    zero_point: Float
    in_features: int
    group_size: int
    uniform: bool
    label: str

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return int(self.scale.shape[0])

    def allowed(self, channel: int) -> Levels:
        """The levels of each weight of a channel."""
        group = np.arange(self.in_features) // self.group_size
        return Levels(self.codes, self.scale[channel, group], self.zero_point[channel, group], self.uniform)

    def levels(self, channel: int) -> Float:
        """Sorted values that each weight of a channel may take, shape (n, levels)."""
        return self.allowed(channel).values

    def nearest(self, matrix: Float, channels: Sequence[int] | None = None) -> Float:
        """Round weights, shape (channels, n), to the nearest level each (ties go to the lower level)."""
        rows = range(self.out_features) if channels is None else channels
        result = np.empty_like(matrix)
        for row, channel in enumerate(rows):
            levels = self.levels(channel)
            result[row] = nearest_levels(levels, matrix[row])
        return result


def _weight_matrix(weight: ArrayLike) -> Float:
    matrix = as_float64(weight, "weight")
    if matrix.ndim < 2 or matrix.size == 0:
        raise InputError(f"weight has shape {matrix.shape}; pass (out, in) or (out, in, kh, kw).")
    return matrix.reshape(matrix.shape[0], -1)


def _group_size(granularity: Granularity, n: int) -> int:
    if granularity in ("tensor", "channel"):
        return n
    if isinstance(granularity, bool) or not isinstance(granularity, (int, np.integer)) or granularity <= 0:
        raise InputError(
            f"granularity is {granularity!r}; choose 'tensor', 'channel' or a positive number of inputs per group."
        )
    return min(int(granularity), n)


def _blocks(matrix: Float, granularity: Granularity, size: int) -> Iterator[Float]:
    """The weights that share a scale, as (rows, weights) blocks, one for each scale group."""
    if granularity == "tensor":
        yield matrix.reshape(1, -1)
        return
    for start in range(0, matrix.shape[1], size):
        yield matrix[:, start : start + size]


def _check_range(range: str) -> None:
    if range == "gram":
        raise InputError(
            "range 'gram' is fitted to the output error of a layer; pass it to quantization_problem or call gram_grid."
        )
    if range not in ("mse", "minmax"):
        raise InputError(f"range is {range!r}; choose 'mse', 'minmax' or 'gram'.")


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
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= MAX_BITS:
        raise InputError(f"bits is {bits!r}; choose an integer from 1 to {MAX_BITS}.")
    _check_range(range)
    matrix = _weight_matrix(weight)
    if bits == 1:
        return codebook_grid(matrix, "binary", granularity=granularity, range=range)
    size = _group_size(granularity, matrix.shape[1])
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
    _check_range(range)
    matrix = _weight_matrix(weight)
    name = codebook_name if isinstance(codebook_name, str) else None
    if isinstance(codebook_name, str):
        codes = codebook(codebook_name)
    else:
        codes = np.unique(as_float64(codebook_name, "codebook").ravel())
    if codes.size == 0:
        raise InputError("the codebook is empty; pass at least one level.")
    power_of_two = name == "mxfp4"
    chosen: Granularity = granularity if granularity is not None else (32 if power_of_two else "channel")
    size = _group_size(chosen, matrix.shape[1])
    scales = [_fit_codebook(block, codes, name, range, power_of_two) for block in _blocks(matrix, chosen, size)]
    scale = _columns(scales, matrix.shape[0])
    return Grid(
        codes=codes,
        scale=scale,
        zero_point=np.zeros_like(scale),
        in_features=matrix.shape[1],
        group_size=size,
        uniform=bool(codes.size > 1 and np.all(np.diff(codes) == 1.0)),
        label=f"{name or f'{codes.size}-level codebook'} per {_per(chosen)}, {range}",
    )


def symmetric_grid(scale: ArrayLike, bits: int, in_features: int, granularity: Granularity = "channel") -> Grid:
    """Symmetric uniform grid with explicit scales.

    Parameters
    ----------
    scale : array_like of shape (out,) or (out, scale_groups)
        Positive.
    bits : int
    in_features : int
    granularity : {"tensor", "channel"} or int
        The number of inputs that share a scale. It may be left out where the groups are of equal size.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 2 <= bits <= MAX_BITS:
        raise InputError(f"bits is {bits!r}; with an explicit scale choose an integer from 2 to {MAX_BITS}.")
    scales = as_float64(scale, "scale")
    if scales.size == 0 or np.any(scales <= 0):
        raise InputError("scale holds values that are not positive; every step size must be > 0.")
    scales = scales.reshape(scales.shape[0], -1) if scales.ndim else scales.reshape(1, 1)
    groups = scales.shape[1]
    size = _group_size(granularity, in_features)
    if size == in_features and groups > 1:
        if in_features % groups:
            raise InputError(
                f"scale has {groups} groups, which do not divide the {in_features} inputs evenly; pass the number of "
                "inputs per group as granularity."
            )
        size = in_features // groups
    elif -(-in_features // size) != groups:
        raise InputError(
            f"scale has {groups} groups, but {in_features} inputs in groups of {size} need {-(-in_features // size)}."
        )
    return Grid(
        codes=np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(np.float64),
        scale=scales,
        zero_point=np.zeros_like(scales),
        in_features=in_features,
        group_size=size,
        uniform=True,
        label=f"{bits}-bit symmetric, given scale",
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
    """Scales of all-zero (or subnormal) blocks become 1."""
    return np.where(scale > np.finfo(np.float64).tiny, scale, 1.0)
