"""Grids fitted to a layer, for all ranges: those that look at its Gram matrix start from the range "mse"."""

from __future__ import annotations

import dataclasses
import re

from numpy.typing import ArrayLike

from layerbounds.arguments import flag
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.fitting import codebook_codes, codebook_grid, uniform_codes, uniform_grid
from layerbounds.problems.grids import Granularity, Grid, Range
from layerbounds.problems.ranges.registry import RANGES, check_fits, find_range
from layerbounds.problems.ranges.rule import Codes, RangeRule


def fitted_grid(
    layer: Layer,
    bits: int | None = None,
    *,
    codebook: str | ArrayLike | None = None,
    symmetric: bool | None = None,
    granularity: Granularity | None = None,
    range: Range = "mse",
) -> Grid:
    """Uniform or codebook grid of a layer with any range: the arguments are those of `gram_grid` and `uniform_grid`."""
    layer = as_layer(layer)
    rule = find_range(range)
    codes = codes_for(rule, bits, codebook, symmetric)
    check_fits(rule, codes)
    first = range if rule.layer is None else "mse"
    if codebook is not None:
        start = codebook_grid(layer.matrix, codebook, granularity, first)
    else:
        assert bits is not None
        kind = None if codes.kind == "codebook" else codes.kind == "symmetric"
        start = uniform_grid(layer.matrix, bits, kind, "channel" if granularity is None else granularity, first)
    if rule.layer is None:
        return start
    scale, zero = rule.layer(layer, start, codes, granularity == "tensor")
    label = re.sub(r", mse$", f", {rule.name}", start.label)
    return dataclasses.replace(start, scale=scale, zero_point=zero, label=label)


def gram_grid(
    layer: Layer,
    bits: int | None = None,
    *,
    codebook: str | ArrayLike | None = None,
    symmetric: bool | None = None,
    granularity: Granularity | None = None,
    range: Range = "gram",
) -> Grid:
    """Grid whose scales are fitted to the output error of a layer.

    With the range "gram" weights are known on the grid of each channel whose output error is not larger than that of
    the same search at the scales of least weight error; with one scale for the whole layer this holds for the sum of
    the channels.

    Parameters
    ----------
    layer : Layer
    bits : int, optional
        For a uniform grid, as in `uniform_grid`.
    codebook : str or array_like, optional
        Instead of ``bits``, as in `codebook_grid`.
    symmetric : bool, optional
        As in `uniform_grid`; left out with a codebook, which has no zero point.
    granularity : {"tensor", "channel"} or int, optional
        Default: "channel"; 32 for MXFP4.
    range : {"gram", "piso", "awq"}
        Or any other range (docs/grids.md).

    Raises
    ------
    InputError
        If the arguments contradict each other.

    Examples
    --------
    >>> lb.gram_grid(layer, bits=2).scale.shape
    (16, 1)
    """
    return fitted_grid(layer, bits, codebook=codebook, symmetric=symmetric, granularity=granularity, range=range)


def codes_for(rule: RangeRule, bits: int | None, codebook: str | ArrayLike | None, symmetric: bool | None) -> Codes:
    """The codes that a range is asked to fit.

    Raises
    ------
    InputError
        If the arguments contradict each other.
    """
    if (bits is None) == (codebook is None):
        raise InputError("pass either bits or a codebook, and not both.")
    if symmetric is not None:
        flag(symmetric, "symmetric")
    if codebook is None:
        assert bits is not None
        return uniform_codes(bits, symmetric, rule)
    if symmetric is False:
        raise InputError("a codebook has no zero point; leave out symmetric=False.")
    return codebook_codes(codebook)


def fitting_ranges(bits: int | None, codebook: str | ArrayLike | None, symmetric: bool | None) -> list[Range]:
    """The names of all ranges that fit a grid."""
    return [rule.name for rule in RANGES.values() if rule.fits(codes_for(rule, bits, codebook, symmetric))]
