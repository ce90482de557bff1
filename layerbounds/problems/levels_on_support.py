"""Allowed sets of pruning and quantization together: weights are zero or a level, and what is kept fits a pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.levels import TOLERANCE, Levels, nearest_levels
from layerbounds.problems.patterns import Structure


@dataclass(frozen=True, eq=False)
class LevelsOnSupport(AllowedSet):
    """Every weight is zero or one of its levels, and the units with a weight other than zero fit the capacities.

    Attributes
    ----------
    levels : Levels
        What a kept weight may be; zero may be one of the levels, or comes on top of them.
    structure : Structure
        Units, groups and capacities.
    """

    levels: Levels
    structure: Structure

    @property
    def requirement(self) -> str:
        """Both at once."""
        return "pruning with quantization"

    @cached_property
    def values(self) -> Float:
        """The sorted levels of each weight with zero among them, shape (n, levels); some twice where rows differ."""
        levels = self.levels.values
        missing = ~np.any(levels == 0.0, axis=1)
        if not missing.any():
            return levels
        # Where zero is a level already it appears twice, so that all rows have one length.
        return np.sort(np.concatenate([levels, np.zeros((len(levels), 1))], axis=1), axis=1)

    def nearest(self, point: Float) -> Float:
        """The closest allowed weights: each group keeps the units that come closer by it most."""
        rounded = nearest_levels(self.values, point)
        structure = self.structure
        # |p|² − (p − l)², written without cancellation.
        gain = rounded * (2.0 * point - rounded)
        gains = np.bincount(structure.unit, weights=gain, minlength=len(structure.group))
        return np.where(structure.keep_largest(gains), rounded, 0.0)

    def violation(self, weights: Float) -> float:
        """Kept units beyond the capacities, plus the largest distance of a weight to zero and its levels."""
        excess = float(self.structure.excess(weights[None])[0])
        return excess + float(np.max(np.abs(weights - nearest_levels(self.values, weights)), initial=0.0))

    def exact(self, weights: Float) -> Float:
        """Zero or the nearest levels, at a distance of rounding."""
        nearest = nearest_levels(self.values, weights)
        if np.any(np.abs(nearest - weights) > TOLERANCE * float(np.max(np.abs(self.values), initial=0.0))):
            raise NotAllowedError("weights that are neither zero nor on the grid")
        if np.any(self.structure.excess(nearest[None])):
            raise NotAllowedError("weights that break the pattern")
        return nearest

    def restrict(self, live: Bool) -> LevelsOnSupport:
        """The levels and the structure of the live inputs; dead ones are dropped first."""
        return LevelsOnSupport(self.levels.restrict(live), self.structure.restrict(live))

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every point."""
        points = product(*(np.unique(row).tolist() for row in self.values))
        for some in iter(lambda: list(islice(points, 1024)), []):
            weights = np.array(some)
            for point in weights[self.structure.excess(weights) == 0]:
                yield point, np.zeros((len(point), 0)), False
