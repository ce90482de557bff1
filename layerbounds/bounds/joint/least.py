"""Certified minima over levels on a support (docs/joint-bounds.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.joint.block_dual import block_bound
from layerbounds.bounds.joint.dual import diagonal_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.proofs import BlockDual, DualPoint


def diagonal(gram: Float, target: Float, allowed: LevelsOnSupport, dual: DualPoint) -> float:
    """From a diagonal."""
    if dual.split is not None:
        raise CertificationError("the backend returned a dual point with integer forms, which zero may not fit.")
    z, d = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64)
    return diagonal_bound(gram, target, allowed.values, allowed.structure, z, d)


def blocks(gram: Float, target: Float, allowed: LevelsOnSupport, dual: BlockDual) -> float:
    """From a block-diagonal matrix."""
    if dual.split is not None:
        raise CertificationError("the backend returned a dual point with integer forms, which zero may not fit.")
    z, matrix = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.matrix, dtype=np.float64)
    return block_bound(gram, target, allowed.values, allowed.structure, z, np.asarray(dual.block), matrix)


LEAST = {(LevelsOnSupport, DualPoint): diagonal, (LevelsOnSupport, BlockDual): blocks}
