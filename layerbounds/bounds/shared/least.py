"""Certified minima over masks that several rows share (docs/shared-bounds.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.pruning.dual import shared_bound
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.proofs import SharedDual


def blocks(gram: Float, target: Float, allowed: SharedSupport, dual: SharedDual) -> float:
    """From a point for each row and a block-diagonal matrix for each class of rows."""
    return shared_bound(
        gram,
        np.atleast_2d(target),
        None if allowed.refit else allowed.original,
        allowed.structure,
        np.atleast_2d(np.asarray(dual.points, dtype=np.float64)),
        np.asarray(dual.block, dtype=np.int64),
        np.asarray(dual.matrices, dtype=np.float64),
        np.asarray(dual.row_class, dtype=np.int64),
    )


LEAST = {(SharedSupport, SharedDual): blocks}
