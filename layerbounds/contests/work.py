"""The work on the contenders of a layer: bounds of each, narrowed where a verdict is open."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from layerbounds.contests.match import Contender, Match
from layerbounds.contests.verdict import Verdict, summed
from layerbounds.layers.layer import Layer
from layerbounds.proofs import Status
from layerbounds.scheduling.choice import AUTO, NATIVE
from layerbounds.solve import solve

#: How far beyond the rival's upper bound a lower bound is pushed, relative: ties within rounding are no verdicts.
BEYOND = 1e-6
#: Calls in one round for a set of channels whose search stopped at a gap that better weights made too wide.
ATTEMPTS = 3

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
        """Verdicts that are open."""
        return sum(verdict == Verdict.OPEN for match in self.matches for verdict in match.verdicts)

    @property
    def verdicts(self) -> int:
        """Verdicts in all."""
        return sum(len(match.units) for match in self.matches)

    @property
    def late(self) -> bool:
        """Whether no more work should begin."""
        return self.interrupted or time.perf_counter() >= self.deadline

    def round(self, time_limit: float) -> None:
        """Give every set of channels whose verdict can still change so many seconds for each method.

        A round of 0 seconds visits all of them: heuristics and root bounds.
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
            for side in (0, 1):
                high, other = match.bounds(side)[:, 1], match.bounds(1 - side)[:, 1]
                worse = match.unsettled(side, [u for u in match.open_units() if high[u] >= other[u]])
                # Sets that all reach this gap sum up to an interval that does.
                gaps = [_gap(float(other[unit]), float(high[unit])) for unit, _ in worse]
                stopped = set(self._work(match.rivals[side], [index for _, index in worse], time_limit, gaps))
                again |= any(index in stopped for _, index in match.unsettled(side, match.open_units()))
            if not again or self.late:
                break
        for side in (0, 1):
            high, other = match.bounds(side)[:, 1], match.bounds(1 - side)[:, 1]
            better = match.unsettled(side, [u for u in match.open_units() if high[u] < other[u]])
            self._work(match.rivals[side], [index for _, index in better], time_limit, [0.0] * len(better))

    def _settle_sum(self, match: Match, time_limit: float) -> None:
        """Where the channels disagree, narrow those intervals that keep the verdict of the sum open."""
        had_time = [{index for _, index in match.unsettled(side, match.open_units())} for side in (0, 1)]
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
            for index in np.argsort(-width, kind="stable"):
                if reach > 2.0 * missing or width[index] <= 0:
                    break
                reach += float(width[index])
                if index not in had_time[side]:
                    chosen.append(int(index))
            self._work(rival, chosen, time_limit, [0.0] * len(chosen))

    def _work(self, rival: Contender[Any], sets: list[int], time_limit: float, gaps: list[float]) -> list[int]:
        """Solve some sets of channels, keep what is better, and return those that stopped at the gap asked for."""
        if not sets or self.late:
            return []
        left = (self.deadline - time.perf_counter()) * min(self.jobs, len(sets)) / len(sets)
        rows = rival.rows(sets)
        try:
            solution = solve(
                rival.problem,
                self._backend(time_limit),
                channels=[self.channels[i] for i in rows],
                time_limit=max(min(time_limit, left), 0.0),
                gap=gaps,
                jobs=self.jobs,
                seed=self.seed,
                warm_start=rival.weights[rows] if rival.has_weights[sets].all() else None,
            )
        except KeyboardInterrupt:
            self.interrupted = True
            return []
        rival.absorb(sets, solution)
        self.interrupted |= solution.interrupted
        self.carry()
        self._notify()
        return [index for i, index in enumerate(sets) if solution.status[i] == Status.GAP_REACHED]

    def _backend(self, time_limit: float) -> str:
        """Bounds of all channels at once belong to the first round: the others have them and are for searches."""
        return NATIVE if self.backend == AUTO and time_limit > 0 else self.backend

    def _notify(self) -> None:
        for listener in self.listeners:
            listener(self)


def _contrast(match: Match) -> float:
    """Small where the upper bounds of the open units differ most: these verdicts come soonest."""
    units = match.open_units()
    high = np.array([match.bounds(side)[units, 1] for side in (0, 1)])
    if not units or not np.all(np.isfinite(high)):
        return 0.0
    return float(np.median(high.min(axis=0) / np.maximum(high.max(axis=0), np.finfo(np.float64).tiny)))


def _gap(rival: float, own: float) -> float:
    """Gap at which the own lower bound exceeds the rival's upper bound."""
    if not (np.isfinite(own) and own > 0):
        return 0.0
    return float(np.clip(1.0 - (1.0 + BEYOND) * rival / own, 0.0, 0.999))
