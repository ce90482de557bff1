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
#: Entries beyond these lose digits to underflow, or overflow, as soon as one computes with them.
SMALLEST_ENTRY, LARGEST_ENTRY = 1e-290, 1e290
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
        Rounding leaves singular matrices with eigenvalues on both sides of zero. Where weights may take any value, the
        diagonal of a matrix of few inputs counts as larger by this share of itself, which makes the matrix positive
        semidefinite; 0 where it is already, or where it is too large to decide that exactly.
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
        If the asymmetry exceeds 1e-6 of the largest entry, the smallest eigenvalue lies below -1e-6 of the
        largest, or an input is so small or so large that float64 cannot compute with its square.
    """
    largest = float(np.max(np.abs(gram), initial=0.0))
    if largest == 0.0:
        return np.zeros_like(gram), GramReport(0.0, False, 0.0, gram.shape[0])
    least = float(np.min(np.diag(gram), where=np.diag(gram) > 0.0, initial=np.inf))
    if least < SMALLEST_ENTRY or largest > LARGEST_ENTRY:
        extreme = least if least < SMALLEST_ENTRY else largest
        raise InputError(
            f"{what} has an entry of {extreme:.1e}, and float64 computes with {SMALLEST_ENTRY:g} to "
            f"{LARGEST_ENTRY:g}; rescale the inputs, or set those to zero that are nothing beside the others."
        )
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
    dead = np.diag(sym) <= 0.0
    if np.any(dead):
        sym[dead, :] = 0.0
        sym[:, dead] = 0.0
    share = semidefinite_share(np.ascontiguousarray(sym[np.ix_(~dead, ~dead)]))
    return sym, GramReport(asymmetry, projected, min_eigenvalue, int(np.count_nonzero(dead)), share)


def semidefinite_share(core: Float) -> float:
    """By how much of itself the diagonal of a matrix of few inputs has to grow for positive semidefiniteness.

    Matrices that are singular in exact arithmetic are semidefinite already.
    """
    if len(core) > EXACT_SIZE:
        return 0.0
    try:
        scipy.linalg.cholesky(raise_diagonal(core, -CLEARLY), lower=True, check_finite=False)
        return 0.0
    except np.linalg.LinAlgError:
        pass
    share, unit = 0.0, float(np.finfo(np.float64).eps)
    while not exact.is_positive_semidefinite(raise_diagonal(core, share)):
        share = max(2.0 * share, unit)
        if share > NEGATIVE_EIGENVALUE_TOLERANCE:
            return 0.0
    # Twice as much keeps the smallest eigenvalue away from zero, and hence refitted weights small.
    return 2.0 * share


def raise_diagonal(gram: Float, share: float) -> Float:
    """A matrix with its diagonal larger by a share of itself."""
    result = np.array(gram)
    np.fill_diagonal(result, np.diag(gram) * (1.0 + share))
    return result


def live_inputs(gram: Float) -> Bool:
    """Mask of the inputs with energy: a zero diagonal entry of a PSD matrix makes its whole row zero."""
    return np.asarray(np.diag(gram) > 0.0)
