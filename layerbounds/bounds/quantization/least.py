"""Certified minima over levels (docs/bounds.md, docs/block-relaxation.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.block_dual import block_dual_bound
from layerbounds.bounds.quantization.dual import Lattice, tangent_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.levels import Levels
from layerbounds.proofs import BlockDual, DualPoint


def diagonal(gram: Float, target: Float, allowed: Levels, dual: DualPoint) -> float:
    """From a diagonal, with integer forms where the codes are consecutive integers."""
    if dual.split is not None and not allowed.uniform:
        raise CertificationError("the backend returned an invalid dual point: its integer forms need integer codes.")
    # Forms of the codes are integers where the codes are: counted from the first, those of a uniform grid are.
    first = allowed.codes[0, 0]
    lattice = Lattice(allowed.codes - first, allowed.scale, allowed.zero_point - first)
    z, d = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64)
    return tangent_bound(gram, target, allowed.values, z, d, lattice, dual.split)


def blocks(gram: Float, target: Float, allowed: Levels, dual: BlockDual) -> float:
    """From a block-diagonal matrix."""
    z, matrix = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.matrix, dtype=np.float64)
    return block_dual_bound(gram, target, allowed.values, z, np.asarray(dual.block), matrix)


LEAST = {(Levels, DualPoint): diagonal, (Levels, BlockDual): blocks}
