"""What the block dual needs of a layer's Gram matrix, computed once for all its channels."""

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
from layerbounds.search.pruning.dispatch import cluster_plan
from layerbounds.search.shared_results import Recent

#: Numbers of live inputs for which a minorant is prepared: smaller ones are quick, larger ones take minutes.
SHARED = (160, 800)
_CACHE_SIZE = 8

_cache: Recent[ClusterMinorant | None] = Recent(_CACHE_SIZE)


def prepare_pruning(problem: PruningProblem, group: int) -> ClusterMinorant | None:
    """A block-diagonal minorant from which the searches of a group's channels start.

    It is improved for the group's first channel: its clusters depend on the Gram matrix alone, and most of what its
    blocks gain is the same for all channels. None where the block dual is not used, or quickly found by each channel.

    Parameters
    ----------
    problem : PruningProblem
    group : int
    """
    layer = problem.layer
    live = layer.live(group)
    if not problem.refit or not SHARED[0] < int(live.sum()) <= SHARED[1]:
        return None
    energy = layer.energy()
    channels = [c for c in range(layer.out_features) if layer.group_of(c) == group and energy[c] > 0]
    if not channels:
        return None
    task: Task[Support] = make_task(problem, channels[0], None, None)
    plan = cluster_plan(task.allowed.structure)
    if plan is None:
        return None
    key = joblib.hash((task.gram, task.target, task.allowed.structure.group, task.allowed.structure.capacity))
    # Small factorizations with several BLAS threads are many times slower than with one.
    return _cache.get(key, lambda: _improved(task, plan))


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
