"""What searches need of a layer's Gram matrix, computed once for all its channels."""

from __future__ import annotations

import threading

import joblib
import numpy as np

from layerbounds.bounds.minorants.clusters import ClusterMinorant
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control
from layerbounds.search.pruning.clusters import ClusterSearch
from layerbounds.search.pruning.dispatch import WIDE, cluster_plan
from layerbounds.search.pruning.wide import CENTRE_MOVES, WidePreparation, prepare_wide
from layerbounds.search.quantization.effort import announce
from layerbounds.search.shared_results import Recent

#: Numbers of live inputs for which a minorant of clusters is prepared: smaller ones are quick, larger ones too slow.
SHARED = (160, 800)
_CACHE_SIZE = 8

#: Factorizations with inverse, products and updates that the preparation of a larger one takes, for its announcement.
WIDE_WORK = (CENTRE_MOVES + 3.0, 0.0, 0.0)

_cache: Recent[ClusterMinorant | WidePreparation | None] = Recent(_CACHE_SIZE)


def prepare_pruning(problem: PruningProblem, group: int) -> ClusterMinorant | WidePreparation | None:
    """A block-diagonal minorant from which the searches of a group's channels start.

    Up to `WIDE` inputs it is one of clusters, improved for the group's first channel: its clusters depend on the Gram
    matrix alone, and most of what its blocks gain is the same for all channels. None where the block dual is not used,
    or quickly found by each channel. Larger layers get the units of the pattern as blocks, with refit and without.

    Parameters
    ----------
    problem : PruningProblem
    group : int
    """
    layer = problem.layer
    live = layer.live(group)
    n = int(live.sum())
    if n <= WIDE and not (problem.refit and SHARED[0] < n <= SHARED[1]):
        return None
    energy = layer.energy()
    channels = [c for c in range(layer.out_features) if layer.group_of(c) == group and energy[c] > 0]
    if not channels:
        return None
    task: Task[Support] = make_task(problem, channels[0], None, None)
    if n > WIDE:
        return _cache.get(joblib.hash((task.gram, task.allowed.structure.unit)), lambda: _announced(task))
    plan = cluster_plan(task.allowed.structure)
    if plan is None:
        return None
    key = joblib.hash((task.gram, task.target, task.allowed.structure.group, task.allowed.structure.capacity))
    # Small factorizations with several BLAS threads are many times slower than with one.
    return _cache.get(key, lambda: _improved(task, plan))


def _announced(task: Task[Support]) -> WidePreparation | None:
    announce(len(task.gram), 1, WIDE_WORK)
    return prepare_wide(task.gram, task.allowed.structure.unit)


def _improved(task: Task[Support], plan: tuple[int, int]) -> ClusterMinorant | None:
    search = ClusterSearch(task, Control(1e9, 0.0, None, 0, 1, threading.Event()), *plan)
    # Merged clusters are those of one channel.
    search.merged = 0
    try:
        search.first_incumbents(kicks=False)
        root = search.cluster_root()
    except np.linalg.LinAlgError:
        return None
    return None if root is None or len(root.minorant.member) < len(task.target) else root.minorant
