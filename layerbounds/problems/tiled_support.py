"""Allowed sets of tiled patterns: rows whose masks fit N:M each and limit one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.patterns.structure import Structure
from layerbounds.problems.patterns.tile_limits import TileLimits
from layerbounds.problems.tile_masks import best_columns, best_in_tile


@dataclass(frozen=True, eq=False)
class TiledSupport(AllowedSet):
    """Kept inputs of a band of rows: each row fits a structure, and all of them together fit limits.

    Weights have shape (rows, n), or (n,) where there is one row.

    Attributes
    ----------
    structure : Structure
        Of each row: groups of single inputs and their capacities.
    limits : TileLimits
        Its groups are those of the structure, or it limits inputs alone.
    original : ndarray of shape (rows, n)
        The dense weights: what a kept weight is where ``refit`` is False.
    refit : bool
        Whether kept weights may take any value.
    """

    structure: Structure
    limits: TileLimits
    original: Float
    refit: bool

    @property
    def requirement(self) -> str:
        """Tiled pruning with refit, or masks."""
        return "tiled pruning with refit" if self.refit else "tiled pruning masks"

    @property
    def free(self) -> bool:
        """Kept weights, with refit."""
        return self.refit

    def best_mask(self, score: Float) -> Bool:
        """An allowed mask of large total score, shape (rows, n); the largest one but for groups of very many inputs.

        Parameters
        ----------
        score : ndarray of shape (rows, n)
            Not negative.
        """
        mask = np.zeros(score.shape, dtype=bool)
        limits = self.limits
        for group, per_row in enumerate(self.structure.capacity.tolist()):
            inputs = np.flatnonzero(self.structure.group == group)
            if not len(inputs) or not per_row:
                continue
            used = int(limits.columns.capacity[limits.columns.group[inputs[0]]])
            if used < len(inputs):
                mask[:, inputs] = best_columns(score[:, inputs], per_row, used)
            else:
                mask[:, inputs] = best_in_tile(score[:, inputs], per_row, int(limits.most[inputs[0]]))
        return mask

    def nearest(self, point: Float) -> Float:
        """The mask of largest squares; where weights may not change, kept ones return to the original."""
        rows = np.atleast_2d(point)
        mask = self.best_mask(rows**2) & (rows != 0.0)
        return np.where(mask, rows if self.refit else self.original, 0.0).reshape(point.shape)

    def excess(self, weights: Float) -> int:
        """How many inputs are kept beyond what rows and limits allow."""
        rows = np.atleast_2d(weights)
        return int(self.structure.excess(rows).sum()) + self.limits.excess(rows != 0.0)

    def violation(self, weights: Float) -> float:
        """Inputs kept beyond the pattern; for masks plus the largest change of a kept weight."""
        excess = float(self.excess(weights))
        changes = self._changes(np.atleast_2d(weights))
        return excess if self.refit else excess + float(np.max(changes, initial=0.0))

    def exact(self, weights: Float) -> Float:
        """The weights themselves."""
        if self.excess(weights):
            raise NotAllowedError("weights that break the pattern")
        if not self.refit and np.any(self._changes(np.atleast_2d(weights))):
            raise NotAllowedError("changed kept weights, which stay as they are in a mask-only problem")
        return weights

    def _changes(self, rows: Float) -> Float:
        """By how much weights that are not zero differ from the original ones."""
        return np.where(rows == 0.0, 0.0, np.abs(rows - self.original))

    def restrict(self, live: Bool) -> TiledSupport:
        """The pattern of the live inputs; dead ones are dropped first."""
        return TiledSupport(
            self.structure.restrict(live), self.limits.restrict(live), self.original[:, live], self.refit
        )

    def masks(self) -> Iterator[Bool]:
        """Every allowed mask, shape (rows, n): for tests and very small problems."""
        rows, n = self.original.shape
        lines = [kept[self.structure.unit] for kept in self.structure.choices()]
        for chosen in product(lines, repeat=rows):
            mask = np.array(chosen).reshape(rows, n)
            if not self.limits.excess(mask):
                yield mask

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every allowed mask."""
        rows, n = self.original.shape
        shape = (rows, n) if rows > 1 else (n,)
        for mask in self.masks():
            directions = np.eye(rows * n)[:, mask.ravel() if self.refit else []]
            offset = np.where(mask, self.original, 0.0)
            yield offset.reshape(shape), directions.reshape(*shape, directions.shape[1]), False
