"""Certified minima over levels on a support for many rows, in double precision (docs/numerics.md, "Many rows at once").

One proof of the common minorant and one product serve all rows; a row's bound is that of `dual` or `block_dual` beside
this file, with the charges of double precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.joint.block_dual import JointBlocks
from layerbounds.bounds.joint.least import refuse_forms
from layerbounds.bounds.pruning.rows import alike, largest_totals
from layerbounds.bounds.quantization.block_dual import proven_block_minorant
from layerbounds.bounds.quantization.rows import below, chunks, proven_diagonal
from layerbounds.kernels.joint.savings import level_savings
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.proofs import BlockDual, DualPoint


def diagonal_rows(gram: Float, targets: Float, allowed: Sequence[LevelsOnSupport], duals: Sequence[DualPoint]) -> Float:
    """Lower bounds of rows from points and one diagonal, shape (rows,).

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    targets : ndarray of shape (rows, n)
    allowed : sequence of LevelsOnSupport
        One a row.
    duals : sequence of DualPoint
        One a row; all with the same diagonal, as one array.

    Raises
    ------
    CertificationError
        If a dual point has integer forms.
    """
    refuse_forms(duals)
    bound = np.zeros(len(targets))
    proven = proven_diagonal(gram, np.asarray(duals[0].d, dtype=np.float64))
    if proven is None:
        return bound
    for first, members in alike(allowed, _same):
        own = allowed if len(members) == len(allowed) else [allowed[r] for r in members]
        for rows, values, z, e, h, error in chunks(gram, targets[members], own, [duals[r] for r in members]):
            saving, (total, magnitude) = np.empty_like(z), np.empty((2, len(z)))
            with np.errstate(over="ignore", invalid="ignore"):
                level_savings(values, z, h, proven[0], error, proven[1], total, saving, magnitude)
                total -= largest_totals(first.structure, saving)
            bound[members[rows]] = below(e, h, error, total, magnitude, np.zeros(len(z)))
    return bound


def block_rows(gram: Float, targets: Float, allowed: Sequence[LevelsOnSupport], duals: Sequence[BlockDual]) -> Float:
    """The same from points and one block-diagonal matrix."""
    refuse_forms(duals)
    block = np.asarray(duals[0].block)
    matrix = np.asarray(duals[0].matrix, dtype=np.float64)
    matrix = np.where(block[:, None] == block[None, :], 0.5 * matrix + 0.5 * matrix.T, 0.0)
    proven = proven_block_minorant(gram, matrix)
    bound = np.zeros(len(targets))
    if proven is None:
        return bound
    for first, members in alike(allowed, _same):
        own = allowed if len(members) == len(allowed) else [allowed[r] for r in members]
        blocks = JointBlocks(*proven, block, first.structure)
        for rows, values, z, e, h, error in chunks(gram, targets[members], own, [duals[r] for r in members]):
            total, magnitude = np.empty((2, len(z)))
            for r in range(len(z)):
                wide = h[r].astype(np.longdouble), error[r].astype(np.longdouble)
                total[r], magnitude[r] = (float(x) for x in blocks.minimum(values[r], z[r], *wide))
            bound[members[rows]] = below(e, h, error, total, magnitude, np.zeros(len(z)))
    return bound


def _same(first: LevelsOnSupport, second: LevelsOnSupport) -> bool:
    return first.structure.equals(second.structure)


ROWS = {(LevelsOnSupport, DualPoint): diagonal_rows, (LevelsOnSupport, BlockDual): block_rows}
