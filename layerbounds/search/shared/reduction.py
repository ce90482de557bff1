"""A node without its kept units: their Schur complement, in which the others are left (docs/shared-engine.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import cholesky
from layerbounds.kernels.shared.relaxation import take_part

Flags = npt.NDArray[np.int8]


def part_of(matrix: Float, rows: Int, columns: Int) -> Float:
    """Some rows and columns of a matrix."""
    out = np.empty((len(rows), len(columns)))
    take_part(matrix, rows, columns, out)
    return out


@dataclass(eq=False)
class Reduced:
    """A node without its kept units.

    Attributes
    ----------
    kept, free : ndarray of int64
        Units; free ones sorted by group.
    inputs : ndarray of int64
        Of kept units, then of free ones.
    many : int
        How many inputs kept units have.
    first : ndarray of int64
        Where units begin among ``inputs``, kept ones first, and the end.
    place : ndarray of int64
        Where free units begin among the inputs of all free ones, and the end.
    gram, b : ndarray
        Of the free units' inputs.
    factor, half, y : ndarray
        L of the kept inputs, L⁻¹H_kf and L⁻¹b_k.
    saved : float
        What kept units save.
    """

    kept: Int
    free: Int
    inputs: Int
    many: int
    first: Int
    place: Int
    gram: Float
    b: Float
    factor: Float
    half: Float
    y: Float
    saved: float

    def all_inputs(self, point: Float | None) -> Float:
        """A point of the free inputs with what kept ones are best beside it; zeros for None."""
        u = np.zeros((len(self.inputs), self.b.shape[1]))
        if point is not None:
            u[self.many :] = point
        if self.many:
            u[: self.many] = lapack.dtrtrs(self.factor, self.y - self.half @ u[self.many :], lower=1, trans=1)[0]
        return u


def reduce(gram: Float, b: Float, first: Int, size: Int, group: Int, status: Flags) -> Reduced | None:
    """Eliminate the kept units; None where they are dependent.

    Parameters
    ----------
    gram, b : ndarray
        Inputs by units.
    first, size, group, status : ndarray
        Of the units.
    """
    kept, free = np.flatnonzero(status == 1), np.flatnonzero(status == 0)
    free = free[np.argsort(group[free], kind="stable")]
    both = np.concatenate([kept, free])
    begin = np.concatenate([[0], np.cumsum(size[both])]).astype(np.int64)
    inputs = np.repeat(first[both] - begin[:-1], size[both]) + np.arange(begin[-1])
    many = int(begin[len(kept)])
    k, f = inputs[:many], inputs[many:]
    left, right = part_of(gram, f, f), b[f]
    factor, half, y, saved = np.zeros((0, 0)), np.zeros((0, len(f))), np.zeros((0, b.shape[1])), 0.0
    if many:
        made = cholesky(part_of(gram, k, k))
        if made is None:
            return None
        factor = made
        solved, _ = lapack.dtrtrs(factor, np.concatenate([part_of(gram, k, f), b[k]], axis=1), lower=1)
        half, y = solved[:, : len(f)], solved[:, len(f) :]
        left -= half.T @ half
        right = right - half.T @ y
        saved = float(np.sum(y * y))
    return Reduced(kept, free, inputs, many, begin, begin[len(kept) :] - many, left, right, factor, half, y, saved)
