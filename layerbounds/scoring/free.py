"""The problem of a stored grid with its scales left free: the same codes, groups and kind of zero points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from layerbounds.arrays import Float
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.layers.layer import Layer
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.grids import Granularity, Grid

#: Kinds of zero points.
Zero = Literal["none", "integer", "real"]
#: Formats whose scales are powers of two by their definition, as labels begin.
_POWERS_OF_TWO = ("mxfp", "mx")


def freed(layer: Layer, weight: QuantizedWeight) -> tuple[FreeScaleProblem, tuple[str, ...]]:
    """The best of any scales for a layer that is stored on a grid, and what is wider in it than in the format.

    Parameters
    ----------
    layer : Layer
    weight : QuantizedWeight

    Raises
    ------
    UnsupportedProblemError
        Where no free problem has these levels.
    """
    grid = weight.grid
    notes: list[str] = []
    codes, zero = _codes(grid)
    signed = zero == "none" and bool(np.any(grid.scale < 0)) and not np.array_equal(codes, -codes[::-1])
    powers = zero == "none" and not signed and _only_powers(grid, weight)
    if weight.parts:
        notes.append("group scales of any value, where the format makes them of two levels")
    if len(np.unique(np.abs(grid.scale))) == 1 and grid.out_features > 1:
        notes.append("a scale for each channel, where the format has one for the tensor")
    kind = {"none": "no zero point", "integer": "integer zero points", "real": "real zero points"}[zero]
    name = f"{len(codes)} levels, {kind}"
    granularity: Granularity | None = None
    if grid.group_size is not None:
        granularity = "channel" if grid.group_size >= grid.in_features else grid.group_size
    problem = FreeScaleProblem(layer, codes, zero, signed, powers, grid.group, granularity, name)
    return problem, tuple(notes)


def contains(free: FreeScaleProblem, grid: Grid, channels: Sequence[int]) -> bool:
    """Whether a free problem allows all weights of the grid that it was made of, as float64 has them.

    Levels with an offset are rounded twice, which no scale and zero point may explain.
    """
    if grid.offset.any():
        return False
    # Where the Gram matrix is singular, free weights are limited.
    limits = {channel: free.allowed(channel).limit for channel in channels}
    return all(limit == np.inf or np.abs(grid.levels(c)).max() <= limit for c, limit in limits.items())


def _codes(grid: Grid) -> tuple[Float, Zero]:
    """The codes of a free problem, and the kind of its zero points."""
    moved = bool(np.any(grid.offset))
    if not moved and np.all(grid.zero_point == grid.zero_point.flat[0]):
        # Symmetric, whatever number the middle has.
        codes = grid.codes - grid.zero_point.flat[0]
        if not np.any(codes):
            raise UnsupportedProblemError("the only level is 0, which no scale changes.")
        return codes, "none"
    if not grid.uniform:
        raise UnsupportedProblemError("free scales of a codebook have no minima or zero points.")
    zero = grid.zero_point - grid.codes[0]
    within = np.all((zero == np.rint(zero)) & (zero >= 0) & (zero <= len(grid.codes) - 1))
    return np.arange(len(grid.codes), dtype=np.float64), "integer" if within and not moved else "real"


def _only_powers(grid: Grid, weight: QuantizedWeight) -> bool:
    named = weight.format.lower().replace("-", " ").split()
    form = any(word.startswith(_POWERS_OF_TWO) for word in named)
    return form and bool(np.all(np.abs(np.frexp(grid.scale[grid.scale != 0])[0]) == 0.5))
