"""Allowed sets of quantization: each weight takes one of finitely many levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.allowed import AllowedSet

#: Distance to a level that counts as rounding, relative to the largest level.
TOLERANCE = 1e-9


def nearest_levels(levels: Float, values: Float) -> Float:
    """Nearest entry of each sorted row of ``levels``, shape (n, levels), to ``values``, shape (n,)."""
    choice = np.argmin(np.abs(levels - values[:, None]), axis=1)
    return np.asarray(levels[np.arange(len(values)), choice])


@dataclass(frozen=True, eq=False)
class Levels(AllowedSet):
    """Every weight takes one of its levels.

    Attributes
    ----------
    values : ndarray of shape (n, levels)
        The sorted levels of each weight.
    codes : ndarray of shape (n, levels); scale, zero_point : ndarray of shape (n,)
        ``values = scale[:, None] * (codes - zero_point[:, None])`` up to rounding; scales are positive.
    uniform : bool
        Whether the codes are consecutive numbers, the same for all inputs but those with a single level.

    An input with a single level has it, and its code, as often as others have levels: see `count`.
    """

    values: Float
    codes: Float
    scale: Float
    zero_point: Float
    uniform: bool

    @cached_property
    def count(self) -> Int:
        """How many levels each input has, shape (n,): all, or one, which is then repeated."""
        levels = self.codes.shape[1]
        return np.where(self.codes[:, 0] == self.codes[:, -1], 1, levels).astype(np.int64)

    @property
    def rounding(self) -> Float:
        """By how much levels differ from ``scale · (codes − zero_point)``, at most, in scales, shape (n,)."""
        wide = self.values.astype(np.longdouble) / self.scale[:, None]
        exact = self.codes.astype(np.longdouble) - self.zero_point[:, None]
        return np.asarray(np.abs(wide - exact).max(axis=1, initial=0.0), dtype=np.float64)

    @property
    def requirement(self) -> str:
        """Uniform grids or codebooks."""
        return "uniform grids" if self.uniform else "codebook grids"

    def nearest(self, point: Float) -> Float:
        """The nearest levels; ties go to the lower one."""
        return nearest_levels(self.values, point)

    def violation(self, weights: Float) -> float:
        """Largest distance of a weight to its nearest level, in units of the weights."""
        return float(np.max(np.abs(weights - self.nearest(weights)), initial=0.0))

    def exact(self, weights: Float) -> Float:
        """The nearest levels, at a distance of rounding."""
        nearest = self.nearest(weights)
        if np.any(np.abs(nearest - weights) > TOLERANCE * float(np.max(np.abs(self.values), initial=0.0))):
            raise NotAllowedError("weights that are not on the grid")
        return nearest

    def restrict(self, live: Bool) -> Levels:
        """The levels of the live inputs."""
        return Levels(self.values[live], self.codes[live], self.scale[live], self.zero_point[live], self.uniform)

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every point of the grid."""
        for point in product(*(row[:count] for row, count in zip(self.values.tolist(), self.count, strict=True))):
            yield np.array(point), np.zeros((len(point), 0)), False
