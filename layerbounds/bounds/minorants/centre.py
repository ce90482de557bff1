"""Block-diagonal minorants of thousands of inputs by a fixed point, without second derivatives.

The maximiser of Σ α_g logdet B_g + μ logdet(H − B), each α_g times the size of its block, obeys
B_g = (α_g/μ) ((H − B)⁻¹_gg)⁻¹. A step moves every block along the geodesic from the present one to that, which costs
one factorization and the inverse of its triangle; steps that leave the cone are shortened.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import cholesky, inverted

#: First share of the way, its most, its growth after a step, and the least that is tried.
FIRST_SHARE, MOST_SHARE, GROWTH, LEAST_SHARE = 0.5, 0.6, 1.3, 1e-3
#: Each eigenvalue of a block may change by this factor in a step, but in the first ones of all.
CHANGE = 3.0
#: What a retreat from the boundary leaves of the blocks, and the share of the way after it.
RETREAT, RETREAT_SHARE = 0.97, 0.05


class Centre:
    """A block-diagonal matrix strictly below a Gram matrix; nothing is proven here.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    unit : ndarray of int64, shape (n,)
        The block of each input, numbered from 0.

    Attributes
    ----------
    rows : ndarray of int64, shape (units, m)
        The inputs of each block, −1 where it has fewer than the largest one.
    blocks : ndarray of shape (units, m, m)
        Padded with the identity.
    alone : ndarray of shape (units, m, m)
        Schur complements ((H⁻¹)_gg)⁻¹: what dropping a block alone costs.
    rest : float
        log det(H − B).
    usable : bool
        False where the Gram matrix is numerically singular.
    """

    def __init__(self, gram: Float, unit: Int) -> None:
        self.gram = gram
        size = np.bincount(unit)
        self.rows = np.full((len(size), int(size.max())), -1)
        order = np.argsort(unit, kind="stable")
        self.rows[np.arange(self.rows.shape[1]) < size[:, None]] = order
        self._inside = self.rows >= 0
        self._pair = self._inside[:, :, None] & self._inside[:, None, :]
        safe = np.where(self._inside, self.rows, 0)
        self._at = (
            np.broadcast_to(safe[:, :, None], self._pair.shape)[self._pair],
            np.broadcast_to(safe[:, None, :], self._pair.shape)[self._pair],
        )
        self.share = FIRST_SHARE
        self.usable = False
        inverse = self._inverse(None)
        alone = None if inverse is None else inverted(inverse)
        if alone is None:
            return
        self.alone = _symmetric(alone)
        self.blocks = np.where(self._pair, 0.9 / len(size) * self.alone, self._padding)
        following = self._inverse(self.blocks)
        self.usable = following is not None
        if following is not None:
            self.inverse = following

    def fork(self) -> Self:
        """One that moves on its own; what is only read is shared."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    @property
    def _padding(self) -> Float:
        return np.where(self._pair, 0.0, np.eye(self.rows.shape[1]))

    def spread(self, factor: Float) -> Float:
        """The Gram matrix plus the blocks times a factor each."""
        matrix = self.gram.copy()
        matrix[self._at] += (factor[:, None, None] * self.blocks)[self._pair]
        return matrix

    def matrix(self) -> Float:
        """The blocks as one matrix of shape (n, n)."""
        full = np.zeros_like(self.gram)
        full[self._at] = self.blocks[self._pair]
        return full

    def gather(self, values: Float) -> Float:
        """A number for each input, by block, shape (units, m); 0 in the padding."""
        return np.where(self._inside, values[np.where(self._inside, self.rows, 0)], 0.0)

    def move(self, weight: Float | None = None) -> bool:
        """One step, towards α_g/μ = ``weight``, which is 1 by default; False where no step is possible."""
        try:
            half = np.linalg.cholesky(self.blocks)
            values, vectors = np.linalg.eigh(_symmetric(half.transpose(0, 2, 1) @ self.inverse @ half))
        except np.linalg.LinAlgError:
            # Inputs of one block that are nearly dependent.
            return False
        goal = 1.0 / np.maximum(values, np.finfo(np.float64).tiny)
        if weight is not None:
            goal = goal * weight[:, None]
        basis = half @ vectors
        factors = np.ones(len(half)) if weight is None else weight
        present = np.linalg.slogdet(self.blocks)[1]
        while self.share >= LEAST_SHARE:
            growth = goal**self.share
            if weight is not None:
                growth = np.clip(growth, 1.0 / CHANGE, CHANGE)
            blocks = _symmetric((basis * growth[:, None, :]) @ basis.transpose(0, 2, 1))
            blocks = np.where(self._pair, blocks, self._padding)
            # Too long a step lowers what is maximised, and later ones swing about the maximiser.
            gained = float(factors @ (np.linalg.slogdet(blocks)[1] - present))
            inverse = self._inverse(blocks, self.rest - gained)
            if inverse is not None:
                self.blocks, self.inverse = blocks, inverse
                self.share = min(GROWTH * self.share, MOST_SHARE)
                return True
            self.share *= 0.5
        return False

    def retreat(self) -> bool:
        """Away from the boundary of the cone, where steps have become too short; False where rounding forbids it."""
        blocks = np.where(self._pair, RETREAT * self.blocks, self._padding)
        inverse = self._inverse(blocks)
        if inverse is None:
            return False
        self.blocks, self.inverse, self.share = blocks, inverse, RETREAT_SHARE
        return True

    def _inverse(self, blocks: Float | None, least: float = -math.inf) -> Float | None:
        """The blocks of (H − B)⁻¹; None where H − B is not positive definite or log det(H − B) is below ``least``."""
        matrix = self.gram.copy()
        if blocks is not None:
            matrix[self._at] -= blocks[self._pair]
        factor = cholesky(matrix)
        if factor is None:
            return None
        rest = 2.0 * float(np.sum(np.log(np.diag(factor))))
        if not rest >= least:
            return None
        self.rest = rest
        lower = lapack.dtrtri(factor, lower=1)[0]
        if self.rows.shape[1] == 1:
            return np.asarray(np.sum(lower**2, axis=0)[self.rows][:, :, None])
        columns = lower.T[np.where(self._inside, self.rows, 0)]
        return np.where(self._pair, columns @ columns.transpose(0, 2, 1), self._padding)


def _symmetric(matrices: Float) -> Float:
    return np.asarray(0.5 * (matrices + matrices.transpose(0, 2, 1)))
