"""What a problem says of given weights, beside their error."""

from __future__ import annotations

from dataclasses import dataclass

from layerbounds.arrays import Float, Int


@dataclass(frozen=True, eq=False)
class Judgement:
    """How far weights are from being allowed, and which allowed ones they stand for.

    Attributes
    ----------
    violation : ndarray of shape (sets,)
        0 exactly where the weights are allowed.
    off_grid : ndarray of int64, shape (sets,)
        Weights that are no level.
    steps : ndarray of shape (sets,)
        The largest distance to a level in gaps between levels.
    snapped : ndarray of shape (rows, n)
        Allowed weights: those that are meant, without the rounding of a coarse type, or else near ones.
    scale, zero_point : ndarray of shape (rows, scale groups) or None
        Of the levels; None where there are none.
    """

    violation: Float
    off_grid: Int
    steps: Float
    snapped: Float
    scale: Float | None = None
    zero_point: Float | None = None
