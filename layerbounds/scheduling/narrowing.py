"""The search after the bounds of all channels: it gets the time that the user gives, and begins where they ended."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

from layerbounds.arrays import Float
from layerbounds.cancellation import interruptible
from layerbounds.certify.interval import intersection
from layerbounds.exceptions import LayerboundsError
from layerbounds.problems.tasks import GroupTasks
from layerbounds.proofs import Status, TracePoint
from layerbounds.scheduling.budget import Budget
from layerbounds.scheduling.choice import NATIVE
from layerbounds.scheduling.request import USUAL_LIMIT, Request
from layerbounds.scheduling.side_by_side import run
from layerbounds.scheduling.work import Finished, Work
from layerbounds.solvers.registry import get_backend


class Narrowing:
    """Gives open sets of rows to the package's own search, those with the widest intervals first.

    It is the sum over the channels that people read, so that an interval counts by its absolute width.

    Parameters
    ----------
    request : Request
    finished : mapping of int to Finished
        The certified sets; none gets wider.
    left : float
        Seconds for all of them.

    Attributes
    ----------
    finished : dict of int to Finished
    preparation : float
        Seconds that the search took to prepare.
    interrupted : bool
        Whether there was a Ctrl-C.
    """

    def __init__(self, request: Request, finished: Mapping[int, Finished], left: float) -> None:
        self.request, self.finished, self.left = request, dict(finished), left
        self.preparation, self.interrupted = 0.0, False
        self._before = finished
        self._order: list[int] = []
        self._energy = request.problem.energy()
        self._searched: set[int] = set()

    def order(self) -> list[int]:
        """The open sets, the widest interval first."""
        closed = (Status.OPTIMAL, Status.GAP_REACHED)
        is_open = [i for i, f in self.finished.items() if f.certified.status not in closed]
        return sorted(is_open, key=lambda i: (self._lower(i) - self._upper(i), i))

    def _lower(self, index: int) -> float:
        return self.finished[index].certified.lower

    def _upper(self, index: int) -> float:
        return self.finished[index].certified.upper

    def run(self) -> None:
        """Search until the time is spent, every set has had its own, or the user interrupts."""
        request, order = self.request, self.order()
        limit = math.inf if request.time_limit is None else request.time_limit
        asked = request.time_limit is not None or request.total_time is not None
        if not asked or not order or min(limit, self.left) <= 0 or request.cancel.is_set():
            return
        solver = get_backend(NATIVE)
        members: dict[int, list[int]] = {}
        for index in order:
            members.setdefault(request.group(index), []).append(index)
        request.report("the search is prepared")
        begin = time.perf_counter()
        try:
            shared = interruptible(lambda: {g: solver.prepare(request.problem, g, request.threads) for g in members})
        except KeyboardInterrupt:
            self.interrupted = True
            return
        except (LayerboundsError, MemoryError) as error:
            text = " ".join(str(error).split()) or "there is not enough memory"
            self._note(order, f"the search could not be prepared: {text}")
            return
        finally:
            self.preparation = time.perf_counter() - begin
        tasks = {
            g: GroupTasks(
                request.problem,
                [request.sets[i] for i in indices],
                shared[g],
                [self._weights(i) for i in indices],
                [self.finished[i].dual for i in indices],
            )
            for g, indices in members.items()
        }
        workers = min(request.threads, len(order))
        # Without a limit for each, few seconds for many channels would narrow none of them.
        budget = Budget(self.left, len(order), workers, USUAL_LIMIT)
        work = _Search(request, solver, True, members, tasks, {}, budget, limit, {})
        self._order = order
        self.interrupted = run(work.units(order), workers, request.cancel, self._keep)

    def _weights(self, index: int) -> Float:
        rows = self.request.sets[index]
        weights = self.request.problem.complete_set(rows, self.finished[index].certified.weights)
        return weights[0] if len(rows) == 1 else weights

    def _keep(self, new: Finished) -> None:
        """Intersect the two intervals of a set."""
        request, old = self.request, self._before[new.index]
        a, b = old.certified, new.certified
        energy = float(self._energy[request.sets[new.index]].sum())
        trace = (
            TracePoint(old.seconds, old.nodes, a.lower, a.upper),
            *(
                TracePoint(p.seconds + old.seconds, p.nodes + old.nodes, max(p.lower, a.lower), min(p.upper, a.upper))
                for p in b.trace
            ),
        )
        self.finished[new.index] = Finished(
            new.index,
            replace(intersection(a, b, request.gaps[new.index], energy), trace=trace),
            old.seconds + new.seconds,
            old.nodes + new.nodes,
            None,
            new.lower_backend if b.lower > a.lower else old.lower_backend,
            new.upper_backend if b.upper < a.upper else old.upper_backend,
        )
        self._searched.add(new.index)
        request.report(f"searched {len(self._searched)} of {len(self._order)}")

    def _note(self, indices: list[int], text: str) -> None:
        for index in indices:
            old = self.finished[index]
            certified = replace(old.certified, notes=(*old.certified.notes, text))
            self.finished[index] = replace(old, certified=certified)


class _Search(Work):
    """Sets that have an interval already: those for which no time is left need nothing."""

    def alone(self, index: int, group: int, place: int) -> list[Finished]:
        with self.budget.piece(self.limit) as seconds:
            if seconds <= 0.0 or self.request.cancel.is_set():
                return []
            return [self.solved(index, self.tasks[group][place], seconds)]
