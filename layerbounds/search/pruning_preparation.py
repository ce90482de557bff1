"""What the block dual needs of a layer's Gram matrix, computed once for all its channels."""

from __future__ import annotations

import threading
from collections import OrderedDict

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.backends.base import Control, PruningTask
from layerbounds.bounds.clusters import ClusterMinorant
from layerbounds.pruning_problem import PruningProblem
from layerbounds.search.clusters import ClusterSearch
from layerbounds.search.pruning_dispatch import cluster_plan

#: Numbers of live inputs for which a minorant is prepared: smaller ones are quick, larger ones take minutes.
SHARED = (160, 800)
_CACHE_SIZE = 8

_cache: OrderedDict[str, ClusterMinorant | None] = OrderedDict()
_cache_lock = threading.Lock()


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
    structure = problem.structure().restrict(live)
    plan = cluster_plan(structure)
    if plan is None:
        return None
    channel = channels[0]
    gram = np.ascontiguousarray(layer.gram[group][np.ix_(live, live)])
    target, original = layer.target[channel][live], layer.matrix[channel][live]
    task = PruningTask(channel, gram, target, 0.0, float(energy[channel]), live, original, structure, True, None, None)
    key = joblib.hash((gram, target, structure.group, structure.capacity))
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    search = ClusterSearch(task, Control(1e9, 0.0, None, 0, 1, threading.Event()), *plan)
    # Small factorizations with several BLAS threads are many times slower than with one.
    with threadpool_limits(limits=1):
        search.first_incumbents(kicks=False)
        root = search.cluster_root()
    minorant = None if root is None or len(root.minorant.member) < len(gram) else root.minorant
    with _cache_lock:
        _cache[key] = minorant
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return minorant
