"""The work on the contenders of a layer: bounds of each, narrowed where a verdict is open."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.contests.verdict import Verdict, decide_all, summed
from layerbounds.exceptions import CertificationError
from layerbounds.layers.layer import Layer
from layerbounds.problems.problem import Problem
from layerbounds.proofs import Status
from layerbounds.scheduling.choice import AUTO, NATIVE
from layerbounds.solution import Solution
from layerbounds.solve import solve

#: How far beyond the rival's upper bound a lower bound is pushed, relative: ties within rounding are no verdicts.
BEYOND = 1e-6
#: Calls in one round for a channel whose search stopped at a gap that better weights made too wide.
ATTEMPTS = 3

Kind = TypeVar("Kind", bound=Problem)


@dataclass(eq=False)
class Contender(Generic[Kind]):
    """One method at one compression: the best bounds so far of each channel.

    Attributes
    ----------
    problem : Problem
    bounds : ndarray of shape (channels, 2)
        Lower and upper.
    weights : ndarray of shape (channels, n)
        They reach the upper bounds where ``has_weights``; bounds that were read from a file have none.
    visited : ndarray of bool, shape (channels,)
        The first round has been here.
    closed : ndarray of bool, shape (channels,)
        Proven optimal: no more work can narrow these.
    seconds : ndarray of shape (channels,)
        Search time.
    """

    problem: Kind
    bounds: Float
    weights: Float
    has_weights: Bool
    visited: Bool
    closed: Bool
    seconds: Float

    @classmethod
    def start(cls, problem: Kind, channels: Sequence[int]) -> Contender[Kind]:
        """Before any work: the error is at least its constant part."""
        count = len(channels)
        bounds = np.stack([problem.layer.constant[list(channels)], np.full(count, np.inf)], axis=1)
        return cls(
            problem,
            bounds,
            np.zeros((count, problem.layer.in_features)),
            np.zeros(count, dtype=bool),
            np.zeros(count, dtype=bool),
            np.zeros(count, dtype=bool),
            np.zeros(count),
        )

    def merge(self, row: int, lower: float, upper: float, weights: Float | None) -> None:
        """Intersect a channel's interval with another valid one.

        Raises
        ------
        CertificationError
            If the two contradict each other.
        """
        if upper < self.bounds[row, 1]:
            self.bounds[row, 1] = upper
            self.has_weights[row] = weights is not None
            if weights is not None:
                self.weights[row] = weights
        self.bounds[row, 0] = max(self.bounds[row, 0], lower)
        if self.bounds[row, 0] > self.bounds[row, 1]:
            raise CertificationError(
                f"layer {self.problem.layer.name!r}, {self.problem.label}: two certified intervals contradict each "
                "other; please report this problem with its data."
            )

    def absorb(self, rows: Sequence[int], solution: Solution) -> None:
        """Keep what a run has improved."""
        for i, row in enumerate(rows):
            self.merge(row, solution.lower_bound[i], solution.upper_bound[i], solution.weights[i].ravel())
            self.visited[row] = True
            self.closed[row] |= solution.status[i] == Status.OPTIMAL
            self.seconds[row] += solution.seconds[i]


@dataclass(eq=False)
class Match:
    """Two contenders."""

    rivals: tuple[Contender[Any], Contender[Any]]

    def open_rows(self) -> list[int]:
        """Channels whose verdict is open and whose intervals can still be narrowed."""
        first, second = self.rivals
        verdicts = decide_all(first.bounds, second.bounds)
        stuck = first.closed & second.closed
        return [i for i, verdict in enumerate(verdicts) if verdict == Verdict.OPEN and not stuck[i]]


#: What is known in the end.
Result = TypeVar("Result")


class Work(ABC, Generic[Result]):
    """What is known of the contenders of a layer, and how more is found out.

    Parameters
    ----------
    layer : Layer
    channels : list of int
    backend : str
    jobs : int
    seed : int

    Attributes
    ----------
    listeners : list of callable
        Called with the work after each piece of it: to save it, to show progress.
    completed : float
        Time limit of the longest round that was completed; negative before the first.
    deadline : float
        On the clock of `time.perf_counter`: no work begins after it.
    interrupted : bool
    """

    def __init__(self, layer: Layer, channels: list[int], backend: str, jobs: int, seed: int) -> None:
        self.layer, self.channels, self.backend, self.jobs, self.seed = layer, channels, backend, jobs, seed
        self.energy = layer.energy()[channels]
        self.listeners: list[Callable[[Any], None]] = []
        self.completed = -1.0
        self.interrupted = False
        self.deadline = np.inf

    @property
    @abstractmethod
    def matches(self) -> Sequence[Match]:
        """Which contenders are compared."""

    @abstractmethod
    def sections(self) -> list[tuple[dict[str, Any], dict[str, Contender[Any]]]]:
        """The contenders as files hold them: what tells a section from the others, and its contenders by name."""

    @abstractmethod
    def carry(self) -> None:
        """Carry bounds over between contenders of which one allows all that the other does."""

    @abstractmethod
    def result(self) -> Result:
        """What is known now."""

    def fingerprint(self) -> str:
        """SHA-256 of the problems and channels: bounds saved under it stay valid whatever the options of the search."""
        digest = hashlib.sha256(repr(self.channels).encode())
        for _, contenders in self.sections():
            for contender in contenders.values():
                digest.update(contender.problem.fingerprint().encode())
        return digest.hexdigest()

    @property
    def undecided(self) -> int:
        """Pairs of a channel and a match whose verdict is open."""
        return sum(
            sum(v == Verdict.OPEN for v in decide_all(*(rival.bounds for rival in match.rivals)))
            for match in self.matches
        )

    @property
    def late(self) -> bool:
        """Whether no more work should begin."""
        return self.interrupted or time.perf_counter() >= self.deadline

    def round(self, time_limit: float) -> None:
        """Give every channel whose verdict can still change so many seconds for each method.

        A round of 0 seconds visits all channels: heuristics and root bounds.
        """
        if time_limit <= self.completed:
            return
        for match in sorted(self.matches, key=_contrast):
            if self.late:
                return
            if time_limit == 0:
                for rival in match.rivals:
                    untouched = [int(i) for i in np.flatnonzero(~rival.visited)]
                    self._work(rival, untouched, 0.0, [0.0] * len(untouched))
            else:
                self._duel(match, time_limit)
                self._settle_sum(match, time_limit)
        if not self.late:
            self.completed = time_limit
            self._notify()

    def _duel(self, match: Match, time_limit: float) -> None:
        """Raise the lower bound of the method that seems worse, then improve both bounds of the other."""
        for _ in range(ATTEMPTS):
            again = False
            for rival, other in (match.rivals, match.rivals[::-1]):
                worse = [
                    i for i in match.open_rows() if rival.bounds[i, 1] >= other.bounds[i, 1] and not rival.closed[i]
                ]
                gaps = [_gap(float(other.bounds[i, 1]), float(rival.bounds[i, 1])) for i in worse]
                stopped = self._work(rival, worse, time_limit, gaps) if worse else []
                again |= bool(set(stopped) & set(match.open_rows()))
            if not again or self.late:
                break
        for rival, other in (match.rivals, match.rivals[::-1]):
            better = [i for i in match.open_rows() if rival.bounds[i, 1] < other.bounds[i, 1] and not rival.closed[i]]
            self._work(rival, better, time_limit, [0.0] * len(better))

    def _settle_sum(self, match: Match, time_limit: float) -> None:
        """Where the channels disagree, narrow those intervals that keep the verdict of the sum open."""
        had_time = set(match.open_rows())
        totals = [summed(rival.bounds) for rival in match.rivals]
        worse = int(totals[1][1] >= totals[0][1])
        for side in (worse, 1 - worse):
            totals = [summed(rival.bounds) for rival in match.rivals]
            missing = totals[1 - worse][1] - totals[worse][0]
            if missing < 0 or not np.isfinite(missing):
                return
            rival = match.rivals[side]
            width = np.where(rival.closed, 0.0, rival.bounds[:, 1] - rival.bounds[:, 0])
            chosen: list[int] = []
            reach = 0.0
            for row in np.argsort(-width, kind="stable"):
                if reach > 2.0 * missing or width[row] <= 0:
                    break
                reach += float(width[row])
                if row not in had_time:
                    chosen.append(int(row))
            self._work(rival, chosen, time_limit, [0.0] * len(chosen))

    def _work(self, rival: Contender[Any], rows: list[int], time_limit: float, gaps: list[float]) -> list[int]:
        """Solve some channels, keep what is better, and return those that stopped at the gap asked for."""
        if not rows or self.late:
            return []
        left = (self.deadline - time.perf_counter()) * min(self.jobs, len(rows)) / len(rows)
        rows_with = [i for i in rows if rival.has_weights[i]]
        try:
            solution = solve(
                rival.problem,
                self._backend(time_limit),
                channels=[self.channels[i] for i in rows],
                time_limit=max(min(time_limit, left), 0.0),
                gap=gaps,
                jobs=self.jobs,
                seed=self.seed,
                warm_start=rival.weights[rows] if len(rows_with) == len(rows) else None,
            )
        except KeyboardInterrupt:
            self.interrupted = True
            return []
        rival.absorb(rows, solution)
        self.interrupted |= solution.interrupted
        self.carry()
        self._notify()
        return [row for i, row in enumerate(rows) if solution.status[i] == Status.GAP_REACHED]

    def _backend(self, time_limit: float) -> str:
        """Bounds of all channels at once belong to the first round: the others have them and are for searches."""
        return NATIVE if self.backend == AUTO and time_limit > 0 else self.backend

    def _notify(self) -> None:
        for listener in self.listeners:
            listener(self)


def _contrast(match: Match) -> float:
    """Small where the upper bounds of the open channels differ most: these verdicts come soonest."""
    rows = match.open_rows()
    high = np.array([[rival.bounds[i, 1] for i in rows] for rival in match.rivals])
    if not rows or not np.all(np.isfinite(high)):
        return 0.0
    return float(np.median(high.min(axis=0) / np.maximum(high.max(axis=0), np.finfo(np.float64).tiny)))


def _gap(rival: float, own: float) -> float:
    """Gap at which the own lower bound exceeds the rival's upper bound."""
    if not (np.isfinite(own) and own > 0):
        return 0.0
    return float(np.clip(1.0 - (1.0 + BEYOND) * rival / own, 0.0, 0.999))
