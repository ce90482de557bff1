"""Certified minima over sparsity structures (docs/pruning-bounds.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.pruning.dual import pruning_bound
from layerbounds.problems.support import Support
from layerbounds.proofs import BlockDual


def blocks(gram: Float, target: Float, allowed: Support, dual: BlockDual) -> float:
    """From a block-diagonal matrix; a diagonal one is a matrix with blocks of single inputs."""
    original = None if allowed.refit else allowed.original
    z, matrix = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.matrix, dtype=np.float64)
    return pruning_bound(gram, target, original, allowed.structure, z, np.asarray(dual.block), matrix)


LEAST = {(Support, BlockDual): blocks}
