"""The best choice of one set for each row of a band, from lists of sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Int
from layerbounds.problems.tiled_support import TiledSupport

#: Begun choices between two looks at the clock.
LOOK = 500


@dataclass(frozen=True, eq=False)
class Choice:
    """A set that a row may keep.

    Attributes
    ----------
    kept : ndarray of bool, shape (n,)
    value : Fraction or float
        What it costs.
    excess : Fraction or float
        How much it adds to a bound of all choices, not negative.
    """

    kept: Bool
    value: Any
    excess: Any


class LeastChoice:
    """Search of one choice for each row, of least total value, that the limits allow.

    Parameters
    ----------
    pools : sequence of sequence of Choice
        Of each row, by ascending excess.
    allowed : TiledSupport
    base, below
        A bound of all totals, to which excesses add; only choices whose bound is below ``below`` are of interest.
    stop : callable
        Asked now and then whether to give up.
    """

    def __init__(
        self, pools: Sequence[Sequence[Choice]], allowed: TiledSupport, base: Any, below: Any, stop: Callable[[], bool]
    ) -> None:
        self.pools, self.limits, self.base, self.below, self.stop = pools, allowed.limits, base, below, stop
        self.best: list[Choice] | None = None
        self.looked = 0
        self.rest = [pool[0].excess if pool else 0 for pool in pools]
        for row in range(len(pools) - 2, -1, -1):
            self.rest[row] += self.rest[row + 1]
        self.rest.append(0)

    def run(self) -> bool:
        """Search all; False where it was given up. What was found is ``best``, and ``below`` its value."""
        if not all(self.pools):
            return True
        return self._descend([], self.base, np.zeros(len(self.limits.most), dtype=np.int64))

    def _descend(self, chosen: list[Choice], spent: Any, count: Int) -> bool:
        row = len(chosen)
        if row == len(self.pools):
            total = sum(choice.value for choice in chosen)
            if self.below is None or total < self.below:
                self.best, self.below = chosen, total
            return True
        for choice in self.pools[row]:
            if self.below is not None and spent + choice.excess + self.rest[row + 1] >= self.below:
                return True
            self.looked += 1
            if self.looked % LOOK == 0 and self.stop():
                return False
            following = count + choice.kept
            if np.any(following > self.limits.most):
                continue
            columns = self.limits.columns
            used = np.bincount(columns.group[following > 0], minlength=len(columns.capacity))
            if np.any(used > columns.capacity):
                continue
            if not self._descend([*chosen, choice], spent + choice.excess, following):
                return False
        return True
