"""Grids fitted to a weight tensor: uniform ones and codebooks, by weight error or by range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, whole_number
from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.problems.codebooks import codebook
from layerbounds.problems.grids import MAX_BITS, Granularity, Grid, Range, granularity_size
from layerbounds.problems.ranges.registry import check_fits, find_range, usual_kind
from layerbounds.problems.ranges.rule import Codes, RangeRule, WeightFit


def uniform_grid(
    weight: ArrayLike,
    bits: int,
    symmetric: bool | None = None,
    granularity: Granularity = "channel",
    range: Range = "mse",
) -> Grid:
    """Uniform grid fitted to a weight tensor.

    Symmetric: levels s·{−2^(b−1), …, 2^(b−1)−1}. Otherwise s·({0, …, 2^b−1} − z) with an integer zero point z,
    so that 0 is always a level (``"hqq"``: a real one). One bit is the binary codebook ±mean|w|.

    Parameters
    ----------
    weight : array_like of shape (out, in) or (out, in, kh, kw)
    bits : int
        1 to 8.
    symmetric : bool, optional
        Default: True, but False for ranges that fit zero points only (``"hqq"``).
    granularity : {"tensor", "channel"} or int
        Which weights share a scale; an integer is the number of consecutive flattened inputs in a group.
    range : {"mse", "minmax", "gptq", "llama.cpp", "hqq"}
        ``"mse"``: of 81 equal shrink factors in [0.3, 1.1], the one with the smallest squared weight error.
        ``"minmax"``: the smallest scale that clips nothing. The others, and those that need the layer, are described in
        docs/grids.md.

    Raises
    ------
    InputError
        On bits outside 1…8, an unknown range or granularity, a range that is for other grids, or invalid weights.

    Examples
    --------
    >>> lb.uniform_grid(np.array([[-1.0, 0.2, 0.5]]), bits=2, range="minmax").levels(0)[0]
    array([-1. , -0.5,  0. ,  0.5])
    """
    codes = uniform_codes(bits, symmetric, find_range(range))
    matrix = _weight_matrix(weight)
    if codes.binary:
        return codebook_grid(matrix, "binary", granularity=granularity, range=range)
    start = f"{whole_number(bits, 'bits')}-bit {codes.kind}"
    return _fitted(matrix, codes, granularity, range, start)


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
    codebook_name : {"binary", "ternary", "nf4", "fp4", "bnb-fp4", "mxfp4"} or array_like of shape (levels,)
        A name, or the codes themselves.
    granularity : {"tensor", "channel"} or int, optional
        Default: "channel"; 32 for MXFP4, whose scales are powers of two.
    range : {"mse", "minmax"}
        How the scale is fitted, as in `uniform_grid`; ``"minmax"`` maps max|w| to the largest |code|.
        The binary codebook always uses mean|w|, the minimiser of its weight error.

    Examples
    --------
    >>> lb.codebook_grid(np.array([[-1.0, 0.2, 1.0]]), "ternary", range="minmax").levels(0)[0]
    array([-1.,  0.,  1.])
    """
    codes = codebook_codes(codebook_name)
    matrix = _weight_matrix(weight)
    chosen: Granularity = granularity if granularity is not None else (32 if codes.powers_of_two else "channel")
    name = codebook_name.lower() if isinstance(codebook_name, str) else f"{codes.values.size}-level codebook"
    return _fitted(matrix, codes, chosen, range, name)


def uniform_codes(bits: int, symmetric: bool | None, rule: RangeRule) -> Codes:
    """The codes of a uniform grid, with a zero point or without as the range asks where nothing is said."""
    width = whole_number(bits, "bits", 1, MAX_BITS)
    if symmetric is not None:
        flag(symmetric, "symmetric")
    if width == 1:
        return codebook_codes("binary")
    kind = usual_kind(rule) if symmetric is None else "symmetric" if symmetric else "asymmetric"
    low = 2 ** (width - 1) if kind == "symmetric" else 0
    return Codes(np.arange(2.0**width) - low, kind)


def codebook_codes(codebook_name: str | ArrayLike) -> Codes:
    """The codes of a codebook."""
    if not isinstance(codebook_name, str):
        codes = np.unique(as_float64(codebook_name, "codebook").ravel())
        if codes.size == 0:
            raise InputError("the codebook is empty; pass at least one level.")
        return Codes(codes, "codebook")
    name = codebook_name.lower()
    return Codes(codebook(codebook_name), "codebook", binary=name == "binary", powers_of_two=name == "mxfp4")


def _weight_fit(range: Range, codes: Codes) -> WeightFit:
    """A range of a weight tensor.

    Raises
    ------
    InputError
        If there is none of this name, or it needs a layer or other codes.
    """
    rule = find_range(range)
    check_fits(rule, codes)
    if rule.weights is None:
        raise InputError(
            f"range {range!r} is fitted to the output error of a layer; pass it to quantization_problem or call "
            "gram_grid."
        )
    return rule.weights


def _fitted(matrix: Float, codes: Codes, granularity: Granularity, range: Range, label: str) -> Grid:
    fit = _weight_fit(range, codes)
    size = granularity_size(granularity, matrix.shape[1])
    fitted = fit(list(_blocks(matrix, granularity, size)), codes)
    out = matrix.shape[0]
    return Grid(
        codes=codes.values,
        scale=_columns([s for s, _ in fitted], out),
        zero_point=_columns([z for _, z in fitted], out),
        in_features=matrix.shape[1],
        group_size=size,
        uniform=True if codes.kind != "codebook" else None,  # type: ignore[arg-type]
        label=f"{label} per {_per(granularity)}, {range}",
    )


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


def _columns(parts: list[Float], out: int) -> Float:
    stacked = np.stack(parts, axis=1)
    return np.ascontiguousarray(np.broadcast_to(stacked, (out, stacked.shape[1])))


def _per(granularity: Granularity) -> str:
    return granularity if isinstance(granularity, str) else f"group of {granularity}"
