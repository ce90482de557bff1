"""Factors and inverses of symmetric matrices by LAPACK; what breaks down is None, never an exception."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float

UNIT = float(np.finfo(np.float64).eps) / 2


def gamma(n: int) -> float:
    """Higham's γ_n = n·u/(1 − n·u), u the unit roundoff."""
    return n * UNIT / (1 - n * UNIT)


def cholesky(matrix: Float) -> Float | None:
    """Lower Cholesky factor, or None where the factorization breaks down."""
    if not matrix.size:
        # LAPACK calls matrices without rows an illegal argument, and says so on the standard output.
        return np.zeros_like(matrix)
    factor, info = lapack.dpotrf(matrix, lower=1, clean=1)
    return factor if info == 0 and is_finite_factor(factor) else None


def is_finite_factor(factor: Float) -> bool:
    """Whether no pivot is NaN, which LAPACK lets pass: each one makes all later ones NaN."""
    return factor.size == 0 or not np.isnan(factor[..., -1, -1]).any()


def symmetric_inverse(factor: Float) -> Float:
    """Inverse of the matrix whose lower Cholesky factor is given."""
    if not factor.size:
        return np.zeros_like(factor)
    inverse = np.tril(lapack.dpotri(factor, lower=1)[0])
    return np.asarray(inverse + np.tril(inverse, -1).T)


def inverse_diagonal(factor: Float) -> Float:
    """Diagonal of the inverse of the matrix whose lower Cholesky factor is given."""
    if not factor.size:
        return np.zeros(0)
    return np.asarray(np.sum(lapack.dtrtri(factor, lower=1)[0] ** 2, axis=0), dtype=np.float64)


def inverted(matrix: Float) -> Float | None:
    """Inverse of a matrix, or None where it is numerically singular."""
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return None
    return np.asarray(inverse) if np.all(np.isfinite(inverse)) else None


def smallest_eigenvalues(matrices: Float) -> Float:
    """Smallest eigenvalue of each of the last two axes' symmetric matrices, −inf where that cannot be computed."""
    try:
        values = np.asarray(np.linalg.eigvalsh(matrices), dtype=np.float64)[..., 0]
    except np.linalg.LinAlgError:
        return np.full(matrices.shape[:-2], -np.inf)
    return np.asarray(np.where(np.isnan(values), -np.inf, values))
