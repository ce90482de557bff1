"""Allowed sets of pruning: the nonzero weights fit a sparsity structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.patterns import Structure


@dataclass(frozen=True, eq=False)
class Support(AllowedSet):
    """Kept units of inputs within the capacities of their groups.

    Attributes
    ----------
    structure : Structure
        Units, groups and capacities.
    original : ndarray of shape (n,)
        The dense weights: what a kept weight is where ``refit`` is False.
    refit : bool
        Whether kept weights may take any value.
    idle : ndarray of bool, shape (n,), or None
        Inputs without energy, whose weights may be zero although their unit is kept.
    """

    structure: Structure
    original: Float
    refit: bool
    idle: Bool | None = None

    @property
    def requirement(self) -> str:
        """Pruning with refit, or masks."""
        return "pruning with refit" if self.refit else "pruning masks"

    @property
    def free(self) -> bool:
        """Kept weights, with refit."""
        return self.refit

    def nearest(self, point: Float) -> Float:
        """The largest weights of the point; where they may not change, kept ones return to the original."""
        structure = self.structure
        norms = np.bincount(structure.unit, weights=point**2, minlength=len(structure.group))
        mask = structure.keep_largest(norms) & self._kept(point)
        return np.where(mask, point if self.refit else self.original, 0.0)

    def violation(self, weights: Float) -> float:
        """Kept units beyond the capacities; for masks plus the largest change of a kept weight."""
        excess = float(self.structure.excess(weights[None])[0])
        return excess if self.refit else excess + float(np.max(self._changes(weights), initial=0.0))

    def exact(self, weights: Float) -> Float:
        """The weights themselves."""
        if np.any(self.structure.excess(weights[None])):
            raise NotAllowedError("weights that break the pattern")
        if not self.refit and np.any(self._changes(weights)):
            raise NotAllowedError("changed kept weights, which stay as they are in a mask-only problem")
        return weights

    def _kept(self, weights: Float) -> Bool:
        """The inputs of units that have a weight other than zero."""
        return np.asarray(self.structure.kept_units(weights[None])[0][self.structure.unit])

    def _changes(self, weights: Float) -> Float:
        """By how much weights of kept units differ from the original ones."""
        dropped = ~self._kept(weights)
        if self.idle is not None:
            dropped |= self.idle & (weights == 0.0)
        return np.where(dropped, 0.0, np.abs(weights - self.original))

    def restrict(self, live: Bool) -> Support:
        """The structure of the live inputs; dead ones are dropped first."""
        return Support(self.structure.restrict(live), self.original[live], self.refit)

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every choice of kept units that the capacities allow."""
        structure = self.structure
        per_group = []
        for group, capacity in enumerate(structure.capacity):
            units = np.flatnonzero(structure.group == group)
            per_group.append([c for k in range(int(capacity) + 1) for c in combinations(units.tolist(), k)])
        for choice in product(*per_group):
            kept = np.zeros(len(structure.group), dtype=bool)
            kept[[unit for part in choice for unit in part]] = True
            mask = kept[structure.unit]
            directions = np.eye(len(mask))[:, mask if self.refit else []]
            yield np.where(mask, self.original, 0.0), directions, False
