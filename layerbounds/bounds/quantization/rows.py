"""Certified minima over levels for many rows, in double precision (docs/numerics.md, "Many rows at once").

With h = H(z − w), B ⪯ H + diag(e) proven once for all rows, and everything that rounding may do charged,

    f(q) ≥ (z − w)ᵀh + Σ min over the levels of [2hᵀ(q − z) + (q − z)ᵀB(q − z)] − Σ e_i max (q_i − z_i)².
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import is_minorant, proven_minorant
from layerbounds.bounds.objective import CHUNK, SLOPE_UNDERFLOW, UNDERFLOW, entry_sizes
from layerbounds.bounds.quantization.block_dual import PreparedBlocks, proven_block_minorant
from layerbounds.bounds.quantization.least import blocks, diagonal
from layerbounds.kernels.batched.minima import separable_minima
from layerbounds.kernels.factorization import UNIT, gamma
from layerbounds.problems.levels import Levels
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.proofs import BlockDual, DualPoint

#: Numbers in the levels of the rows that are treated together.
MOST_LEVELS = 1 << 23


def diagonal_rows(gram: Float, targets: Float, allowed: Sequence[Levels], duals: Sequence[DualPoint]) -> Float:
    """From points and one diagonal; rows with integer forms are bounded one by one."""
    if any(dual.split is not None for dual in duals):
        triples = zip(targets, allowed, duals, strict=True)
        return np.array([diagonal(gram, target, levels, dual) for target, levels, dual in triples])
    proven = proven_diagonal(gram, np.asarray(duals[0].d, dtype=np.float64))
    bound = np.zeros(len(targets))
    if proven is None:
        return bound
    d, shift = proven
    for rows, levels, z, e, h, error in chunks(gram, targets, allowed, duals):
        total, magnitude, charge = np.empty((3, len(z)))
        separable_minima(levels, z, h, d, error, shift, total, magnitude, charge)
        bound[rows] = below(e, h, error, total, magnitude, charge)
    return bound


def block_rows(gram: Float, targets: Float, allowed: Sequence[Levels], duals: Sequence[BlockDual]) -> Float:
    """From points and one block-diagonal matrix; rows with integer forms are bounded one by one."""
    if any(dual.split is not None for dual in duals):
        triples = zip(targets, allowed, duals, strict=True)
        return np.array([blocks(gram, target, levels, dual) for target, levels, dual in triples])
    block = np.asarray(duals[0].block)
    matrix = np.asarray(duals[0].matrix, dtype=np.float64)
    matrix = np.where(block[:, None] == block[None, :], 0.5 * matrix + 0.5 * matrix.T, 0.0)
    proven = proven_block_minorant(gram, matrix)
    bound = np.zeros(len(targets))
    if proven is None:
        return bound
    matrix, shift = proven
    prepared = PreparedBlocks(matrix, block)
    for rows, levels, z, e, h, error in chunks(gram, targets, allowed, duals):
        total, magnitude, charge = np.empty((3, len(z)))
        for r in range(len(z)):
            reach = np.abs(levels[r] - z[r][:, None]).max(axis=1)
            total[r], magnitude[r] = (float(x) for x in prepared.minimum(levels[r], z[r], h[r].astype(np.longdouble)))
            charge[r] = float(np.sum((2.0 * error[r] + shift * reach) * reach))
        bound[rows] = below(e, h, error, total, magnitude, charge)
    return bound


def proven_diagonal(gram: Float, d: Float) -> tuple[Float, Float] | None:
    """A diagonal and a shift of H, proven; one factorization where the diagonal is below H itself."""
    return (d, np.zeros(len(d))) if is_minorant(gram, d) else proven_minorant(gram, d)


def chunks(
    gram: Float,
    targets: Float,
    allowed: Sequence[Levels] | Sequence[LevelsOnSupport],
    duals: Sequence[DualPoint] | Sequence[BlockDual],
) -> Iterator[tuple[slice, Float, Float, Float, Float, Float]]:
    """Some rows at a time: which, their levels, z, z − w, h, and by how much h may be off."""
    n = len(gram)
    size = entry_sizes(gram)
    first = allowed[0].values.size if len(allowed) else 1
    count = max(min(CHUNK, MOST_LEVELS // max(first, 1)), 1)
    for begin in range(0, len(targets), count):
        rows = slice(begin, min(begin + count, len(targets)))
        levels = _stacked([allowed[r].values for r in range(rows.start, rows.stop)])
        z = np.stack([np.asarray(duals[r].z, dtype=np.float64) for r in range(rows.start, rows.stop)])
        deviation = z - targets[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            h = deviation @ gram
            error = 2 * gamma(n + 8) * (np.abs(deviation) @ size)[:, None] * size + SLOPE_UNDERFLOW
        yield rows, levels, z, deviation, h, error


def _stacked(values: list[Float]) -> Float:
    """Levels of rows as one array; where their numbers differ, the last ones are repeated."""
    most = max(part.shape[1] for part in values)
    return np.stack([np.pad(part, ((0, 0), (0, most - part.shape[1])), mode="edge") for part in values])


def below(e: Float, h: Float, error: Float, total: Float, magnitude: Float, charge: Float) -> Float:
    """The bounds, with (z − w)ᵀh added and all charges deducted; 0 where they are no numbers."""
    n = e.shape[1]
    product = np.abs(e)
    with np.errstate(invalid="ignore", over="ignore"):
        value = np.einsum("ij,ij->i", e, h) + total
        magnitude = magnitude + np.einsum("ij,ij->i", product, np.abs(h))
        charge = charge + np.einsum("ij,ij->i", product, error)
        bound = value - charge * (1 + 4 * (n + 16) * UNIT) - 4 * (n + 32) * UNIT * magnitude - UNDERFLOW
    return np.where(np.isfinite(bound), np.maximum(bound, 0.0), 0.0)


ROWS = {(Levels, DualPoint): diagonal_rows, (Levels, BlockDual): block_rows}
