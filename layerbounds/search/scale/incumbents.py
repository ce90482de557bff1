"""Weights at their own best scale: first incumbents over a grid of scales, and large neighbourhoods.

A choice of codes q has its least error at s = wᵀHq/qᵀHq: f = E − (wᵀHq)²/qᵀHq. For a cut C below E = f(0)

    f(q) < C  ⇔  qᵀMq < 0 and wᵀHq > 0,        M = H − Hwwᵀ H/(E − C),

a quadratic form of the codes alone: descent and exact enumeration of neighbourhoods in M move the scale with the codes.
With C the error of the present codes this is Dinkelbach's method for ratios (Management Science 13, 1967).
"""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.quantization.neighbourhood import search_neighbourhoods
from layerbounds.kernels.quantization.rounding import beam, coordinate_descent, successive_rounding
from layerbounds.search.quantization.incumbents import beam_width
from layerbounds.search.quantization.neighbourhoods import kick, normalised
from layerbounds.search.quantization.preparation import Preparation

#: Factors of the scale at which the largest weight meets the largest code, where starts are made.
FACTORS = np.geomspace(0.35, 2.0, 25)
#: Factors of the best scale so far at which a wide beam is tried.
NEAR = (1.0, 0.95, 1.05)
#: Partial assignments kept by the narrow beam; the most inputs of layers on which beams and pairs are affordable.
WIDTH, PAIRS = 32, 400
#: Rounds of descent in M.
DESCENTS = 12
#: Subsets of a call of the large-neighbourhood search, nodes of each, and calls without success before a kick.
SUBSETS, BUDGET, STALLED = 25, 20_000, 5
#: Share of the kicks that begin at another scale, and the spread of its logarithm.
RESCALED, RESCALE = 0.7, 0.15


class Codes:
    """Codes of a channel at their own best scale.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
        w.
    codes : ndarray of shape (levels,)
        Sorted.
    limit : float
        Largest weight that is allowed.
    powers : bool
        Whether scales are powers of two.
    """

    def __init__(self, gram: Float, target: Float, codes: Float, limit: float = np.inf, powers: bool = False) -> None:
        self.gram, self.target, self.codes, self.limit, self.powers = gram, target, codes, limit, powers
        self.pull = gram @ target
        self.energy = float(target @ self.pull)
        self.table = np.repeat(codes[None, :], len(target), axis=0)
        self.count = np.full(len(target), len(codes), dtype=np.int64)
        self.zeros = np.zeros(len(target))

    def choice(self, codes: Float) -> Int:
        """Where codes, shape (n,), stand in the list."""
        return np.asarray(np.abs(self.codes[None, :] - codes[:, None]).argmin(axis=1), dtype=np.int64)

    def scale(self, choice: Int) -> float:
        """The best scale of a choice of codes; 0 where none is better than no weights."""
        q = self.codes[choice]
        along, square = float(self.pull @ q), float(q @ (self.gram @ q))
        if not (along > 0.0 and square > 0.0):
            return 0.0
        best = along / square
        most = self.limit / float(np.max(np.abs(q)))
        if self.powers:
            # The error is a parabola of the scale: one of the two powers around its vertex is the best of all.
            lower = float(np.exp2(np.floor(np.log2(min(best, most)))))
            nearer = best - lower <= 2.0 * lower - best
            return lower if nearer or 2.0 * lower > most else 2.0 * lower
        return min(best, most)

    def error(self, choice: Int) -> float:
        """F at the best scale, without the constant."""
        return self.error_at(choice, self.scale(choice))

    def error_at(self, choice: Int, scale: float) -> float:
        """F at a scale, without the constant."""
        if scale == 0.0:
            return self.energy
        deviation = scale * self.codes[choice] - self.target
        return max(float(deviation @ (self.gram @ deviation)), 0.0)

    def metric(self, error: float) -> Float:
        """M for the cut C = ``error``."""
        return np.asarray(self.gram - np.outer(self.pull, self.pull / (self.energy - error)))

    def descend(self, choice: Int) -> tuple[float, Int]:
        """Coordinate descent with pairs, the scale moving along."""
        n = len(self.target)
        error = self.error(choice)
        for _ in range(DESCENTS):
            if not 0.0 < error < self.energy:
                break
            metric = self.metric(error)
            if not np.all(np.diag(metric) > 0.0):
                break
            trial = choice.copy()
            coordinate_descent(metric, self.zeros, self.table, self.count, trial, n <= PAIRS, 10 * n)
            found = self.error(trial)
            if not found < error * (1.0 - 1e-12):
                break
            error, choice = found, trial
        return error, choice


def first_incumbents(
    channel: Codes, prep: Preparation, starts: list[Int], factors: Float = FACTORS
) -> tuple[float, Int]:
    """The best of successive rounding and a beam at some scales, each followed by descent.

    Parameters
    ----------
    channel : Codes
        In the order of the preparation.
    prep : Preparation
    starts : list of ndarray
        Further choices.
    factors : ndarray
    """
    n = prep.size
    peak = float(np.max(np.abs(channel.codes)))
    reach = float(np.max(np.abs(channel.target)))
    best, best_choice = channel.energy, np.argmin(np.abs(channel.table), axis=1)
    tried: set[bytes] = set()
    candidates = list(starts)
    for factor in factors if peak > 0.0 and reach > 0.0 else ():
        target = channel.target / (factor * reach / peak)
        choice = np.zeros(n, dtype=np.int64)
        successive_rounding(prep.shifts, target, channel.table, channel.count, choice)
        candidates.append(choice)
        if n <= PAIRS:
            candidates.append(_beam(channel, prep, WIDTH, target))
    for choice in candidates:
        key = choice.tobytes()
        if key in tried:
            continue
        tried.add(key)
        error, choice = channel.descend(choice)
        if error < best:
            best, best_choice = error, choice
    scale = channel.scale(best_choice)
    for factor in NEAR if scale > 0.0 and n <= PAIRS else ():
        error, choice = channel.descend(_beam(channel, prep, beam_width(n), channel.target / (factor * scale)))
        if error < best:
            best, best_choice = error, choice
    return best, best_choice


def _beam(channel: Codes, prep: Preparation, width: int, target: Float) -> Int:
    """What a beam finds for a target in units of a scale."""
    choice = np.zeros(prep.size, dtype=np.int64)
    beam(width, prep.pivots, prep.shifts, target, channel.table, channel.count, choice)
    return choice


class ScaleNeighbourhoods:
    """Iterated large-neighbourhood search in M: exact enumeration over subsets, the scale moving along.

    Where it is stuck it begins anew at another scale (a beam) or at the best codes with a few of them moved.

    Parameters
    ----------
    channel : Codes
    prep : Preparation
    choice : ndarray of int64, shape (n,)
    error : float
    rng : numpy.random.Generator

    Attributes
    ----------
    value : float
        Error of the best codes.
    best : ndarray of int64, shape (n,)
    """

    def __init__(self, channel: Codes, prep: Preparation, choice: Int, error: float, rng: np.random.Generator) -> None:
        self.value, self.best = error, choice.astype(np.int64)
        self._channel, self._prep = channel, prep
        self._relation = normalised(channel.gram)
        self._current = self.best.copy()
        self._size = np.array([min(16.0, float(len(choice)))])
        self._stalled = 0
        self._rng = rng

    def improve(self) -> bool:
        """Work for some subsets; True when the best codes improved."""
        channel, rng = self._channel, self._rng
        if self._stalled >= STALLED:
            self._kick()
        error = channel.error(self._current)
        if not 0.0 < error < channel.energy:
            self._current = self.best.copy()
            return False
        metric = channel.metric(error)
        try:
            _, gains = search_neighbourhoods(
                metric, channel.zeros, self._relation, channel.table, channel.count, self._current, self._size, SUBSETS,
                BUDGET, int(rng.integers(2**31)),
            )  # fmt: skip
        except ZeroDivisionError:
            # A subset of dependent variables: their part of M has no inverse.
            gains = 0
        error = channel.error(self._current)
        self._stalled = 0 if gains else self._stalled + 1
        if error < self.value * (1.0 - 1e-12):
            self.value, self.best = channel.descend(self._current)
            self._current = self.best.copy()
            return True
        return False

    def adopt(self, value: float, choice: Int) -> None:
        """Continue from better codes that were found elsewhere."""
        if value < self.value:
            self.value, self.best, self._current = value, choice.copy(), choice.copy()
            self._stalled = 0

    def _kick(self) -> None:
        self._stalled = 0
        channel = self._channel
        scale = channel.scale(self.best) * float(np.exp(RESCALE * self._rng.normal()))
        if scale > 0.0 and self._rng.random() < RESCALED:
            self._current = channel.descend(_beam(channel, self._prep, WIDTH, channel.target / scale))[1]
            return
        if self._rng.random() < 0.7:
            self._current = self.best.copy()
        kick(self._current, channel.count, self._rng)
