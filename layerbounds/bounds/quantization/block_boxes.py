"""Blocks of inputs and integer forms with fixed weights: the best multipliers on any box of codes, and its bound.

With B + V diag(g) Vᵀ ⪯ H the bound of a box is the least of (z − w)ᵀ(H − B − V diag(g) Vᵀ)(z − w) plus the convex
envelopes of the blocks' part over the box's points and of the forms' part over the integers: alternating directions in
the metric of B and of the weights (docs/block-relaxation.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from scipy.sparse import csr_array

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.alternating import RELAXATION, WITH_FORMS
from layerbounds.bounds.quantization.block_relaxation import BUDGET, KAPPA, MOST_NODES, pack
from layerbounds.bounds.quantization.cuts import by_columns, weighted_square
from layerbounds.kernels.factorization import UNIT, cholesky, symmetric_inverse
from layerbounds.kernels.quantization.box_blocks import bound, iterate

#: One in so many iterations looks for new points of the blocks: half the time of looking always, as good in the end.
EVERY = 2


@dataclass(eq=False)
class BlockState:
    """Where alternating directions are: y and scaled multipliers of the inputs and the forms, and each block's corral.

    Attributes
    ----------
    y, u : ndarray of shape (n,)
    y_forms, u_forms : ndarray of shape (cuts,)
    corral : ndarray of int64, shape (blocks, m + 2, m)
        Codes of the points that y is made of.
    alpha : ndarray of shape (blocks, m + 2)
        Their weights.
    size : ndarray of int64, shape (blocks,)
        How many there are.
    """

    y: Float
    u: Float
    y_forms: Float
    u_forms: Float
    corral: Int
    alpha: Float
    size: Int

    def copy(self) -> Self:
        """One that shares nothing with this one."""
        return type(self)(*(getattr(self, field.name).copy() for field in fields(self)))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(int(getattr(self, field.name).nbytes) for field in fields(self))


class BlockBoxes:
    """What bounds boxes.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    origin : ndarray of shape (n,)
        w.
    members : sequence of ndarray of int64
        Inputs of each block.
    matrix : ndarray of shape (n, n)
        B, positive definite on every block.
    forms : ndarray of shape (n, cuts)
        V, integers.
    weights : ndarray of shape (cuts,)
        g, with B + V diag(g) Vᵀ ⪯ H.

    Attributes
    ----------
    usable : bool
        False where a matrix cannot be factorized.
    """

    #: Iterations at the root, at a node, and more of them where a child is no better than its parent.
    first, each, more = 60, 16, 10

    def __init__(
        self, gram: Float, origin: Float, members: Sequence[Int], matrix: Float, forms: Float, weights: Float
    ) -> None:
        self._gram, self._origin, self._weights = gram, origin, weights
        self._members = members
        self._columns = by_columns(forms)
        self._forms = csr_array(forms)
        self._transposed = csr_array(self._forms.T)
        self._at_origin = self._transposed @ origin
        square = weighted_square(self._forms, weights)
        rest = gram - matrix - square
        packed = pack(members, matrix)
        factor = cholesky(rest + KAPPA * matrix + WITH_FORMS * square)
        self.usable = packed is not None and factor is not None
        if packed is None or factor is None:
            return
        self._blocks = packed
        self._inverse = np.ascontiguousarray(symmetric_inverse(factor))
        self._pull = rest @ origin

    def start(self, z: Float) -> BlockState:
        """At a point of the box: each corral holds the codes next to it."""
        groups, widest = len(self._members), self._blocks.factor.shape[1]
        near = np.rint(z)
        corral = np.zeros((groups, widest + 2, widest), dtype=np.int64)
        for g, m in enumerate(self._members):
            corral[g, 0, : len(m)] = near[m]
        alpha = np.zeros((groups, widest + 2))
        alpha[:, 0] = 1.0
        still = np.zeros(len(z)), self._transposed @ z, np.zeros(len(self._weights))
        return BlockState(near, *still, corral, alpha, np.ones(groups, dtype=np.int64))

    def iterate(self, low: Float, high: Float, state: BlockState, z: Float, count: int) -> None:
        """So many steps on a box; state and z change."""
        blocks, s = self._blocks, state
        iterate(
            blocks.first, blocks.member, blocks.block, blocks.factor, *self._columns, self._weights, self._inverse,
            self._pull, self._origin, self._at_origin, low, high, KAPPA, WITH_FORMS, RELAXATION, s.y, s.u, s.y_forms,
            s.u_forms, s.corral, s.alpha, s.size, z, count, EVERY, MOST_NODES,
        )  # fmt: skip

    def bound(self, low: Float, high: Float, state: BlockState, z: Float, cut: float) -> float:
        """The bound of a box, its own rounding deducted; −inf where a block is too long to search."""
        blocks = self._blocks
        return float(
            bound(
                self._gram, blocks.first, blocks.member, blocks.block, blocks.factor, *self._columns, self._weights,
                self._origin, low, high, self.multipliers(state, z), z, MOST_NODES, BUDGET, UNIT,
            )
        )  # fmt: skip

    def multipliers(self, state: BlockState, z: Float) -> Float:
        """Of the forms, at a state and a point."""
        moved = self._transposed @ z - self._at_origin
        return np.asarray(self._weights * (moved - WITH_FORMS * state.u_forms))

    def set_multipliers(self, state: BlockState, z: Float, multipliers: Float) -> None:
        """Make a state one with these multipliers at a point."""
        at = np.divide(multipliers, self._weights, out=np.zeros(len(multipliers)), where=self._weights > 0)
        state.u_forms[:] = (self._transposed @ z - self._at_origin - at) / WITH_FORMS

    def spreads(self, state: BlockState, z: Float) -> list[Float]:
        """Σ α (p − z)(p − z)ᵀ over each corral's points: a supergradient of the bound in B."""
        result = []
        for g, m in enumerate(self._members):
            k = state.size[g]
            step = state.corral[g, :k, : len(m)] - z[m]
            result.append((step * state.alpha[g, :k, None]).T @ step)
        return result
