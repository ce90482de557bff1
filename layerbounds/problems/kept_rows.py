"""Allowed sets of filter pruning: at most so many rows are other than zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.allowed import AllowedSet


@dataclass(frozen=True, eq=False)
class KeptRows(AllowedSet):
    """At most ``capacity`` rows that are not zero.

    Weights have shape (rows, n), or (n,) where there is one row.

    Attributes
    ----------
    original : ndarray of shape (rows, n)
        The dense weights: what a kept row is where ``refit`` is False.
    capacity : int
    refit : bool
        Whether kept rows may take any value.
    idle : ndarray of bool, shape (n,), or None
        Inputs without energy, whose weights may be zero in kept rows.
    """

    original: Float
    capacity: int
    refit: bool
    idle: Bool | None = None

    @property
    def requirement(self) -> str:
        """Filter pruning with refit, or masks."""
        return "filter pruning with refit" if self.refit else "filter pruning masks"

    @property
    def free(self) -> bool:
        """Kept rows, with refit."""
        return self.refit

    def nearest(self, point: Float) -> Float:
        """The largest rows; where they may not change, they return to the original."""
        rows = np.atleast_2d(point)
        size = np.sum(rows**2, axis=1)
        kept = np.zeros(len(rows), dtype=bool)
        kept[np.argsort(-size, kind="stable")[: self.capacity]] = True
        kept &= rows.any(axis=1)
        return np.where(kept[:, None], rows if self.refit else self.original, 0.0).reshape(point.shape)

    def violation(self, weights: Float) -> float:
        """Rows beyond the capacity; for masks plus the largest change of a kept weight."""
        rows = np.atleast_2d(weights)
        excess = float(self.excess(rows))
        return excess if self.refit else excess + float(np.max(self._changes(rows), initial=0.0))

    def excess(self, rows: Float) -> int:
        """How many rows are kept beyond the capacity."""
        return max(int(np.count_nonzero(rows.any(axis=1))) - self.capacity, 0)

    def exact(self, weights: Float) -> Float:
        """The weights themselves."""
        rows = np.atleast_2d(weights)
        if self.excess(rows):
            raise NotAllowedError("weights of too many output channels")
        if not self.refit and np.any(self._changes(rows)):
            raise NotAllowedError("changed kept weights, which stay as they are in a mask-only problem")
        return weights

    def _changes(self, rows: Float) -> Float:
        """By how much weights of kept rows differ from the original ones."""
        same = np.broadcast_to(~np.asarray(rows.any(axis=1))[:, None], rows.shape)
        if self.idle is not None:
            same = same | (self.idle & (rows == 0.0))
        return np.where(same, 0.0, np.abs(rows - self.original))

    def restrict(self, live: Bool) -> KeptRows:
        """The same rows on the live inputs."""
        return KeptRows(self.original[:, live], self.capacity, self.refit)

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every choice of so many rows."""
        rows, n = self.original.shape
        shape = (rows, n) if rows > 1 else (n,)
        for many in range(min(self.capacity, rows) + 1):
            for chosen in combinations(range(rows), many):
                mask = np.zeros((rows, n), dtype=bool)
                mask[list(chosen)] = True
                directions = np.eye(rows * n)[:, mask.ravel() if self.refit else []]
                offset = np.where(mask, self.original, 0.0)
                yield offset.reshape(shape), directions.reshape(*shape, directions.shape[1]), False
