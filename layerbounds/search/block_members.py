"""Blocks of correlated inputs of a layer, chosen once for all its channels (docs/block-relaxation.md)."""

from __future__ import annotations

import threading
import weakref

import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.arrays import Int
from layerbounds.bounds.block_relaxation import SIZE
from layerbounds.bounds.clusters import make_clusters
from layerbounds.search.preparation import Preparation

_prepared: weakref.WeakKeyDictionary[Preparation, list[Int] | None] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def block_members(prep: Preparation) -> list[Int] | None:
    """Inputs of each block; None where the Gram matrix cannot be inverted.

    Partial correlations do not depend on the scales of the inputs, so that one choice serves every grid.
    """
    with _lock:
        if prep not in _prepared:
            with threadpool_limits(limits=1):
                n = prep.size
                _prepared[prep] = make_clusters(prep.gram, SIZE, np.zeros(n, dtype=np.int64), np.arange(n))
        return _prepared[prep]
