"""Certified minima over levels on a support (docs/joint-bounds.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.joint.block_dual import block_bound
from layerbounds.bounds.joint.dual import diagonal_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.proofs import BlockDual, DualPoint


def refuse_forms(duals: Sequence[DualPoint | BlockDual]) -> None:
    """Integer forms of codes say nothing about weights that may be zero besides."""
    if any(dual.split is not None for dual in duals):
        raise CertificationError("the backend returned a dual point with integer forms, which zero may not fit.")


def diagonal(gram: Float, target: Float, allowed: LevelsOnSupport, dual: DualPoint) -> float:
    """From a diagonal."""
    refuse_forms([dual])
    z, d = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64)
    return diagonal_bound(gram, target, allowed.values, allowed.structure, z, d)


def blocks(gram: Float, target: Float, allowed: LevelsOnSupport, dual: BlockDual) -> float:
    """From a block-diagonal matrix."""
    refuse_forms([dual])
    z, matrix = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.matrix, dtype=np.float64)
    return block_bound(gram, target, allowed.values, allowed.structure, z, np.asarray(dual.block), matrix)


LEAST = {(LevelsOnSupport, DualPoint): diagonal, (LevelsOnSupport, BlockDual): blocks}
