"""Dual points of the root: what certification can derive for a channel that a foreign solver worked on."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from layerbounds.arrays import Float
from layerbounds.backends.base import BlockDual, ChannelTask, Control, DualPoint, Task
from layerbounds.bounds.diagonal import cholesky, maximize_minorant
from layerbounds.bounds.relaxation import refine
from layerbounds.search.preparation import regularizations
from layerbounds.search.pruning_dispatch import search_pruning

#: Refits of the diagonal.
REFITS = 5


def root_dual(task: Task, weights: Float | None, seconds: float) -> DualPoint | BlockDual | None:
    """A dual point of the relaxation at the root, without any search (docs/bounds.md, docs/pruning-bounds.md).

    Parameters
    ----------
    task : ChannelTask or PruningTask
    weights : ndarray of shape (n,) or None
        Feasible weights, which spare the relaxation of a pruning problem a local search.
    seconds : float
        Time for improving the dual point; the first one is always finished.
    """
    control = Control(seconds, 0.0, 0, 0, 1, threading.Event())
    if len(task.target) == 0:
        return None
    if isinstance(task, ChannelTask):
        return _quantization_dual(task, control)
    found = search_pruning(replace(task, warm_start=weights), control)
    assert found.dual is None or isinstance(found.dual, BlockDual)
    return found.dual


def _quantization_dual(task: ChannelTask, control: Control) -> DualPoint | None:
    scale = task.scale
    gram = task.gram * np.outer(scale, scale)
    unit = float(np.mean(np.diag(gram)))
    gram = np.ascontiguousarray(gram / unit)
    levels = np.ascontiguousarray((task.levels / scale[:, None]).T)
    origin = task.target / scale
    count = np.full(len(scale), levels.shape[0], dtype=np.int64)
    # Certification charges what a singular matrix is shifted by, and proves the diagonal anew.
    shifted = next((m for s in regularizations(gram) if cholesky(m := gram + np.diag(s)) is not None), None)
    if shifted is None:
        return None

    def stop() -> bool:
        return control.remaining() <= 0

    def half() -> bool:
        return control.remaining() <= 0.5 * control.time_limit

    start = np.clip(origin, levels[0], levels[-1])
    distance = np.abs(levels - start).min(axis=0) ** 2
    first = maximize_minorant(shifted, distance + 1 / 12, relative_gap=0.3, stop=half)
    found = refine(shifted, origin, levels, count, first, start, REFITS, stop)
    return DualPoint(found.z * scale, found.d * unit / scale**2)
