"""Scales fitted to a layer's output error instead of its weights: ``range="gram"``.

Every scale starts from the one with the smallest weight error. The factors of `FACTORS` times that scale are tried by
rounding successively (GPTQ) with each, in the order of the columns, and the factor with the smallest output error
stays. With several scale groups they are chosen one after the other: the errors of the groups already rounded are fed
back, and a group's own part of the error is what counts. Zero points stay as they are.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.methods import lazy_rounding, search_scales
from layerbounds.kernels.successive import factors_in_order, rounding_order
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.fitting import codebook_grid, uniform_grid
from layerbounds.problems.grids import Granularity, Grid, Range

#: Factors of the scale of least weight error that are tried: 1 first, so that it wins ties.
FACTORS = np.concatenate(([1.0], 2.0 ** (np.delete(np.arange(-40, 41), 40) / 40.0)))
#: For scales that have to stay powers of two.
POWERS_OF_TWO = np.array([1.0, 0.25, 0.5, 2.0, 4.0])
#: Fraction of the mean diagonal added for the search, as in GPTQ; the choice is made on the undamped error.
DAMP = 0.01


def fitted_grid(
    layer: Layer,
    bits: int | None = None,
    *,
    codebook: str | ArrayLike | None = None,
    symmetric: bool = True,
    granularity: Granularity | None = None,
    range: Range = "mse",
) -> Grid:
    """Uniform or codebook grid of a layer with any range: the arguments are those of `gram_grid` and `uniform_grid`."""
    layer = as_layer(layer)
    if (bits is None) == (codebook is None):
        raise InputError("pass either bits or a codebook, and not both.")
    flag(symmetric, "symmetric")
    if codebook is not None and not symmetric:
        raise InputError("a codebook has no zero point; leave out symmetric=False.")
    if isinstance(range, str) and range == "gram":
        return gram_grid(layer, bits, codebook=codebook, symmetric=symmetric, granularity=granularity)
    if codebook is not None:
        return codebook_grid(layer.matrix, codebook, granularity, range)
    assert bits is not None
    return uniform_grid(layer.matrix, bits, symmetric, "channel" if granularity is None else granularity, range)


def gram_grid(
    layer: Layer,
    bits: int | None = None,
    *,
    codebook: str | ArrayLike | None = None,
    symmetric: bool = True,
    granularity: Granularity | None = None,
) -> Grid:
    """Grid whose scales are fitted to the output error of a layer.

    No channel's output error after rounding with GPTQ (defaults) is larger than with the scales of least weight error;
    with one scale for the whole layer this holds for the sum of the channels.

    Parameters
    ----------
    layer : Layer
    bits : int, optional
        For a uniform grid, as in `uniform_grid`.
    codebook : str or array_like, optional
        Instead of ``bits``, as in `codebook_grid`.
    symmetric : bool
        True with a codebook, which has no zero point.
    granularity : {"tensor", "channel"} or int, optional
        Default: "channel"; 32 for MXFP4.

    Raises
    ------
    InputError
        If the arguments contradict each other.
    """
    start = fitted_grid(layer, bits, codebook=codebook, symmetric=symmetric, granularity=granularity)
    factors = POWERS_OF_TWO if isinstance(codebook, str) and codebook.lower() == "mxfp4" else FACTORS
    scale = _per_tensor(layer, start, factors) if granularity == "tensor" else _per_channel(layer, start, factors)
    return dataclasses.replace(start, scale=scale, label=re.sub(r", mse$", ", gram", start.label))


class _Rounding:
    """Successive rounding of the channels of one group of a layer, in the order of GPTQ."""

    def __init__(self, layer: Layer, group: int) -> None:
        live = np.flatnonzero(layer.live(group))
        gram = np.ascontiguousarray(layer.gram[group][np.ix_(live, live)])
        order = rounding_order(gram, False)
        self.inputs: Int = live[order]
        self._gram = np.ascontiguousarray(gram[np.ix_(order, order)])
        self.pivots: Float = np.empty(0)
        self.shifts: Float = gram
        if len(live):
            self.pivots, self.shifts = factors_in_order(gram, order, DAMP)

    def error(self, target: Float, levels: Float) -> float:
        """Undamped output error of GPTQ, without the constant."""
        count = np.full(len(levels), levels.shape[1], dtype=np.int64)
        choice = np.zeros(len(levels), dtype=np.int64)
        lazy_rounding(self.shifts, target, levels, count, 128, choice)
        deviation = levels[np.arange(len(levels)), choice] - target
        return float(deviation @ (self._gram @ deviation))


def _per_channel(layer: Layer, grid: Grid, factors: Float) -> Float:
    chosen = grid.scale.copy()
    per_group = layer.out_features // layer.groups
    for g in range(layer.groups):
        rounding = _Rounding(layer, g)
        if not len(rounding.inputs):
            continue
        group = grid.group[rounding.inputs]
        for channel in range(g * per_group, (g + 1) * per_group):
            target = np.ascontiguousarray(layer.target[channel][rounding.inputs])
            scale, zero = grid.scale[channel].copy(), grid.zero_point[channel]
            cost = np.zeros((len(scale), len(factors)))
            search_scales(
                rounding.shifts, rounding.pivots, target, grid.codes, zero[group], group, scale, factors, cost
            )
            before = rounding.error(target, grid.levels(channel)[rounding.inputs])
            levels = scale[group][:, None] * (grid.codes[None, :] - zero[group][:, None])
            if rounding.error(target, levels) < before:
                chosen[channel] = scale
    return chosen


def _per_tensor(layer: Layer, grid: Grid, factors: Float) -> Float:
    errors = np.zeros(len(factors))
    per_group = layer.out_features // layer.groups
    for g in range(layer.groups):
        rounding = _Rounding(layer, g)
        if not len(rounding.inputs):
            continue
        for channel in range(g * per_group, (g + 1) * per_group):
            target = np.ascontiguousarray(layer.target[channel][rounding.inputs])
            levels = grid.levels(channel)[rounding.inputs]
            errors += [rounding.error(target, np.ascontiguousarray(factor * levels)) for factor in factors]
    return np.asarray(grid.scale * factors[int(np.argmin(errors))])
