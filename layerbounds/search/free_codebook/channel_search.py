"""One channel with a free codebook: weights, every division where they are few, and a dual point."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.free_codebook.relaxation import SET_UP_CUBIC, refine
from layerbounds.certify.interval import dual_bound
from layerbounds.problems.free_codebook import FreeLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import (
    OPTIMAL_ABSOLUTE,
    OPTIMAL_RELATIVE,
    Control,
    DualPoint,
    RawSolve,
    SearchProof,
    Status,
    TracePoint,
)
from layerbounds.search.free_codebook.divisions import MOST, MOST_EXACT, MOST_INPUTS, Divisions, number_of_divisions
from layerbounds.search.free_codebook.incumbents import Incumbents
from layerbounds.search.free_codebook.preparation import Preparation, prepare_group

#: Refits of the diagonal, and the share of the time that the dual point may take.
ROUNDS, DUAL_SHARE = 12, 0.6
#: Kicks without a gain after which the search ends.
STALLED = 300


def codebook_dual(task: Task[FreeLevels], start: Preparation, control: Control) -> DualPoint | None:
    """The best dual point that the time allows; None where no minorant is proven."""
    if not np.any(start.d > 0):
        return None
    first = DualPoint(task.target.copy(), start.d)
    end = (1.0 - DUAL_SHARE) * control.remaining()

    def late(seconds: float) -> bool:
        return control.remaining() - seconds <= end

    if late(SET_UP_CUBIC * len(task.gram) ** 3):
        return first
    # It begins with the first one.
    found = refine(task.gram, task.target, task.allowed.count, start.d, ROUNDS, late)
    better = DualPoint(found.z, found.d)
    return better if better.is_valid(len(task.gram)) and np.isfinite(found.value) else first


@dataclass(eq=False)
class ChannelSearch:
    """The interval of one channel while it closes; ``lower`` and ``upper`` are without the constant."""

    task: Task[FreeLevels]
    control: Control
    incumbents: Incumbents
    lower: float = 0.0
    nodes: int = 0
    trace: list[TracePoint] = field(default_factory=list)

    @property
    def closed(self) -> Status | None:
        """``optimal`` or ``gap_reached``, where it is."""
        constant = self.task.constant
        upper = self.incumbents.error + constant
        width = self.incumbents.error - self.lower
        if width <= max(OPTIMAL_RELATIVE * upper, OPTIMAL_ABSOLUTE * self.task.energy):
            return Status.OPTIMAL
        return Status.GAP_REACHED if self.control.gap > 0 and width <= self.control.gap * upper else None

    @property
    def limit(self) -> Status | None:
        """The limit that was reached, if any."""
        if self.control.cancel.is_set():
            return Status.INTERRUPTED
        if self.control.remaining() <= 0:
            return Status.TIME_LIMIT
        limit = self.control.node_limit
        return Status.NODE_LIMIT if limit is not None and self.nodes >= limit else None

    def record(self) -> None:
        """Add a point to the trace."""
        constant = self.task.constant
        upper = self.incumbents.error + constant
        lower = min(self.lower + constant, upper)
        self.trace.append(TracePoint(self.control.elapsed(), self.nodes, lower, upper))

    def result(self, status: Status, dual: DualPoint | None = None, proof: SearchProof | None = None) -> RawSolve:
        """What is handed over."""
        self.record()
        return RawSolve(self.incumbents.weights, status, proof, dual, nodes=self.nodes, trace=tuple(self.trace))


def search_codebook(task: Task[FreeLevels], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    count, n = task.allowed.count, len(task.target)
    if len(np.unique(task.target)) <= count:
        return RawSolve(task.target.copy(), Status.OPTIMAL)
    start = task.shared if isinstance(task.shared, Preparation) else prepare_group(task.gram)
    seed = [control.seed, task.channel]
    incumbents = Incumbents(task.gram, task.target, count, seed, lambda: control.remaining() <= 0)
    search = ChannelSearch(task, control, incumbents)
    incumbents.begin(start, task.warm_start)
    search.record()
    few = number_of_divisions(n, count) if count < n <= MOST_INPUTS else 0
    if 0 < few <= MOST and (control.node_limit is None or few <= control.node_limit):
        proof = _every_division(search, few, start.d)
        if proof is not None:
            return search.result(search.closed or Status.UNRESOLVED, proof=proof)
    dual = codebook_dual(task, start, control)
    if dual is not None and control.remaining() > 0:
        search.lower = dual_bound(task, dual)
        search.record()
    stalled = 0
    while search.closed is None and search.limit is None and stalled < STALLED:
        search.nodes += 1
        stalled += 1
        if incumbents.kick():
            stalled = 0
            search.record()
    return search.result(search.closed or search.limit or Status.UNRESOLVED, dual)


def _every_division(search: ChannelSearch, few: int, d: Float) -> SearchProof | None:
    """Try them all; None where the time is out before."""
    divisions = Divisions(search.task, search.control)
    done = bool(np.all(d > 0)) and divisions.bound(d)
    if done:
        _take(search, divisions)
    if search.closed is None and few <= MOST_EXACT:
        again = Divisions(search.task, search.control)
        if again.exactly():
            done = True
            _take(search, again)
    return SearchProof(search.lower, 0.0) if done else None


def _take(search: ChannelSearch, divisions: Divisions) -> None:
    """The weights and the bound of all divisions."""
    if divisions.weights is not None:
        search.incumbents.offer(divisions.weights)
    search.lower = max(search.lower, divisions.lower)
    search.nodes += divisions.tried
