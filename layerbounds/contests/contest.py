"""The work on one layer: bounds of both methods at every compression, narrowed where a verdict is open."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from layerbounds.arguments import flag, shown, whole_number
from layerbounds.arrays import Bool, Float
from layerbounds.contests.levels import Comparison, Level
from layerbounds.contests.verdict import Verdict, decide_all, summed
from layerbounds.exceptions import CertificationError, InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.grids import MAX_BITS, Granularity, Range
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.problem import Problem, check_channels
from layerbounds.problems.pruning import PruningProblem, pruning_problem
from layerbounds.problems.quantization import quantization_problem
from layerbounds.proofs import Status
from layerbounds.scheduling.choice import AUTO, NATIVE
from layerbounds.solution import Solution
from layerbounds.solve import solve

#: How far beyond the rival's upper bound a lower bound is pushed, relative: ties within rounding are no verdicts.
BEYOND = 1e-6
#: Calls in one round for a channel whose search stopped at a gap that better weights made too wide.
ATTEMPTS = 3


@dataclass(frozen=True)
class Rules:
    """What is compared and how it is computed.

    Attributes
    ----------
    granularity, range, symmetric
        Of the grids, as in `layerbounds.uniform_grid`.
    pattern : str
        ``"unstructured"`` or ``"block:S"`` at density bits/16, or ``"N:M"`` with the letter N and a number M:
        bits·M/16 of every M inputs.
    refit : bool
    backend : str
    jobs : int
        Threads.
    seed : int
    scale : {"free"} or None
        All scales instead of those of ``range``.
    zero_point : {"free", "real"} or None
        With ``scale``: as in `layerbounds.quantization_problem`.
    """

    granularity: Granularity = "channel"
    range: Range = "mse"
    symmetric: bool = True
    pattern: str = "unstructured"
    refit: bool = True
    backend: str = "auto"
    jobs: int = 1
    seed: int = 0
    scale: str | None = None
    zero_point: str | None = None


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
class Pair:
    """Both contenders at one compression."""

    bits: int
    quantization: Contender[Problem]
    pruning: Contender[PruningProblem]
    rivals: tuple[Contender[Any], Contender[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.rivals = (self.quantization, self.pruning)

    def open_rows(self) -> list[int]:
        """Channels whose verdict is open and whose intervals can still be narrowed."""
        verdicts = decide_all(self.quantization.bounds, self.pruning.bounds)
        stuck = self.quantization.closed & self.pruning.closed
        return [i for i, verdict in enumerate(verdicts) if verdict == Verdict.OPEN and not stuck[i]]


class Contest:
    """State of the comparison of one layer.

    Parameters
    ----------
    layer : Layer
    bits : sequence of int
    channels : sequence of int or None
    rules : Rules

    Attributes
    ----------
    listeners : list of callable
        Called with the contest after each piece of work: to save it, to show progress.
    completed : float
        Time limit of the longest round that was completed; negative before the first.
    deadline : float
        On the clock of `time.perf_counter`: no work begins after it.
    interrupted : bool
    """

    def __init__(
        self,
        layer: Layer,
        bits: Sequence[int],
        channels: Sequence[int] | None,
        rules: Rules,
    ) -> None:
        as_layer(layer)
        bits = [whole_number(b, "bits", 1, MAX_BITS) for b in bits]
        if not bits or len(set(bits)) != len(bits):
            raise InputError(f"bits are {shown(bits)}; pass at least one number of bits, and each once.")
        whole_number(rules.seed, "seed")
        flag(rules.refit, "refit")
        flag(rules.symmetric, "symmetric")
        if not isinstance(rules.pattern, str):
            raise InputError(f"pattern is {shown(rules.pattern)}; pass a text such as 'N:16'.")
        if not isinstance(rules.backend, str):
            raise InputError(f"backend is {shown(rules.backend)}; pass a name.")
        self.layer, self.rules = layer, rules
        self.pairs: list[Pair] = []
        for b in bits:
            quantized = _quantization(layer, b, rules)
            self.channels = check_channels(quantized, channels)
            pruned = _pruning(layer, b, rules)
            self.pairs.append(
                Pair(int(b), Contender.start(quantized, self.channels), Contender.start(pruned, self.channels))
            )
        self.energy = layer.energy()[self.channels]
        self.listeners: list[Callable[[Contest], None]] = []
        self.completed = -1.0
        self.interrupted = False
        self.deadline = np.inf

    def fingerprint(self) -> str:
        """SHA-256 of the problems and channels: bounds saved under it stay valid whatever the options of the search."""
        digest = hashlib.sha256(repr(self.channels).encode())
        for pair in self.pairs:
            for rival in pair.rivals:
                digest.update(rival.problem.fingerprint().encode())
        return digest.hexdigest()

    @property
    def undecided(self) -> int:
        """Pairs of a channel and a compression whose verdict is open."""
        return sum(
            sum(v == Verdict.OPEN for v in decide_all(p.quantization.bounds, p.pruning.bounds)) for p in self.pairs
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
        for pair in sorted(self.pairs, key=_contrast):
            if self.late:
                return
            if time_limit == 0:
                for rival in pair.rivals:
                    untouched = [int(i) for i in np.flatnonzero(~rival.visited)]
                    self._work(rival, untouched, 0.0, [0.0] * len(untouched))
            else:
                self._duel(pair, time_limit)
                self._settle_sum(pair, time_limit)
        if not self.late:
            self.completed = time_limit
            self._notify()

    def _duel(self, pair: Pair, time_limit: float) -> None:
        """Raise the lower bound of the method that seems worse, then improve both bounds of the other."""
        for _ in range(ATTEMPTS):
            again = False
            for rival, other in (pair.rivals, pair.rivals[::-1]):
                worse = [
                    i for i in pair.open_rows() if rival.bounds[i, 1] >= other.bounds[i, 1] and not rival.closed[i]
                ]
                gaps = [_gap(float(other.bounds[i, 1]), float(rival.bounds[i, 1])) for i in worse]
                stopped = self._work(rival, worse, time_limit, gaps) if worse else []
                again |= bool(set(stopped) & set(pair.open_rows()))
            if not again or self.late:
                break
        for rival, other in (pair.rivals, pair.rivals[::-1]):
            better = [i for i in pair.open_rows() if rival.bounds[i, 1] < other.bounds[i, 1] and not rival.closed[i]]
            self._work(rival, better, time_limit, [0.0] * len(better))

    def _settle_sum(self, pair: Pair, time_limit: float) -> None:
        """Where the channels disagree, narrow those intervals that keep the verdict of the sum open."""
        had_time = set(pair.open_rows())
        totals = [summed(rival.bounds) for rival in pair.rivals]
        worse = int(totals[1][1] >= totals[0][1])
        for side in (worse, 1 - worse):
            totals = [summed(rival.bounds) for rival in pair.rivals]
            missing = totals[1 - worse][1] - totals[worse][0]
            if missing < 0 or not np.isfinite(missing):
                return
            rival = pair.rivals[side]
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
        left = (self.deadline - time.perf_counter()) * min(self.rules.jobs, len(rows)) / len(rows)
        rows_with = [i for i in rows if rival.has_weights[i]]
        try:
            solution = solve(
                rival.problem,
                self._backend(time_limit),
                channels=[self.channels[i] for i in rows],
                time_limit=max(min(time_limit, left), 0.0),
                gap=gaps,
                jobs=self.rules.jobs,
                seed=self.rules.seed,
                warm_start=rival.weights[rows] if len(rows_with) == len(rows) else None,
            )
        except KeyboardInterrupt:
            self.interrupted = True
            return []
        rival.absorb(rows, solution)
        self.interrupted |= solution.interrupted
        self._carry()
        self._notify()
        return [row for i, row in enumerate(rows) if solution.status[i] == Status.GAP_REACHED]

    def _backend(self, time_limit: float) -> str:
        """Bounds of all channels at once belong to the first round: the others have them and are for searches."""
        backend = self.rules.backend
        return NATIVE if backend == AUTO and time_limit > 0 else backend

    def _carry(self) -> None:
        """What is kept of fewer inputs is allowed for more: upper bounds carry up, lower bounds carry down."""
        ordered = sorted((pair.pruning for pair in self.pairs), key=_kept)
        for fewer, more in itertools.pairwise(ordered):
            for row in range(len(self.channels)):
                weights = fewer.weights[row] if fewer.has_weights[row] else None
                more.merge(row, -np.inf, float(fewer.bounds[row, 1]), weights)
        for fewer, more in reversed(list(itertools.pairwise(ordered))):
            for row in range(len(self.channels)):
                fewer.merge(row, float(more.bounds[row, 0]), np.inf, None)

    def _notify(self) -> None:
        for listener in self.listeners:
            listener(self)

    def result(self) -> Comparison:
        """What is known now."""
        levels = tuple(
            Level(
                bits=pair.bits,
                kept=_kept(pair.pruning),
                quantization_problem=pair.quantization.problem.label,
                pruning_problem=pair.pruning.problem.label,
                quantization=pair.quantization.bounds.copy(),
                pruning=pair.pruning.bounds.copy(),
                energy=self.energy,
                seconds=float(pair.quantization.seconds.sum() + pair.pruning.seconds.sum()),
                scales="fixed" if self.rules.scale is None else "free",
            )
            for pair in self.pairs
        )
        return Comparison(
            self.layer.name,
            self.layer.in_features,
            self.layer.out_features,
            list(self.channels),
            levels,
            self.interrupted,
        )


def _quantization(layer: Layer, bits: int, rules: Rules) -> Problem:
    """Quantization on a fitted grid, or over all scales."""
    if rules.scale is None:
        if rules.zero_point is not None:
            raise InputError("zero_point is for free scales; pass scale='free' with it.")
        return quantization_problem(
            layer, bits, symmetric=rules.symmetric, granularity=rules.granularity, range=rules.range
        )
    if not isinstance(rules.scale, str) or rules.scale != "free":
        raise InputError(f"scale is {shown(rules.scale)}; pass 'free', or leave it out for fitted scales.")
    if rules.range != "mse":
        raise InputError("free scales are not fitted; leave out range, or scale='free'.")
    if rules.granularity == "tensor":
        raise InputError("one free scale for all channels leaves no verdict for each; choose granularity 'channel'.")
    return quantization_problem(
        layer,
        bits,
        scale="free",
        zero_point=rules.zero_point,
        symmetric=None if rules.symmetric else False,
        granularity=rules.granularity,
    )


def _pruning(layer: Layer, bits: int, rules: Rules) -> PruningProblem:
    """Pruning at the density of equal bits."""
    match = re.fullmatch(r"[nN]:(\d+)", rules.pattern.strip())
    if match is None:
        if not parse_pattern(rules.pattern).needs_count:
            raise InputError(
                f"pattern {rules.pattern!r} keeps as many inputs at any number of bits; write N:16, with the letter N, "
                "which stands for the bits."
            )
        return pruning_problem(layer, density=bits / 16.0, pattern=rules.pattern, refit=rules.refit)
    size = int(match[1])
    if size < 1 or bits * size % 16:
        raise InputError(
            f"pattern {rules.pattern!r} keeps {bits * size / 16:g} of {size} inputs at {bits} bits, which is no whole "
            "number; choose N:16, or only bits that fit."
        )
    return pruning_problem(layer, pattern=f"{bits * size // 16}:{size}", refit=rules.refit)


def _kept(contender: Contender[PruningProblem]) -> int:
    return contender.problem.kept


def _contrast(pair: Pair) -> float:
    """Small where the upper bounds of the open channels differ most: these verdicts come soonest."""
    rows = pair.open_rows()
    high = np.array([[rival.bounds[i, 1] for i in rows] for rival in pair.rivals])
    if not rows or not np.all(np.isfinite(high)):
        return 0.0
    return float(np.median(high.min(axis=0) / np.maximum(high.max(axis=0), np.finfo(np.float64).tiny)))


def _gap(rival: float, own: float) -> float:
    """Gap at which the own lower bound exceeds the rival's upper bound."""
    if not (np.isfinite(own) and own > 0):
        return 0.0
    return float(np.clip(1.0 - (1.0 + BEYOND) * rival / own, 0.0, 0.999))
