"""What allowed sets of pruning share: the nonzero weights of a row, or of several with one mask, fit a structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.patterns import Structure


@dataclass(frozen=True, eq=False)
class MaskedWeights(AllowedSet):
    """Kept units of inputs within the capacities of their groups, the same ones in all rows.

    Weights have shape (n,) for one row, (rows, n) for several.

    Attributes
    ----------
    structure : Structure
        Units, groups and capacities.
    original : ndarray of shape (n,) or (rows, n)
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
    def free(self) -> bool:
        """Kept weights, with refit."""
        return self.refit

    def nearest(self, point: Float) -> Float:
        """The units of largest weights; where they may not change, kept ones return to the original."""
        rows = np.atleast_2d(point)
        squares = np.sum(rows**2, axis=0)
        norms = np.bincount(self.structure.unit, weights=squares, minlength=len(self.structure.group))
        mask = self.structure.keep_largest(norms) & self.kept(rows)
        return np.where(mask, rows if self.refit else self.original, 0.0).reshape(point.shape)

    def violation(self, weights: Float) -> float:
        """Kept units beyond the capacities; for masks plus the largest change of a kept weight."""
        rows = np.atleast_2d(weights)
        excess = float(self.structure.excess(_union(rows))[0])
        return excess if self.refit else excess + float(np.max(self._changes(rows), initial=0.0))

    def exact(self, weights: Float) -> Float:
        """The weights themselves."""
        rows = np.atleast_2d(weights)
        if np.any(self.structure.excess(_union(rows))):
            raise NotAllowedError("weights that break the pattern")
        if not self.refit and np.any(self._changes(rows)):
            raise NotAllowedError("changed kept weights, which stay as they are in a mask-only problem")
        return weights

    def kept(self, rows: Float) -> Bool:
        """The inputs of units that have a weight other than zero in some row, shape (n,)."""
        return np.asarray(self.structure.kept_units(_union(rows))[0][self.structure.unit])

    def _changes(self, rows: Float) -> Float:
        """By how much weights of kept units differ from the original ones."""
        dropped = np.broadcast_to(~self.kept(rows), rows.shape)
        if self.idle is not None:
            dropped = dropped | (self.idle & (rows == 0.0))
        return np.where(dropped, 0.0, np.abs(rows - self.original))

    def restrict(self, live: Bool) -> Self:
        """The structure of the live inputs; dead ones are dropped first."""
        return replace(self, structure=self.structure.restrict(live), original=self.original[..., live], idle=None)

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every choice of kept units that the capacities allow."""
        rows, n = np.atleast_2d(self.original).shape
        shape = (rows, n) if rows > 1 else (n,)
        for kept in self.structure.choices():
            mask = np.tile(kept[self.structure.unit], rows)
            directions = np.eye(rows * n)[:, mask if self.refit else []]
            offset = np.where(mask, self.original.ravel(), 0.0)
            yield offset.reshape(shape), directions.reshape(*shape, directions.shape[1]), False


def _union(rows: Float) -> Float:
    """One row that is zero where all rows are, shape (1, n)."""
    return np.asarray(np.abs(rows).max(axis=0, keepdims=True))
