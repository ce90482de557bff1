"""Good weights of a joint problem: starts, moves over levels and support, large neighbourhoods, kicks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.kernels.joint.neighbourhood import improve_place
from layerbounds.kernels.pruning import subset
from layerbounds.kernels.quantization.rounding import successive_rounding
from layerbounds.kernels.successive import factors_in_order, rounding_order
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.patterns import Structure
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control
from layerbounds.search.joint.units import JointUnits
from layerbounds.search.pruning.correlated_inputs import nearest_inputs
from layerbounds.search.pruning.exchanges import improved
from layerbounds.search.pruning.refit import refit

#: Nodes of one enumeration over a subset, subsets without success before a kick, and subsets between two looks at the
#: clock.
BUDGET, STALL, CHUNK = 2000, 10, 100
#: Shares of the rounds that are tilted, and of the subsets that hold what differs from another good choice.
TILTS, MIXES = 0.25, 0.6
#: Curvature of the bound inside a subset, and sweeps of its relaxation.
CURVATURE, SWEEPS = 0.9, 6
#: Good choices that are kept, and the price of a unit at first.
POOL, PRICE = 16, 0.01
#: Subsets for each start, and the share of the time for all of it.
ROUNDS_EACH, FIRST = 50, 0.3
#: Damping of the nearest plane; kicks of the exchanges of a pruning optimum, and where they take too long.
DAMP, KICKS, EXCHANGES = 1e-6, 20, 400
#: Seconds of a backward elimination, per cubed number of inputs.
ELIMINATE_CUBIC = 1.2e-9
#: Inputs up to which all are quantized before most are dropped again.
THINNED = 700
#: More inputs are not related by the inverse of their Gram matrix.
INVERTIBLE = 1500
#: Gains below this share of the energy do not count.
FLOOR = 1e-12


class Neighbourhoods:
    """Iterated search of one channel; its state lives on between calls.

    Parameters
    ----------
    units : JointUnits
    start : ndarray of shape (n,)
        Allowed weights in the units of the search.
    seed : int
    """

    def __init__(self, units: JointUnits, start: Float, seed: int) -> None:
        self.units = units
        self.place = places(units, start)
        self.value = np.inf
        self._relations = relations(units.gram)
        self._begin = np.searchsorted(units.unit, np.arange(len(units.group) + 1)).astype(np.int64)
        self._size = np.full(2, min(16.0, float(units.size)))
        self._price = np.full(len(units.capacity), PRICE)
        self._elite, self._merit = np.zeros((POOL, units.size), dtype=np.int64), np.full(POOL, np.inf)
        self._state = np.random.default_rng(seed).integers(1, 2**63, size=1, dtype=np.uint64)

    def improve(self, rounds: int) -> float:
        """Work for so many subsets; returns the error of the best weights."""
        u = self.units
        self.value = improve_place(
            u.gram, u.target, u.values, u.count, u.zero, u.unit, self._begin, u.group, u.capacity, self._relations,
            self.place, FLOOR * max(u.energy, 1e-300), self._size, STALL, rounds, BUDGET, TILTS, MIXES, CURVATURE,
            SWEEPS, self._price, self._elite, self._merit, self._state,
        )  # fmt: skip
        return self.value

    @property
    def weights(self) -> Float:
        """The best ones."""
        return self.units.values[np.arange(self.units.size), self.place]


def relations(gram: Float) -> Float:
    """How much inputs interact: the normalised matrix and its normalised inverse, shape (2, n, n)."""
    norms = np.sqrt(np.diag(gram))
    related = gram / np.outer(norms, norms)
    if len(gram) > INVERTIBLE:
        return np.stack([related, related])
    factor = cholesky(related + 1e-6 * np.eye(len(gram)))
    if factor is None:
        return np.stack([related, related])
    covariance = symmetric_inverse(factor)
    norms = np.sqrt(np.diag(covariance))
    return np.stack([related, covariance / np.outer(norms, norms)])


def improve(
    units: JointUnits,
    start: Float,
    seed: int,
    *,
    seconds: float | None = None,
    rounds: int | None = None,
    cancel: threading.Event | None = None,
) -> Float:
    """Better weights than given ones, by large neighbourhoods and kicks.

    Parameters
    ----------
    units : JointUnits
    start : ndarray of shape (n,)
        Allowed weights, in the units of the search.
    seed : int
    seconds : float, optional
        Limit of time.
    rounds : int, optional
        Limit of subsets; results repeat where only this one is given.
    cancel : threading.Event, optional
        Ends the work when set.

    Returns
    -------
    ndarray of shape (n,)
        In the units of the search; never worse than the start.
    """
    begin, done = time.perf_counter(), 0
    search = Neighbourhoods(units, start, seed)
    search.improve(0)
    while rounds is None or done < rounds:
        if seconds is not None and time.perf_counter() - begin >= seconds:
            break
        if cancel is not None and cancel.is_set():
            break
        chunk = CHUNK if rounds is None else min(CHUNK, rounds - done)
        search.improve(chunk)
        done += chunk
    return search.weights


def start_search(
    units: JointUnits, task: Task[LevelsOnSupport], control: Control, share: float = FIRST
) -> Neighbourhoods:
    """A search at the best weights of several starts that has gone on for a while, and can go on.

    Parameters
    ----------
    units : JointUnits
    task : Task
        Its warm start is one of the starts.
    control : Control
        With a node limit the work does not depend on the clock.
    share : float
        Of the time that is left.
    """
    timed = control.node_limit is None
    available = control.remaining() if timed else math.inf
    spared = (1.0 - share) * available

    def late() -> bool:
        return timed and control.remaining() <= spared

    search = best_start(units, task, control.seed, late, share * available)
    best = search.value
    last, done = 0, 0
    while done < min(rounds_of(units.size), 2 * last + least_rounds(units.size)):
        if late():
            break
        value = search.improve(CHUNK)
        done += CHUNK
        if value < best:
            best, last = value, done
    return search


def best_start(
    units: JointUnits, task: Task[LevelsOnSupport], seed: int, late: Callable[[], bool], seconds: float = math.inf
) -> Neighbourhoods:
    """A search at the best of the starts, each with a few subsets, until it is late; ``seconds`` is what there is."""
    search: Neighbourhoods | None = None
    best: tuple[float, Int] | None = None
    for start in starts(units, task, seconds):
        if search is None:
            search = Neighbourhoods(units, start, seed)
        else:
            search.place = places(units, start)
        value = search.improve(ROUNDS_EACH)
        if best is None or value < best[0]:
            best = value, search.place.copy()
        if late():
            break
    assert search is not None and best is not None
    search.value, search.place = best
    return search


def places(units: JointUnits, weights: Float) -> Int:
    """Positions of allowed weights among the values."""
    return np.asarray(np.argmin(np.abs(units.values - weights[:, None]), axis=1), dtype=np.int64)


def starts(units: JointUnits, task: Task[LevelsOnSupport], seconds: float = math.inf) -> Iterator[Float]:
    """Weights to start from; they may keep too many units. What takes longer than ``seconds`` is left out."""
    if task.warm_start is not None:
        yield task.warm_start * units.factor
    n = units.size
    yield task.allowed.nearest(task.target) * units.factor
    # Quantization first: everything kept, and then thinned.
    if n <= THINNED:
        yield nearest_plane(units, np.arange(n), units.target)
    for mask in masks(units, seconds):
        s = np.flatnonzero(mask)
        weights = np.zeros(n)
        if len(s):
            weights = nearest_plane(units, s, refit(units.gram, units.b, s))
        yield weights


def masks(units: JointUnits, seconds: float = math.inf) -> Iterator[Bool]:
    """Pruning first: supports of small error where the kept weights may be any numbers."""
    n = units.size
    if units.single and ELIMINATE_CUBIC * n**3 > seconds:
        structure = Structure(units.unit, units.group, units.capacity)
        yield structure.keep_largest(units.target**2 * np.diag(units.gram))
    elif units.single:
        chosen = np.zeros(n, dtype=np.bool_)
        try:
            subset.eliminate(
                units.gram, units.b, units.group, units.capacity, np.empty((n, n)), np.empty(n), chosen,
                np.zeros(len(units.capacity), dtype=np.int64),
            )  # fmt: skip
        except ZeroDivisionError:
            return
        yield chosen
        if n <= EXCHANGES:
            state = np.array([88172645463325252], dtype=np.uint64)
            yield improved(
                units.gram, units.b, units.energy, units.group, units.capacity, chosen, KICKS,
                nearest_inputs(units.gram), state,
            )  # fmt: skip


def nearest_plane(units: JointUnits, inputs: Int, target: Float) -> Float:
    """Weights of all inputs, zero outside some, those rounded to values one after the other with error feedback.

    Parameters
    ----------
    units : JointUnits
    inputs : ndarray of int64
        Not empty.
    target : ndarray of shape (len(inputs),)
        What they tend to.
    """
    block = np.ascontiguousarray(units.gram[np.ix_(inputs, inputs)])
    order = rounding_order(block, True)
    _, shifts = factors_in_order(block, order, DAMP)
    rows = inputs[order]
    choice = np.zeros(len(rows), dtype=np.int64)
    table = np.ascontiguousarray(units.values[rows])
    successive_rounding(shifts, target[order], table, units.count[rows], choice)
    weights = np.zeros(units.size)
    weights[rows] = table[np.arange(len(rows)), choice]
    return weights


def rounds_of(n: int) -> int:
    """Subsets of the first search at most: within 0.1 s up to 48 inputs, 0.3 s up to 64, about a second beyond."""
    return 1000 if n <= 48 else 3000 if n <= 64 else 10000


def least_rounds(n: int) -> int:
    """Subsets after the last success."""
    return (20 if n <= 64 else 10) * n
