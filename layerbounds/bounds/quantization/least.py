"""Certified minima over levels (docs/bounds.md, docs/block-relaxation.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.block_dual import block_dual_bound
from layerbounds.bounds.quantization.dual import tangent_bound
from layerbounds.bounds.quantization.form_terms import Lattice
from layerbounds.exceptions import CertificationError
from layerbounds.problems.levels import Levels
from layerbounds.proofs import BlockDual, DualPoint, FormTerms


def diagonal(gram: Float, target: Float, allowed: Levels, dual: DualPoint) -> float:
    """From a diagonal, with integer forms where the codes are consecutive integers."""
    lattice = _lattice(allowed, dual.split)
    z, d = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64)
    return tangent_bound(gram, target, allowed.values, z, d, lattice, dual.split)


def blocks(gram: Float, target: Float, allowed: Levels, dual: BlockDual) -> float:
    """From a block-diagonal matrix, with integer forms where the codes are consecutive integers."""
    lattice = _lattice(allowed, dual.split)
    z, matrix = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.matrix, dtype=np.float64)
    return block_dual_bound(gram, target, allowed.values, z, np.asarray(dual.block), matrix, lattice, dual.split)


def _lattice(allowed: Levels, split: FormTerms | None) -> Lattice:
    """Where levels lie, in codes from 0 on: forms are integers where the codes are, and these of uniform grids are."""
    if split is not None and not allowed.uniform:
        raise CertificationError("the backend returned an invalid dual point: its integer forms need integer codes.")
    first = allowed.codes[0, 0]
    return Lattice(allowed.codes - first, allowed.scale, allowed.zero_point - first)


LEAST = {(Levels, DualPoint): diagonal, (Levels, BlockDual): blocks}
