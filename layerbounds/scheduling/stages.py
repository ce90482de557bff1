"""The stages of a solve: the backend asked for, and where that was left open, the search after the bounds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from layerbounds.cancellation import interruptible
from layerbounds.kernels.compilation import working_time
from layerbounds.problems.tasks import GroupTasks
from layerbounds.scheduling.budget import Budget
from layerbounds.scheduling.choice import AUTO, BATCHED, choose
from layerbounds.scheduling.narrowing import Narrowing
from layerbounds.scheduling.request import Request, check_backend, settings
from layerbounds.scheduling.side_by_side import run
from layerbounds.scheduling.work import Finished, Work, limit_of, takes_groups
from layerbounds.solvers.base import Backend, Capability
from layerbounds.solvers.batched.effort import announce, rows_at_once
from layerbounds.solvers.registry import get_backend, is_own

#: Layers of so many inputs are prepared in a thread, so that Ctrl-C is heard during a call of LAPACK.
LONG_PREPARATION = 500


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out.

    Attributes
    ----------
    finished : dict of int to Finished
        Of each set.
    preparation : float
        Seconds of the work that sets share.
    interrupted : bool
    own : bool
        Whether all lower ends of the traces are the package's own.
    """

    finished: dict[int, Finished]
    preparation: float
    interrupted: bool
    own: bool


def carry_out(request: Request, backend: str) -> Outcome:
    """Solve all sets of a request.

    Parameters
    ----------
    request : Request
    backend : str
        A name, or ``auto``.
    """
    name = choose(backend, request.problem, request.sets, request.node_limit)
    solver = get_backend(name)
    check_backend(solver, request.problem)
    options = settings(solver, request, named=backend != AUTO)
    then_search = backend == AUTO and name == BATCHED
    members: dict[int, list[int]] = {}
    for index in range(len(request.sets)):
        members.setdefault(request.group(index), []).append(index)
    members = dict(sorted(members.items()))
    at_once = _at_once(solver, request, members, options)

    begin = time.perf_counter()

    def prepare() -> dict[int, object]:
        return {g: solver.prepare(request.problem, g, request.threads) for g in members}

    long = request.problem.layer.in_features >= LONG_PREPARATION
    shared = interruptible(prepare) if long else prepare()
    preparation = time.perf_counter() - begin

    tasks = {
        g: GroupTasks(request.problem, [request.sets[i] for i in m], shared[g], [request.starts[i] for i in m])
        for g, m in members.items()
    }
    pieces = len(members) if takes_groups(solver) else len(request.sets)
    workers = min(request.threads, pieces) if solver.concurrent else 1
    total = math.inf if request.total_time is None else request.total_time
    limit = math.inf if then_search else limit_of(solver, request)
    started = working_time()
    budget = Budget(total, pieces, workers)
    work = Work(request, solver, is_own(name), members, tasks, options, budget, limit, at_once)
    finished: dict[int, Finished] = {}

    def keep(piece: Finished) -> None:
        finished[piece.index] = piece
        if request.progress is not None:
            request.progress(len(finished), len(request.sets), request.sets[piece.index][0], piece.certified)

    interrupted = run(work.units(), workers, request.cancel, keep)
    if then_search:
        narrowing = Narrowing(request, finished, total - (working_time() - started))
        narrowing.run()
        finished, interrupted = narrowing.finished, interrupted or narrowing.interrupted
        preparation += narrowing.preparation
    return Outcome(finished, preparation, interrupted or request.cancel.is_set(), work.own)


def _at_once(
    solver: Backend, request: Request, members: dict[int, list[int]], options: dict[str, object]
) -> dict[int, int]:
    """Sets of each group that a backend gets at a time; says what they take."""
    if Capability.BATCHED not in solver.capabilities:
        return {}
    layer = request.problem.layer
    side_by_side = min(request.threads, len(members))
    limit = None if request.memory_limit is None else request.memory_limit // side_by_side
    result = {}
    for group, indices in members.items():
        inputs = int(np.count_nonzero(layer.live(group)))
        result[group] = rows_at_once(layer.name, inputs, len(indices), limit)
        announce(inputs, len(indices), result[group], request.threads, str(options.get("device", "cpu")))
    return result
