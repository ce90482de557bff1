"""Greedy selections, best exchanges and kicks of units that several rows share (docs/shared-sets.md)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.pruning.subset import random_below
from layerbounds.kernels.shared.exchanges import best_move, sweep_unit

#: Exchanges in a row, for each unit.
MOST_MOVES = 4


class Exchanges:
    """A choice of units and the matrices swept for it.

    Parameters
    ----------
    a, m : ndarray of shape (n, n)
        A and M, swept for the kept units.
    edge : ndarray of int64, shape (units + 1,)
        First input of each unit.
    group : ndarray of int64, shape (units,)
    kept : ndarray of bool, shape (units,)
    slack : ndarray of int64, shape (groups,)
        How many more units each group may keep; negative where it keeps too many.
    floor : ndarray of shape (n,)
        Inputs whose pivots are not above this save nothing.
    least : float
        What an exchange has to save.
    """

    def __init__(
        self, a: Float, m: Float, edge: Int, group: Int, kept: Bool, slack: Int, floor: Float, least: float
    ) -> None:
        self.a, self.m, self.edge, self.group = a, m, edge, group
        self.kept, self.slack, self.floor, self.least = kept.copy(), slack.copy(), floor, least
        self._pair = np.zeros(2, dtype=np.int64)

    def sweep(self, unit: int) -> float:
        """Take a unit in or out; returns what that saves, 0 where a dependent unit stays out."""
        inward = not self.kept[unit]
        saved = float(sweep_unit(self.a, self.m, self.edge, self.kept, unit, self.floor))
        if np.isnan(saved):
            return 0.0
        self.slack[self.group[unit]] += -1 if inward else 1
        return saved

    def move(self) -> float | None:
        """The best drop, addition or exchange; returns what it saves, None where there is none."""
        best_move(self.a, self.m, self.edge, self.group, self.kept, self.slack, self.floor, self.least, self._pair)
        out, into = self._pair.tolist()
        if out < 0 and into < 0:
            return None
        value = self.sweep(out) if out >= 0 else 0.0
        if into < 0:
            return value
        gain = self.sweep(into)
        # A unit that depends on the kept ones would be chosen again.
        return value + gain if gain > 0.0 else None

    def fill(self) -> Bool:
        """Drop or add one unit after the other, as the groups need it; returns the choice."""
        while np.any(self.slack) and self.move() is not None:
            pass
        return self.kept

    def descend(self) -> float:
        """The best move until none helps; returns the savings."""
        value = 0.0
        for _ in range(MOST_MOVES * len(self.group)):
            saved = self.move()
            if saved is None:
                break
            value += saved
        return value

    def kick(self, random: npt.NDArray[np.uint64]) -> float:
        """Exchange two to four random kept units for others of their groups; returns the savings."""
        value = 0.0
        for _ in range(2 + int(random_below(random, 3))):
            inside = np.flatnonzero(self.kept)
            if not len(inside):
                break
            out = int(inside[random_below(random, len(inside))])
            others = np.flatnonzero(~self.kept & (self.group == self.group[out]))
            if not len(others):
                continue
            value += self.sweep(out)
            value += self.sweep(int(others[random_below(random, len(others))]))
        return value

    def improve(self, kicks: int, random: npt.NDArray[np.uint64]) -> Bool:
        """Descend, then kick and undo what does not help; returns the best choice."""
        self.descend()
        for _ in range(kicks):
            before = self.a.copy(), self.m.copy(), self.kept.copy(), self.slack.copy()
            if not self.kick(random) + self.descend() > self.least:
                self.a, self.m, self.kept, self.slack = before
        return self.kept
