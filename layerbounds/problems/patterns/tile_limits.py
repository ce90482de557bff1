"""What binds the masks of rows that are not equal but limit one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Bool, Int
from layerbounds.problems.patterns.structure import Structure


@dataclass(frozen=True, eq=False)
class TileLimits:
    """Limits of a band of rows, beside what each row must fit on its own.

    Attributes
    ----------
    most : ndarray of int64, shape (n,)
        By how many rows each input may be kept.
    columns : Structure
        Inputs that any of the rows keeps fit this structure of single inputs.
    """

    most: Int
    columns: Structure

    def restrict(self, live: Bool) -> TileLimits:
        """The same limits on the live inputs."""
        return TileLimits(self.most[live], self.columns.restrict(live))

    def excess(self, mask: Bool) -> int:
        """By how much masks, shape (rows, n), exceed the limits, summed over inputs and groups of them."""
        count = mask.sum(axis=0)
        used = np.bincount(self.columns.group[count > 0], minlength=len(self.columns.capacity))
        return int(np.maximum(count - self.most, 0).sum() + np.maximum(used - self.columns.capacity, 0).sum())

    def equals(self, other: TileLimits) -> bool:
        """Whether both say the same."""
        return np.array_equal(self.most, other.most) and self.columns.equals(other.columns)
