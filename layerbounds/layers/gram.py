"""Validation of Gram matrices: symmetry, positive semidefiniteness, dead inputs.

The certificate is about the stored float64 matrix, so every repair is made here, once, and is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import InputError
from layerbounds.kernels import exact

ASYMMETRY_TOLERANCE = 1e-6
NEGATIVE_EIGENVALUE_TOLERANCE = 1e-6
#: Up to so many live inputs positive semidefiniteness is decided exactly.
EXACT_SIZE = 32
#: A factorization with a diagonal smaller by this proves it for matrices of that size, whatever the rounding.
CLEARLY = 1e-9


@dataclass(frozen=True)
class GramReport:
    """What was found and repaired in one Gram matrix.

    Attributes
    ----------
    asymmetry : float
        Largest ``|G - G.T|`` relative to the largest entry, before symmetrisation.
    projected : bool
        Whether negative eigenvalues were set to zero.
    min_eigenvalue : float or None
        Smallest eigenvalue before projection relative to the largest; None where a Cholesky factorization
        already proved positive definiteness.
    dead : int
        Number of dead inputs (zero diagonal).
    raised : float
        By how much, relatively, the diagonal was raised because rounding had left the matrix of a few inputs
        indefinite.
    """

    asymmetry: float
    projected: bool
    min_eigenvalue: float | None
    dead: int
    raised: float = 0.0


def validate_gram(gram: Float, what: str) -> tuple[Float, GramReport]:
    """Symmetrise a Gram matrix and project it onto the positive semidefinite cone where rounding left it.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Finite float64 matrix XᵀX/N.
    what : str
        How error messages call the matrix.

    Returns
    -------
    gram : ndarray of shape (n, n)
        Exactly symmetric; rows of dead inputs are exactly zero.
    report : GramReport

    Raises
    ------
    InputError
        If the asymmetry exceeds 1e-6 of the largest entry, or the smallest eigenvalue lies below -1e-6 of the
        largest.
    """
    largest = float(np.max(np.abs(gram), initial=0.0))
    if largest == 0.0:
        return np.zeros_like(gram), GramReport(0.0, False, 0.0, gram.shape[0])
    asymmetry = float(np.max(np.abs(gram - gram.T))) / largest
    if asymmetry > ASYMMETRY_TOLERANCE:
        raise InputError(
            f"{what} is not symmetric (largest difference between mirrored entries is {asymmetry:.1e} of the "
            "largest entry); pass XᵀX/N computed from the layer's inputs."
        )
    sym = 0.5 * (gram + gram.T) if asymmetry > 0 else np.array(gram)
    live = np.any(sym != 0.0, axis=0)
    core = np.ascontiguousarray(sym[np.ix_(live, live)])
    projected = False
    min_eigenvalue: float | None = None
    try:
        scipy.linalg.cholesky(core, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        eigenvalues, vectors = scipy.linalg.eigh(core, check_finite=False)
        top = float(eigenvalues[-1])
        min_eigenvalue = float(eigenvalues[0]) / top if top > 0 else -1.0
        if min_eigenvalue < -NEGATIVE_EIGENVALUE_TOLERANCE:
            raise InputError(
                f"{what} is not positive semidefinite (smallest eigenvalue {min_eigenvalue:.1e} of the largest); "
                "pass XᵀX/N computed from the layer's inputs, in float64 if possible."
            ) from None
        # A rank-deficient Gram has eigenvalues of rounding size on both sides of zero: those are left alone.
        if min_eigenvalue < -core.shape[0] * np.finfo(np.float64).eps:
            projected = True
            core = (vectors * np.maximum(eigenvalues, 0.0)) @ vectors.T
            core = 0.5 * (core + core.T)
            sym = np.zeros_like(sym)
            sym[np.ix_(live, live)] = core
    core, raised = _semidefinite(core)
    if raised:
        sym[np.ix_(live, live)] = core
    dead = np.diag(sym) <= 0.0
    if np.any(dead):
        sym[dead, :] = 0.0
        sym[:, dead] = 0.0
    return sym, GramReport(asymmetry, projected, min_eigenvalue, int(np.count_nonzero(dead)), raised)


def _semidefinite(core: Float) -> tuple[Float, float]:
    """Raise the diagonal of a small matrix until it is exactly positive semidefinite; by how much, relatively.

    With eigenvalues of rounding size below zero no weights with a least error would exist once they may take any
    value. What is added is of the size of the rounding of the entries, and leaves positive definite matrices and those
    that are singular in exact arithmetic as they are.
    """
    if len(core) > EXACT_SIZE or np.any(np.diag(core) <= 0.0):
        return core, 0.0
    try:
        scipy.linalg.cholesky(core - CLEARLY * np.diag(np.diag(core)), lower=True, check_finite=False)
        return core, 0.0
    except np.linalg.LinAlgError:
        pass
    raised, unit = 0.0, float(np.finfo(np.float64).eps)
    while not exact.is_positive_semidefinite(_with_diagonal(core, 1.0 + raised)):
        raised = max(2.0 * raised, unit)
        if raised > NEGATIVE_EIGENVALUE_TOLERANCE:
            return core, 0.0
    # Twice as much keeps the smallest eigenvalue away from zero, and hence refitted weights small.
    return _with_diagonal(core, 1.0 + 2.0 * raised), 2.0 * raised


def _with_diagonal(core: Float, factor: float) -> Float:
    result = core.copy()
    np.fill_diagonal(result, np.diag(core) * factor)
    return result


def live_inputs(gram: Float) -> Bool:
    """Mask of the inputs with energy: a zero diagonal entry of a PSD matrix makes its whole row zero."""
    return np.asarray(np.diag(gram) > 0.0)
