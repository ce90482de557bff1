"""Validation of Gram matrices: symmetry, positive semidefiniteness, dead inputs.

The certificate is about the stored float64 matrix, so every repair is made here, once, and is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from scipy.linalg.lapack import dpotrf

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
#: Rows and columns of the blocks in which large matrices are gone through, so that nothing of their size is made.
_BLOCK = 512
#: Live inputs beyond which all eigenvalues take much longer than a second factorization.
_MANY = 2048
#: Products that find an eigenvalue near the largest one.
_POWERS = 10


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
        already proved positive definiteness. Of a singular matrix of more than 2,048 live inputs, a bound.
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


class ValidatedGram:
    """The Gram matrices of a layer's groups, validated and repaired; layers that see the same inputs hold the same one.

    Parameters
    ----------
    matrices : ndarray of shape (groups, n, n)
        Finite float64 matrices XᵀX/N. The array is taken over: it is repaired in place, and belongs to this object.
    what : str
        How error messages call it.

    Attributes
    ----------
    matrices : ndarray of shape (groups, n, n)
        Exactly symmetric; rows of dead inputs are exactly zero. Not to be changed.
    reports : tuple of GramReport
        What was found and repaired, one per group.

    Raises
    ------
    InputError
        See `repair_gram`.
    """

    def __init__(self, matrices: Float, what: str) -> None:
        groups = len(matrices)
        self.matrices = matrices
        self.reports: tuple[GramReport, ...] = tuple(
            repair_gram(gram, what + (f" of group {i}" if groups > 1 else "")) for i, gram in enumerate(matrices)
        )

    @classmethod
    def stored(cls, matrices: Float, reports: Sequence[GramReport], what: str) -> ValidatedGram:
        """Matrices that were validated before they were stored, bit by bit, and what was found then.

        They are validated once more, on a copy: repairing a repaired matrix may change its last digits.

        Parameters
        ----------
        matrices : ndarray of shape (groups, n, n)
            Taken over.
        reports : sequence of GramReport
            One for each; what computing needs of them is found anew.
        what : str

        Raises
        ------
        InputError
            If they are no Gram matrices, or not repaired.
        """
        again = cls(matrices.copy(), what)
        for gram, report in zip(matrices, again.reports, strict=True):
            dead = np.diag(gram) <= 0.0
            if report.asymmetry > 0.0 or gram[dead].any():
                raise InputError(f"{what} is not as it was stored; write the file again.")
        again.reports = tuple(
            replace(report, dead=found.dead, raised=_raised(gram))
            for gram, report, found in zip(matrices, reports, again.reports, strict=True)
        )
        again.matrices = matrices
        return again


def repair_gram(gram: Float, what: str) -> GramReport:
    """Symmetrise a Gram matrix and project it onto the positive semidefinite cone where rounding left it, in place.

    Beside the matrix itself one of its size is in memory, and two where a matrix is projected.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Finite float64 matrix XᵀX/N. Afterwards it is exactly symmetric, and rows of dead inputs are exactly zero.
    what : str
        How error messages call the matrix.

    Returns
    -------
    GramReport

    Raises
    ------
    InputError
        If the asymmetry exceeds 1e-6 of the largest entry, the smallest eigenvalue lies below -1e-6 of the
        largest, or an input is so small or so large that float64 cannot compute with its square.
    """
    largest = max(float(np.max(gram, initial=0.0)), -float(np.min(gram, initial=0.0)))
    if largest == 0.0:
        gram[...] = 0.0
        return GramReport(0.0, False, 0.0, gram.shape[0])
    least = float(np.min(np.diag(gram), where=np.diag(gram) > 0.0, initial=np.inf))
    if least < SMALLEST_ENTRY or largest > LARGEST_ENTRY:
        extreme = least if least < SMALLEST_ENTRY else largest
        raise InputError(
            f"{what} has an entry of {extreme:.1e}, and float64 computes with {SMALLEST_ENTRY:g} to "
            f"{LARGEST_ENTRY:g}; rescale the inputs, or set those to zero that are nothing beside the others."
        )
    asymmetry = symmetrise(gram) / largest
    if asymmetry > ASYMMETRY_TOLERANCE:
        raise InputError(
            f"{what} is not symmetric (largest difference between mirrored entries is {asymmetry:.1e} of the "
            "largest entry); pass XᵀX/N computed from the layer's inputs."
        )
    min_eigenvalue = _smallest_eigenvalue(gram)
    if min_eigenvalue is not None and min_eigenvalue < -NEGATIVE_EIGENVALUE_TOLERANCE:
        raise InputError(
            f"{what} is not positive semidefinite (smallest eigenvalue {min_eigenvalue:.1e} of the largest); "
            "pass XᵀX/N computed from the layer's inputs, in float64 if possible."
        )
    # A rank-deficient Gram has eigenvalues of rounding size on both sides of zero: those are left alone.
    projected = min_eigenvalue is not None and min_eigenvalue < -_rounding(gram)
    if projected:
        _project(gram)
    dead = np.diag(gram) <= 0.0
    # Nothing is written without need: a matrix that stays on disk would come into memory.
    if gram[dead].any():
        gram[dead, :] = 0.0
        gram[:, dead] = 0.0
    return GramReport(asymmetry, projected, min_eigenvalue, int(np.count_nonzero(dead)), _raised(gram))


def _raised(gram: Float) -> float:
    """See `GramReport.raised`."""
    live = live_inputs(gram)
    return semidefinite_share(_live_part(gram, live)) if np.count_nonzero(live) <= EXACT_SIZE else 0.0


def symmetrise(gram: Float) -> float:
    """Replace mirrored entries by their mean, in place; the largest difference between them."""
    difference = 0.0
    for i in range(0, len(gram), _BLOCK):
        for j in range(i, len(gram), _BLOCK):
            upper = gram[i : i + _BLOCK, j : j + _BLOCK]
            lower = gram[j : j + _BLOCK, i : i + _BLOCK]
            largest = float(np.max(np.abs(upper - lower.T)))
            if largest > 0.0:
                mean = 0.5 * (upper + lower.T)
                upper[...] = mean
                lower[...] = mean.T
                difference = max(difference, largest)
    return difference


def _nonzero(gram: Float) -> Bool:
    """Mask of the columns that are not zero."""
    return np.asarray(gram.any(axis=0))


def _live_part(gram: Float, live: Bool) -> Float:
    """A copy of the rows and columns of some inputs."""
    return gram.copy() if live.all() else gram[np.ix_(live, live)]


def _rounding(gram: Float) -> float:
    """The size, relative to the largest eigenvalue, of negative eigenvalues that are rounding."""
    return int(np.count_nonzero(_nonzero(gram))) * float(np.finfo(np.float64).eps)


def _smallest_eigenvalue(gram: Float) -> float | None:
    """The smallest eigenvalue of a symmetric matrix without its rows of zeros, relative to the largest.

    None where a Cholesky factorization proves the matrix positive definite. For large matrices a number of rounding
    size below zero may be a bound: it takes a second factorization instead of all eigenvalues.
    """
    live = _nonzero(gram)
    # Transposed, a symmetric matrix is in the order that LAPACK overwrites.
    core = _live_part(gram, live)
    if dpotrf(core.T, lower=1, clean=0, overwrite_a=1)[1] == 0:
        return None
    # What was overwritten goes before the next copy is made.
    del core
    core = _live_part(gram, live)
    if len(core) > _MANY:
        rounding = _rounding(gram)
        core[np.diag_indices(len(core))] += rounding * _large_eigenvalue(core)
        if dpotrf(core.T, lower=1, clean=0, overwrite_a=1)[1] == 0:
            return -rounding
        del core
        core = _live_part(gram, live)
    values = scipy.linalg.eigvalsh(core.T, overwrite_a=True, check_finite=False)
    top = float(values[-1])
    return float(values[0]) / top if top > 0 else -1.0


def _large_eigenvalue(gram: Float) -> float:
    """A number a little below the largest eigenvalue of a symmetric matrix."""
    image = np.sqrt(np.maximum(np.diag(gram), 0.0))
    value = 0.0
    for _ in range(_POWERS):
        if not image.any():
            break
        # The largest entry first: squares of large numbers overflow.
        image /= np.max(np.abs(image))
        vector = image / np.linalg.norm(image)
        image = gram @ vector
        value = max(value, float(vector @ image))
    return value


def _project(gram: Float) -> None:
    """Add to a symmetric matrix what its negative eigenvalues lack, in place."""
    live = _nonzero(gram)
    index = np.flatnonzero(live)
    values, vectors = scipy.linalg.eigh(_live_part(gram, live).T, overwrite_a=True, check_finite=False)
    below = vectors[:, values < 0.0]
    missing = below * -values[values < 0.0]
    for i in range(0, len(index), _BLOCK):
        rows = slice(i, i + _BLOCK)
        gram[np.ix_(index[rows], index)] += missing[rows] @ below.T
    symmetrise(gram)


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
