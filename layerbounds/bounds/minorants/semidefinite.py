"""Positive semidefinite matrices in floating point: factors, inverses, and proofs that hold despite rounding."""

from __future__ import annotations

from collections.abc import Callable

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
    return factor if info == 0 and _finite(factor) else None


def _finite(factor: Float) -> bool:
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


def is_positive_semidefinite(matrix: Float) -> bool:
    """Prove matrix ⪰ 0 with one floating-point Cholesky factorization; overwrites its diagonal.

    A completed factorization of A has a backward error of at most γ_{n+1}/(1−γ_{n+1})·√(a_ii a_jj) per entry (Higham,
    Accuracy and Stability, theorem 10.3), hence A ⪰ −n·γ_{n+1}/(1−γ_{n+1})·diag(A): A is shifted down by more than that
    before it is factorized (Rump, BIT 46, 2006). The slack also covers one rounding of every entry.
    """
    return _lower_diagonal(matrix) and cholesky(matrix) is not None


def are_positive_semidefinite(matrices: Float) -> bool:
    """The same for all matrices of an array of shape (matrices, n, n)."""
    if not _lower_diagonal(matrices):
        return False
    try:
        return _finite(np.asarray(np.linalg.cholesky(matrices), dtype=np.float64))
    except np.linalg.LinAlgError:
        return False


def _lower_diagonal(matrix: Float) -> bool:
    """Lower the diagonals by more than the backward error of a factorization; False where an entry is negative."""
    n = matrix.shape[-1]
    diagonal = np.einsum("...ii->...i", matrix)
    if np.any(diagonal < 0):
        return False
    diagonal *= 1.0 - 1.25 * (n + 1) * gamma(n + 3)
    return True


def shrink_until(accepted: Callable[[Float], bool], minorant: Float) -> Float:
    """The minorant times the first factor of a falling ladder that is accepted; zeros in the worst case."""
    factor = 1.0
    for step in range(60):
        candidate = minorant * factor
        if accepted(candidate):
            return candidate
        factor = 1.0 - 1e-12 * 4.0**step if step < 19 else factor * 0.5
    return np.zeros_like(minorant)


def semidefinite_shift(gram: Float) -> tuple[Float, Float] | None:
    """A matrix gram + diag(e) proven positive semidefinite, and e: zero or a small multiple of the diagonal."""
    n = len(gram)
    if is_positive_semidefinite(gram.copy()):
        return gram, np.zeros(n)
    diagonal = np.diag(gram)
    for exponent in range(2, 40, 2):
        shift = 2.0**exponent * n * UNIT * diagonal
        shifted = gram.copy()
        shifted[np.diag_indices(n)] = (diagonal + shift) * (1.0 - 2 * UNIT)
        if is_positive_semidefinite(shifted.copy()):
            return shifted, shift
    return None
