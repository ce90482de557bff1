"""Positive semidefinite matrices in floating point: factors, inverses, and proofs that hold despite rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import UNIT, gamma, is_finite_factor


def is_positive_semidefinite(matrix: Float) -> bool:
    """Prove matrix ⪰ 0 with one floating-point Cholesky factorization, which overwrites it.

    A completed factorization of A has a backward error of at most γ_{n+1}/(1−γ_{n+1})·√(a_ii a_jj) per entry (Higham,
    Accuracy and Stability, theorem 10.3), hence A ⪰ −n·γ_{n+1}/(1−γ_{n+1})·diag(A): A is shifted down by more than that
    before it is factorized (Rump, BIT 46, 2006). The slack also covers one rounding of every entry.
    """
    return _lower_diagonal(matrix) and _factorizes(matrix)


def _factorizes(matrix: Float) -> bool:
    if not matrix.size:
        return True
    # LAPACK takes the transpose of a C-ordered matrix without a copy; its upper triangle is the lower one here.
    factor, info = lapack.dpotrf(matrix.T, lower=0, clean=0, overwrite_a=1)
    return info == 0 and is_finite_factor(factor)


def are_positive_semidefinite(matrices: Float) -> bool:
    """The same for all matrices of an array of shape (matrices, n, n)."""
    if not _lower_diagonal(matrices):
        return False
    try:
        return is_finite_factor(np.asarray(np.linalg.cholesky(matrices), dtype=np.float64))
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
