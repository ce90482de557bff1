"""Which inputs may be kept together: units, groups and capacities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Structure:
    """Units, groups and capacities of one output channel.

    Attributes
    ----------
    unit : ndarray of int64, shape (n,)
        The unit of each input, numbered from 0.
    group : ndarray of int64, shape (units,)
        The group of each unit, numbered from 0.
    capacity : ndarray of int64, shape (groups,)
        How many units of each group may be kept.
    """

    unit: Int
    group: Int
    capacity: Int

    def restrict(self, live: Bool) -> Structure:
        """The same structure on the live inputs: dead ones are dropped first, at no cost.

        Parameters
        ----------
        live : ndarray of bool, shape (n,)

        Returns
        -------
        Structure
            Units without a live input and groups without a unit are gone; capacities that exceed the number of units
            of their group are lowered to it.
        """
        units, unit = np.unique(self.unit[live], return_inverse=True)
        groups, group = np.unique(self.group[units], return_inverse=True)
        if len(units) == len(unit):
            # Single inputs are numbered in their order, whatever order a user gave them.
            unit, group = np.arange(len(unit)), group[unit]
        size = np.bincount(group, minlength=len(groups))
        return Structure(
            unit.astype(np.int64), group.astype(np.int64), np.minimum(self.capacity[groups], size).astype(np.int64)
        )

    def equals(self, other: Structure) -> bool:
        """Whether both have the same units, groups and capacities."""
        return self is other or all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("unit", "group", "capacity")
        )

    def kept_units(self, matrix: Float) -> Bool:
        """Which units hold a nonzero weight, shape (channels, units)."""
        kept = np.zeros((len(matrix), len(self.group)), dtype=bool)
        row, column = np.nonzero(matrix)
        kept[row, self.unit[column]] = True
        return kept

    def excess(self, matrix: Float) -> Int:
        """Kept units beyond the capacities, summed over the groups; shape (channels,)."""
        row, unit = np.nonzero(self.kept_units(matrix))
        groups = len(self.capacity)
        used = np.bincount(row * groups + self.group[unit], minlength=len(matrix) * groups)
        over = np.maximum(used.reshape(len(matrix), groups) - self.capacity, 0)
        return np.asarray(over.sum(axis=1), dtype=np.int64)

    def keep_largest(self, score: npt.NDArray[Any]) -> Bool:
        """Mask, shape (n,), of the inputs kept when each group keeps its units of largest score, shape (units,)."""
        keep = np.zeros(len(self.group), dtype=bool)
        # Sorted by group first, so that each group is a slice.
        order = np.lexsort((-score, self.group))
        first = np.searchsorted(self.group[order], np.arange(len(self.capacity)))
        for begin, capacity in zip(first, self.capacity, strict=True):
            keep[order[begin : begin + capacity]] = True
        return np.asarray(keep[self.unit])

    def choices(self, full: bool = False) -> Iterator[Bool]:
        """Every choice of kept units that the capacities allow, shape (units,); if ``full``, that uses them."""
        per_group = []
        for group, capacity in enumerate(self.capacity.tolist()):
            units = np.flatnonzero(self.group == group).tolist()
            sizes = range(capacity if full else 0, capacity + 1)
            per_group.append([chosen for size in sizes for chosen in combinations(units, size)])
        for choice in product(*per_group):
            kept = np.zeros(len(self.group), dtype=bool)
            kept[[unit for part in choice for unit in part]] = True
            yield kept
