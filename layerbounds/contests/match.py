"""Contenders of a contest, and pairs of them: the bounds of each, and what they say about each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.contests.verdict import Verdict, decide_all, grouped
from layerbounds.exceptions import CertificationError
from layerbounds.problems.problem import Problem
from layerbounds.problems.rows import common_sets, sets_within
from layerbounds.proofs import Status
from layerbounds.solution import Solution

Kind = TypeVar("Kind", bound=Problem)


@dataclass(eq=False)
class Contender(Generic[Kind]):
    """One method at one compression: the best bounds so far of each channel, or of each set of channels that it binds.

    Attributes
    ----------
    problem : Problem
    sets : list of list of int
        Positions of the channels of each set among those compared.
    bounds : ndarray of shape (sets, 2)
        Lower and upper.
    weights : ndarray of shape (channels, n)
        They reach the upper bounds where ``has_weights``; bounds that were read from a file have none.
    has_weights : ndarray of bool, shape (sets,)
    visited : ndarray of bool, shape (sets,)
        The first round has been here.
    closed : ndarray of bool, shape (sets,)
        Proven optimal: no more work can narrow these.
    seconds : ndarray of shape (sets,)
        Search time.
    """

    problem: Kind
    sets: list[list[int]]
    bounds: Float
    weights: Float
    has_weights: Bool
    visited: Bool
    closed: Bool
    seconds: Float

    @classmethod
    def start(cls, problem: Kind, channels: Sequence[int]) -> Contender[Kind]:
        """Before any work: the error is at least its constant part."""
        position = {channel: i for i, channel in enumerate(channels)}
        sets = [[position[c] for c in rows] for rows in problem.sets(channels)]
        constant = problem.layer.constant[list(channels)]
        lower = grouped(np.stack([constant, constant], axis=1), sets)[:, 0]
        count = len(sets)
        return cls(
            problem,
            sets,
            np.stack([lower, np.full(count, np.inf)], axis=1),
            np.zeros((len(channels), problem.layer.in_features)),
            np.zeros(count, dtype=bool),
            np.zeros(count, dtype=bool),
            np.zeros(count, dtype=bool),
            np.zeros(count),
        )

    def rows(self, indices: Iterable[int]) -> list[int]:
        """Positions of the channels of some sets."""
        return [row for index in indices for row in self.sets[index]]

    def best(self, index: int) -> Float | None:
        """The weights that reach the upper bound of a set, shape (rows, n), where there are any."""
        return self.weights[self.sets[index]] if self.has_weights[index] else None

    def merge(self, index: int, lower: float, upper: float, weights: Float | None) -> None:
        """Intersect the interval of a set with another valid one; weights have shape (rows, n).

        Raises
        ------
        CertificationError
            If the two contradict each other.
        """
        if upper < self.bounds[index, 1]:
            self.bounds[index, 1] = upper
            self.has_weights[index] = weights is not None
            if weights is not None:
                self.weights[self.sets[index]] = weights
        self.bounds[index, 0] = max(self.bounds[index, 0], lower)
        if self.bounds[index, 0] > self.bounds[index, 1]:
            raise CertificationError(
                f"layer {self.problem.layer.name!r}, {self.problem.label}: two certified intervals contradict each "
                "other; please report this problem with its data."
            )

    def absorb(self, indices: Sequence[int], solution: Solution) -> None:
        """Keep what a run has improved."""
        matrix, first = solution.weights.reshape(len(solution.channels), -1), 0
        for i, index in enumerate(indices):
            last = first + len(self.sets[index])
            self.merge(index, solution.lower_bound[i], solution.upper_bound[i], matrix[first:last])
            first = last
            self.visited[index] = True
            self.closed[index] |= solution.status[i] == Status.OPTIMAL
            self.seconds[index] += solution.seconds[i]


class Match:
    """Two contenders.

    There is a verdict for each *unit*: the smallest sets of channels that no set of either contender leaves. Intervals
    are summed over them.

    Parameters
    ----------
    rivals : tuple of two Contender

    Attributes
    ----------
    rivals : tuple of two Contender
    units : list of list of int
        Positions of the channels among those compared.
    """

    def __init__(self, rivals: tuple[Contender[Any], Contender[Any]]) -> None:
        self.rivals = rivals
        self.units = common_sets(*(rival.sets for rival in rivals))
        self._members = tuple(sets_within(rival.sets, self.units) for rival in rivals)

    def bounds(self, side: int) -> Float:
        """The intervals of a rival, shape (units, 2)."""
        return grouped(self.rivals[side].bounds, self._members[side])

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each unit."""
        return decide_all(self.bounds(0), self.bounds(1))

    def open_units(self) -> list[int]:
        """Units whose verdict is open and whose intervals can still be narrowed."""
        both = [[not all(rival.closed[m]) for m in self._members[side]] for side, rival in enumerate(self.rivals)]
        return [u for u, verdict in enumerate(self.verdicts) if verdict == Verdict.OPEN and (both[0][u] or both[1][u])]

    def unsettled(self, side: int, units: Iterable[int]) -> list[tuple[int, int]]:
        """The sets of a rival that can still be narrowed, each after its unit."""
        closed = self.rivals[side].closed
        return [(unit, index) for unit in units for index in self._members[side][unit] if not closed[index]]
