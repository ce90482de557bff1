"""Block-diagonal minorants over units whose inputs follow each other, in the arrays that kernels take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.blocks import BlockMinorant
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.kernels.factorization import inverted, is_finite_factor
from layerbounds.kernels.pruning.cluster_minorant import ascend
from layerbounds.kernels.shared import relaxation
from layerbounds.kernels.shared.relaxation import invert_blocks, take_blocks
from layerbounds.search.shared.reduction import Reduced

#: Barrier weight of an improvement, and least weight of a direction, both relative to the mean.
NODE_MU, SIDE = 0.1, 0.05
#: Least weight of a unit, and weight of the directions of whole units.
LEAST_WEIGHT, SIDE_WEIGHT = 1e-3, 1e-3
#: Inputs whose changes of the inverse are applied together.
TOGETHER = 72


@dataclass(frozen=True, eq=False)
class UnitBlocks:
    """A proven minorant.

    Attributes
    ----------
    block, inverse : ndarray of shape (units, most inputs, most inputs)
        Padded blocks and their approximate inverses.
    smallest : ndarray of shape (units,)
        Proven lower bounds of the blocks' eigenvalues, positive.
    """

    block: Float
    inverse: Float
    smallest: Float

    @staticmethod
    def make(block: Float, size: Int) -> UnitBlocks | None:
        """From blocks that are proven to lie below the Gram matrix; None where one is singular."""
        inverse, smallest = np.zeros_like(block), np.zeros(len(block))
        every = np.arange(len(size))
        return UnitBlocks(block, inverse, smallest) if invert_blocks(block, size, every, inverse, smallest) else None

    def replaced(self, block: Float, size: Int, units: Int) -> UnitBlocks | None:
        """The same with other blocks for some units; None where one of them is singular."""
        inverse, smallest = self.inverse.copy(), self.smallest.copy()
        return UnitBlocks(block, inverse, smallest) if invert_blocks(block, size, units, inverse, smallest) else None

    @staticmethod
    def pack(minorant: BlockMinorant, size: Int) -> UnitBlocks | None:
        """From a minorant of the same units."""
        most = int(size.max())
        block = np.zeros((len(size), most, most))
        for g, b in enumerate(minorant.blocks):
            block[g, : size[g], : size[g]] = 0.5 * (b + b.T)
        return UnitBlocks.make(block, size)


def is_below(gram: Float, block: Float, first: Int, units: Int, part: Float) -> bool:
    """Prove that parts of some units' blocks lie below their Gram matrix, in which ``first`` numbers the inputs."""
    rest = gram.copy()
    take_blocks(rest, block, first, units, part)
    return is_positive_semidefinite(rest)


def raise_blocks(left: Reduced, minorant: UnitBlocks, size: Int, z: Float, point: Float) -> Float | None:
    """Blocks of the free units, improved for a point and not proven; None where a factorization breaks down.

    One sweep of block coordinate ascent. What the blocks of some units change of the inverse of H − B is applied to
    those that follow at once.

    Parameters
    ----------
    left : Reduced
    minorant : UnitBlocks
    size : ndarray of int64
        Inputs of each unit.
    z : ndarray
        Weights of the free units.
    point : ndarray
        Of the free units' inputs.
    """
    first, free = left.place, left.free
    every = np.ones(len(free))
    rest = left.gram.copy()
    take_blocks(rest, minorant.block, first, free, every)
    factor, info = lapack.dpotrf(rest.T, lower=0, clean=0, overwrite_a=1)
    if info != 0 or not is_finite_factor(factor):
        return None
    # The lower triangle of the inverse, as rows.
    inverse = lapack.dpotri(factor, lower=0, overwrite_c=1)[0].T
    gradient = np.zeros_like(minorant.block)
    relaxation.gradients(point, first, free, np.clip(z, LEAST_WEIGHT, 1.0), SIDE_WEIGHT, gradient)
    alphas = np.einsum("gij,gij->g", gradient[free], minorant.block[free])
    mean = float(alphas.sum()) / len(rest)
    if not mean > 0.0:
        return None
    block = minorant.block.copy()
    # The last units first: what is left of the inverse is its leading part.
    end = len(free)
    while end > 0:
        begin = end - 1
        while begin > 0 and first[end] - first[begin - 1] <= TOGETHER:
            begin -= 1
        low, high = int(first[begin]), int(first[end])
        local = np.ascontiguousarray(inverse[low:high, low:high])
        local = np.tril(local) + np.tril(local, -1).T
        units = free[begin:end]
        share = mean * (high - low) / max(float(alphas[begin:end].sum()), 1e-300)
        old = block[units].copy()
        own = first[begin : end + 1] - low
        member = np.arange(high - low)
        place = member - np.repeat(own[:-1], size[units])
        new = old.copy()
        start = local.copy()
        if ascend(local, member, new, own, member, place, size[units], gradient[units], NODE_MU * share, SIDE * share):
            block[units] = new
            if low:
                change = np.zeros_like(local)
                take_blocks(change, old - new, own, np.arange(len(units)), every)
                # (M − EΔEᵀ)⁻¹ = M⁻¹ + M⁻¹E (I − Δ(M⁻¹)_gg)⁻¹ Δ EᵀM⁻¹
                system = inverted(np.eye(high - low) - change @ start)
                if system is None:
                    return None
                middle = system @ change
                strip = inverse[low:high, :low]
                inverse[:low, :low] += strip.T @ (middle @ strip)
        end = begin
    return block
