"""Certified minima over sparsity structures (docs/pruning-bounds.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.pruning.dual import diagonal_bound, pruning_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.support import Support
from layerbounds.proofs import BlockDual, DualPoint


def blocks(gram: Float, target: Float, allowed: Support, dual: BlockDual) -> float:
    """From a block-diagonal matrix; a diagonal one is a matrix with blocks of single inputs."""
    if dual.split is not None:
        raise CertificationError("the backend returned a dual point with integer forms for weights without codes.")
    original = None if allowed.refit else allowed.original
    z, matrix = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.matrix, dtype=np.float64)
    return pruning_bound(gram, target, original, allowed.structure, z, np.asarray(dual.block), matrix)


def diagonal(gram: Float, target: Float, allowed: Support, dual: DualPoint) -> float:
    """From a diagonal, as batched solvers return it."""
    if dual.split is not None:
        raise CertificationError("the backend returned a dual point with integer forms for weights without codes.")
    original = None if allowed.refit else allowed.original
    z, d = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64)
    return diagonal_bound(gram, target, original, allowed.structure, z, d)


LEAST = {(Support, BlockDual): blocks, (Support, DualPoint): diagonal}
