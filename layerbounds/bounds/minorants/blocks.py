"""Block-diagonal minorants B ⪯ H and their improvement by block coordinate ascent (docs/pruning-bounds.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.bounds.pruning.dual import certified_block_minorant, is_block_minorant
from layerbounds.kernels.factorization import cholesky, inverted, smallest_eigenvalues, symmetric_inverse

#: Least weight of a direction, relative to the mean.
SIDE = 0.05
#: Blocks whose changes of the inverse are applied together, and how many times that is done before a fresh inverse.
TOGETHER, REFRESH = 24, 4


@dataclass(frozen=True, eq=False)
class BlockMinorant:
    """A proven minorant.

    Attributes
    ----------
    matrix : ndarray of shape (n, n)
    blocks, inverses : list of ndarray
        The diagonal blocks and their approximate inverses.
    smallest : ndarray of shape (blocks,)
        Proven lower bounds of the blocks' smallest eigenvalues, positive.
    """

    matrix: Float
    blocks: list[Float]
    inverses: list[Float]
    smallest: Float


def make_minorant(gram: Float, members: Sequence[Int], matrix: npt.NDArray[Any]) -> BlockMinorant | None:
    """Prove a block-diagonal matrix, lowered where needed; None where it is not positive definite."""
    proven: Float = certified_block_minorant(gram, np.asarray(matrix, dtype=np.float64))
    blocks: list[npt.NDArray[Any]] = [np.array(proven[np.ix_(m, m)]) for m in members]
    smallest = np.array([0.5 * float(smallest_eigenvalues(b)) for b in blocks])
    for block, value in zip(blocks, smallest, strict=True):
        if not value > 0 or not is_block_minorant(block, value * np.eye(len(block))):
            return None
    inverses = [inverse for b in blocks if (inverse := inverted(b)) is not None]
    return BlockMinorant(proven, blocks, inverses, smallest) if len(inverses) == len(blocks) else None


def start_blocks(gram: Float, members: Sequence[Int]) -> BlockMinorant | None:
    """0.9/blocks times the Schur complements ((H⁻¹)_gg)⁻¹, each of which lies below H; None if H is singular."""
    factor = cholesky(gram)
    if factor is None:
        return None
    inverse = symmetric_inverse(factor)
    matrix = np.zeros_like(gram)
    for m in members:
        block = inverted(inverse[np.ix_(m, m)])
        if block is None:
            return None
        matrix[np.ix_(m, m)] = 0.45 / len(members) * (block + block.T)
    return make_minorant(gram, members, matrix)


def improve_blocks(
    gram: Float, members: Sequence[Int], minorant: BlockMinorant, gradients: Sequence[Float], mu: float, sweeps: int = 1
) -> BlockMinorant | None:
    """Block coordinate ascent on Σ ⟨A_g, B_g⟩ + μ logdet(H − B), with a logarithm in place of the linear term.

    With S the largest feasible block when the others stay, and in coordinates that make S the identity and A diagonal,
    the optimal block has the eigenvalues α/(α + μ), α the eigenvalue of A times the present diagonal entry of B.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    members : sequence of ndarray
        Inputs of each block.
    minorant : BlockMinorant
        Where to start.
    gradients : sequence of ndarray
        Positive semidefinite supergradients A_g of the bound.
    mu : float
        Relative to the mean of the α.
    sweeps : int

    Returns
    -------
    BlockMinorant or None
        None where a factorization or the proof fails.
    """
    try:
        matrix = _ascended(gram, members, minorant, gradients, mu, sweeps)
    except np.linalg.LinAlgError:
        return None
    return None if matrix is None else make_minorant(gram, members, matrix)


def _ascended(
    gram: Float, members: Sequence[Int], minorant: BlockMinorant, gradients: Sequence[Float], mu: float, sweeps: int
) -> Float | None:
    matrix = minorant.matrix.copy()
    total = sum(float(np.sum(a * b)) for a, b in zip(gradients, minorant.blocks, strict=True))
    if not total > 0:
        return None
    barrier = mu * total / len(gram)
    factor = cholesky(gram - matrix)
    if factor is None:
        return None
    inverse = symmetric_inverse(factor)
    # The inverse is that matrix plus left rightᵀ, over the first ``width`` columns.
    left, right = np.empty((2, len(gram), TOGETHER * max(len(m) for m in members)))
    width = 0
    for _ in range(sweeps):
        for count, (m, gradient) in enumerate(zip(members, gradients, strict=True)):
            if count % (TOGETHER * REFRESH) == TOGETHER * REFRESH - 1:
                factor = cholesky(gram - matrix)
                if factor is None:
                    return None
                inverse, width = symmetric_inverse(factor), 0
            elif width + len(m) > left.shape[1]:
                inverse, width = inverse + left[:, :width] @ right[:, :width].T, 0
            columns = inverse[m].T + left[:, :width] @ right[m, :width].T
            local = columns[m]
            local = 0.5 * (local + local.T)
            old = matrix[np.ix_(m, m)]
            most = np.linalg.inv(local) + old
            half = cholesky(np.asfortranarray(0.5 * (most + most.T)))
            if half is None:
                continue
            values, vectors = np.linalg.eigh(half.T @ gradient @ half)
            back = np.linalg.solve(half, np.linalg.solve(half, old).T)
            present = np.einsum("ik,ij,jk->k", vectors, back, vectors)
            alpha = np.maximum(values * present, SIDE * barrier / mu)
            basis = half @ vectors
            new = (basis * (alpha / (alpha + barrier))) @ basis.T
            new = 0.5 * (new + new.T)
            change = new - old
            # (M − E Δ Eᵀ)⁻¹ = M⁻¹ + M⁻¹E (I − Δ (M⁻¹)_gg)⁻¹ Δ EᵀM⁻¹
            middle = np.linalg.solve(np.eye(len(m)) - change @ local, change)
            left[:, width : width + len(m)] = columns @ middle
            right[:, width : width + len(m)] = columns
            width += len(m)
            matrix[np.ix_(m, m)] = new
    return matrix
