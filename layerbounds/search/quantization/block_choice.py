"""Blocks of correlated inputs of a layer, chosen once for all its channels (docs/block-relaxation.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Int
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.quantization.block_relaxation import SIZE
from layerbounds.search.quantization.preparation import Preparation
from layerbounds.search.shared_results import once


@once
def block_members(prep: Preparation) -> list[Int] | None:
    """Inputs of each block; None where the Gram matrix cannot be inverted.

    Partial correlations do not depend on the scales of the inputs, so that one choice serves every grid.
    """
    n = prep.size
    return make_clusters(prep.gram, SIZE, np.zeros(n, dtype=np.int64), np.arange(n))
