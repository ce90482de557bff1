"""Pruning of whole blocks of one channel with refit: the search over units that several rows share, with one row."""

from __future__ import annotations

from dataclasses import replace

from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, RawSolve, SharedDual
from layerbounds.search.shared.set_search import search_shared


def search_blocks(task: Task[Support], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    allowed = SharedSupport(task.allowed.structure, task.targets, True, task.allowed.idle)
    shared: Task[SharedSupport] = Task(
        task.rows, task.gram, task.targets, task.constants, task.energy, task.live, allowed,
        warm_start=task.warm_start, raised=task.raised,
    )  # fmt: skip
    raw = search_shared(shared, control)
    if not isinstance(raw.dual, SharedDual):
        return raw
    return replace(raw, dual=BlockDual(raw.dual.points[0], raw.dual.block, raw.dual.matrices[0]))
