"""Refit pruning of layers that are too large for a tree: relaxations, sets and exchanges, one at a time.

Every step is a few factorizations. None begins that would not end in time, as far as its last one or a factorization
of the same matrix can tell, and what has been found by then counts; see docs/pruning-bounds.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.centre import Centre
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.kernels.pruning import subset
from layerbounds.problems.patterns import Structure
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import OPTIMAL_RELATIVE, BlockDual, Control, RawSolve, Status, TracePoint
from layerbounds.search.pruning.refit import refit

#: Exponent of the savings in a round of the relaxation, its least share of a unit, and rounds before the first
#: improvement of the minorant and between two.
POWER, LEAST, FIRST_ROUNDS, ROUNDS = 0.75, 1e-3, 6, 2
#: Barrier weight of the improvements: first, factor, last; the least weight of a block, relative to the mean; and the
#: first share of the way.
MU_FIRST, MU_FACTOR, MU_LAST, FLOOR, SHARE = 1.0, 0.8, 0.05, 0.05, 0.15
#: A backward elimination removes what is too much in so many parts; share of the dropped units that another one gets.
PARTS, REGROWN = 6, 0.2
#: Multiplications of the exchanges between two looks at the clock.
EXCHANGE_WORK = 2e7
#: Steps towards the centre from which all channels start.
CENTRE_MOVES = 5
#: Gain of the bound, relative to it, below which an improvement counts as none, and after how many of those it ends.
PROGRESS, STALLED = 1e-5, 12
#: Seconds that the first round may take in any case.
AT_ONCE = 0.2
#: Costs in factorizations of the whole matrix: a round, an improvement, an inverse with its product.
ROUND, MOVE, INVERSE = 1.5, 3.0, 5.0


@dataclass(frozen=True, eq=False)
class WidePreparation:
    """What the channels of a large layer share.

    Attributes
    ----------
    centre : Centre
    seconds : float
        Of one factorization.
    """

    centre: Centre
    seconds: float


class WideSearch:
    """Relaxations on one side and sets on the other, in turns.

    Parameters
    ----------
    task : Task
    control : Control
    start : WidePreparation
    """

    def __init__(self, task: Task[Support], control: Control, start: WidePreparation) -> None:
        self.task, self.control = task, control
        self.gram, self.structure = np.ascontiguousarray(task.gram), task.allowed.structure
        self.b = self.gram @ task.target
        self.energy = max(float(task.target @ self.b), 0.0)
        self.centre, self.seconds = start.centre.fork(), start.seconds
        self.centre.share = SHARE
        inside = self.centre.gather(task.target)
        #: What dropping each unit alone costs.
        self.cost = np.einsum("gi,gij,gj->g", inside, self.centre.alone, inside)
        self.z = _scaled(0.5 * np.log(np.maximum(self.cost, np.finfo(np.float64).tiny)), self.structure)
        self.mu = MU_FIRST
        self.lower = 0.0
        self.dual: BlockDual | None = None
        self.weight = np.ones(len(self.structure.group))
        self.saving = np.zeros(len(self.structure.group))
        self.upper, self.weights = self.energy, np.zeros(len(self.b))
        #: A set that has been improved since it was offered.
        self.waiting: Bool | None = None
        self.trace: list[TracePoint] = []

    def run(self) -> Status | None:
        """Work until the time is out or the gap is reached; None where nothing is left that could help."""
        sides: list[Iterator[float]] = [self.sets(), self.bounds()]
        spent, rate = [0.0, 0.0], [self.seconds, self.seconds]
        following = [next(side, None) for side in sides]
        while True:
            closed = self.upper - self.lower <= max(self.control.gap, 0.5 * OPTIMAL_RELATIVE) * self.upper
            if closed or self.upper == 0.0:
                return Status.GAP_REACHED if self.control.gap > 0 else Status.OPTIMAL
            costs = {i: cost * rate[i] for i, cost in enumerate(following) if cost is not None}
            if not costs:
                return None
            # What fits into the time that is left; the side that has had less of it goes first.
            fitting = [i for i, cost in costs.items() if cost <= self.control.remaining()]
            if self.control.remaining() <= 0 or not fitting:
                if self.waiting is not None:
                    self.offer(self.waiting)
                return Status.INTERRUPTED if self.control.cancel.is_set() else Status.TIME_LIMIT
            side = min(fitting, key=lambda i: spent[i])
            began = self.control.elapsed()
            cost, following[side] = following[side], next(sides[side], None)
            taken = self.control.elapsed() - began
            spent[side] += taken
            if cost:
                # The machine may be busier, or faster, than it was during the preparation.
                rate[side] = 0.5 * (rate[side] + taken / cost)

    # Bounds

    def bounds(self) -> Iterator[float]:
        """Steps of the lower bound; yields what the next one costs, in factorizations."""
        stalled = 0
        for step in range(10**9):
            before = self.lower
            for number in range(ROUNDS if step else FIRST_ROUNDS):
                # Without a first round there is no bound at all.
                at_once = step == number == 0 and ROUND * self.seconds <= AT_ONCE
                yield 0.0 if at_once else ROUND
                if not self.relax():
                    return
                if step == 0 and number == 2:
                    self.offer(self.structure.keep_largest(self.saving))
            if step % 8 == 1:
                self.offer(self.structure.keep_largest(self.saving))
            stalled = stalled + 1 if self.lower <= before * (1.0 + PROGRESS) else 0
            yield MOVE
            moved = stalled <= STALLED and self.centre.move(np.maximum(self.weight, FLOOR) / self.mu)
            if stalled > STALLED or not (moved or self.centre.retreat()):
                return
            self.mu = max(MU_FACTOR * self.mu, MU_LAST)

    def relax(self) -> bool:
        """One round: u = (H + B(1/z − 1))⁻¹ b, its bound, and z ← min(1, θ z s^¾); False where that is singular.

        Certification derives the bound again, from the best point and its blocks.
        """
        spread = 1.0 / self.z - 1.0
        factor = cholesky(self.centre.spread(spread))
        if factor is None:
            return False
        u = scipy.linalg.cho_solve((factor, True), self.b, check_finite=False)
        product = self.gram @ u
        inside = self.centre.gather(u)
        pull = (self.centre.blocks @ inside[:, :, None])[:, :, 0]
        c = self.centre.gather(self.b - product) + pull
        t = np.linalg.solve(self.centre.blocks, c[:, :, None])[:, :, 0]
        penalty = np.sum(inside * pull, axis=1)
        self.saving = np.sum(c * t, axis=1)
        kept = _largest_total(self.structure, self.saving)
        value = self.energy - float(u @ product) + float(penalty.sum()) - kept
        if value > self.lower:
            self.lower = value
            blocks = self.structure.unit if self.centre.rows.shape[1] > 1 else np.arange(len(u))
            self.dual = BlockDual(u, blocks, self.centre.matrix())
            self.record()
        weight = spread * penalty
        self.weight = weight / max(float(weight.mean()), np.finfo(np.float64).tiny)
        grown = np.log(self.z) + POWER * np.log(np.maximum(self.saving, np.finfo(np.float64).tiny))
        self.z = _scaled(grown, self.structure)
        return True

    # Sets

    def sets(self) -> Iterator[float]:
        """Steps of the upper bound; yields what the next one costs, in factorizations."""
        yield 0.0
        for score in self.scores():
            self.offer(self.structure.keep_largest(score))
            yield 1.0
        yield from self.eliminate(np.ones(len(self.structure.group), dtype=bool))
        if self.centre.rows.shape[1] == 1:
            yield from self.exchange()
        random = np.random.default_rng([self.control.seed, self.task.channel])
        for _ in range(10**9):
            kept = self.structure.kept_units(self.weights[None])[0]
            yield from self.eliminate(kept | (random.random(len(kept)) < REGROWN))

    def scores(self) -> Iterator[Float]:
        """Energies of the units, and what dropping each alone costs."""
        energy = self.task.target**2 * np.diag(self.gram)
        yield np.bincount(self.structure.unit, weights=energy, minlength=len(self.structure.group)).astype(np.float64)
        yield self.cost

    def offer(self, kept: Bool) -> None:
        """Refit a set of inputs and keep it where it is the best one so far."""
        weights = np.zeros(len(self.b))
        s = np.flatnonzero(kept)
        if len(s) == len(self.b):
            weights = self.task.target.copy()
        elif len(s):
            weights[s] = refit(self.gram, self.b, s)
        self.keep(weights)

    def keep(self, weights: Float) -> None:
        """Keep allowed weights where they are the best ones so far."""
        deviation = weights - self.task.target
        value = max(float(deviation @ (self.gram @ deviation)), 0.0)
        if value < self.upper:
            self.upper, self.weights = value, weights
            self.record()

    def eliminate(self, kept: Bool) -> Iterator[float]:
        """Backward elimination in a few parts: the units whose removal from what is left costs least."""
        group, capacity = self.structure.group, self.structure.capacity
        for left in range(PARTS, 0, -1):
            index = np.flatnonzero(kept[self.structure.unit])
            yield INVERSE * (len(index) / len(self.b)) ** 3
            factor = cholesky(np.ascontiguousarray(self.gram[np.ix_(index, index)]))
            if factor is None:
                return
            v = np.zeros(len(self.b))
            v[index] = scipy.linalg.cho_solve((factor, True), self.b[index], check_finite=False)
            position = np.zeros(len(self.b), dtype=np.int64)
            position[index] = np.arange(len(index))
            inverse = symmetric_inverse(factor)
            units = np.flatnonzero(kept)
            rows = self.centre.rows[units]
            at = position[np.maximum(rows, 0)]
            inside = rows >= 0
            pair = inside[:, :, None] & inside[:, None, :]
            part = np.where(pair, inverse[at[:, :, None], at[:, None, :]], np.eye(rows.shape[1]))
            loss = np.full(len(kept), np.inf)
            own = self.centre.gather(v)[units]
            loss[units] = np.sum(own * np.linalg.solve(part, own[:, :, None])[:, :, 0], axis=1)
            order = np.lexsort((loss, group))
            rank = np.empty(len(kept), dtype=np.int64)
            rank[order] = np.arange(len(kept)) - np.searchsorted(group[order], group[order])
            excess = np.maximum(np.bincount(group[kept], minlength=len(capacity)) - capacity, 0)
            kept &= rank >= -(-excess // left)[group]
        self.offer(kept[self.structure.unit])

    def exchange(self) -> Iterator[float]:
        """Best exchanges of single inputs, then kicks that are undone where they do not help; without an end."""
        n = len(self.b)
        group, capacity = self.structure.group[self.structure.unit], self.structure.capacity
        kept = self.weights != 0.0
        state = np.array(
            [np.random.SeedSequence([self.control.seed, self.task.channel]).generate_state(1, np.uint64)[0] | 1]
        )
        near = np.zeros((n, 1), dtype=np.int64)
        floor = 1e-12 * self.energy
        most = max(int(EXCHANGE_WORK / n**2), 1)
        yield INVERSE
        tableau = _tableau(self.gram, self.b, kept)
        if tableau is None:
            return
        a, r = tableau
        slack = capacity - np.bincount(group[kept], minlength=len(capacity))
        saved: tuple[Float, Float, Bool, Int] | None = None
        value = 0.0
        while True:
            change = -math.inf
            while change < -floor:
                yield ROUND
                change = float(subset.descend(self.gram, a, r, kept, slack, group, floor, most))
                value += change
                if saved is None:
                    self.waiting = kept
            # The value counts from the tableau that is kept.
            if saved is None or value < -floor:
                self.offer(kept)
                self.waiting = None
                saved = a.copy(), r.copy(), kept.copy(), slack.copy()
            else:
                a, r, kept, slack = saved[0].copy(), saved[1].copy(), saved[2].copy(), saved[3].copy()
            yield ROUND
            many = 2 + int(subset.random_below(state, 3))
            value = float(subset.kick(self.gram, a, r, kept, slack, group, many, near, True, state))

    def record(self) -> None:
        """Add a point to the trace."""
        constant = self.task.constant
        lower = min(max(self.lower, 0.0), self.upper)
        self.trace.append(TracePoint(self.control.elapsed(), 0, lower + constant, self.upper + constant))


def _largest_total(structure: Structure, saving: Float) -> float:
    """Sum of the units of largest saving that each group may keep."""
    order = np.lexsort((-saving, structure.group))
    place = np.arange(len(order)) - np.searchsorted(structure.group[order], structure.group[order])
    return float(saving[order[place < structure.capacity[structure.group[order]]]].sum())


def _scaled(logarithm: Float, structure: Structure) -> Float:
    """Shares of the units: min(1, θ x) with the sum of a group's capacity, by bisection on log θ of each group."""
    groups = len(structure.capacity)
    low, high = np.full(groups, -800.0), np.full(groups, 800.0)
    for _ in range(50):
        middle = 0.5 * (low + high)
        shares = np.exp(np.minimum(logarithm + middle[structure.group], 0.0))
        over = np.bincount(structure.group, weights=shares, minlength=groups) > structure.capacity
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return np.asarray(np.clip(np.exp(np.minimum(logarithm + low[structure.group], 0.0)), LEAST, 1.0))


def _tableau(gram: Float, b: Float, kept: Bool) -> tuple[Float, Float] | None:
    """The sweep tableau of a set and its vector (see `kernels.pruning.subset`); None where the set is dependent."""
    s, other = np.flatnonzero(kept), np.flatnonzero(~kept)
    factor = cholesky(np.ascontiguousarray(gram[np.ix_(s, s)]))
    if factor is None:
        return None
    a, r = np.empty_like(gram), np.empty_like(b)
    across = gram[np.ix_(s, other)]
    half = scipy.linalg.cho_solve((factor, True), across, check_finite=False)
    a[np.ix_(s, s)] = -symmetric_inverse(factor)
    a[np.ix_(s, other)], a[np.ix_(other, s)] = half, half.T
    a[np.ix_(other, other)] = gram[np.ix_(other, other)] - across.T @ half
    r[s] = scipy.linalg.cho_solve((factor, True), b[s], check_finite=False)
    r[other] = b[other] - across.T @ r[s]
    return a, r


def prepare_wide(gram: Float, unit: Int) -> WidePreparation | None:
    """What searches of a large Gram matrix start from; None where it is numerically singular.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    unit : ndarray of int64, shape (n,)
        The unit of each input.
    """
    centre = Centre(gram, unit)
    for _ in range(CENTRE_MOVES):
        checkpoint()
        if not centre.usable or not centre.move():
            break
    if not centre.usable:
        return None
    seconds = math.inf
    for _ in range(2):
        # What the processor needs: what other work adds is seen by the steps of each channel.
        began = time.thread_time()
        cholesky(gram)
        seconds = min(seconds, time.thread_time() - began)
    return WidePreparation(centre, seconds)


def search_wide(task: Task[Support], control: Control, start: WidePreparation) -> RawSolve:
    """Solve one channel of at least one live input.

    Parameters
    ----------
    task : Task
    control : Control
    start : WidePreparation
    """
    search = WideSearch(task, control, start)
    if task.warm_start is not None:
        search.keep(task.warm_start)
    status = search.run()
    return RawSolve(
        weights=search.weights,
        termination=Status.UNRESOLVED if status is None else status,
        dual=search.dual,
        trace=tuple(search.trace),
    )
