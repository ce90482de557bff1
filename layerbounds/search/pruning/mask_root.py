"""Diagonals for the root of a search over masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.centre import Centre
from layerbounds.bounds.minorants.diagonal import certified_minorant
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, semidefinite_shift
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.factorization import UNIT

#: Seconds per cubed number of units of a step of the centre's; the least seconds that count.
STEP_CUBIC, AT_ONCE = 2e-10, 0.05
#: The same for the proof that the matrix is positive semidefinite, and how many are tried where it is singular.
PROOF_CUBIC, PROOFS = 3e-11, 8
#: Steps towards the centre before the relaxation counts, and the share of the way after them.
CENTRE_MOVES, SHARE = 3, 0.15
#: Barrier weight: first, factor, last; the least weight of a unit, relative to the mean.
MU_FIRST, MU_FACTOR, MU_LAST, FLOOR = 1.0, 0.8, 0.02, 0.05
#: Steps in all, and after how many that gain less than a share of the gap it ends.
MOST_STEPS, STALLED, PROGRESS = 40, 4, 0.005


def centre_diagonal(
    matrix: Float, relax: Callable[[Float], tuple[float, Float]], goal: float, remaining: Callable[[], float]
) -> Float | None:
    """A proven diagonal D ⪯ A that a relaxation gains most from.

    The weights z(1 − z) are what the bound gains from the entries of D; steps are those of `Centre`.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        A.
    relax : callable
        From a diagonal to its bound and the point z.
    goal : float
        A bound that ends the work.
    remaining : callable
        Seconds for it.

    Returns
    -------
    ndarray of shape (n,) or None
        None where A is numerically singular or there is no time.
    """
    n = len(matrix)
    # What a step takes here and now: the machine may be busy.
    left = remaining()
    step = STEP_CUBIC * n**3
    if 3.0 * step > max(left, AT_ONCE):
        return None
    centre = Centre(matrix, np.arange(n))
    step = max(step, 0.5 * (left - remaining())) if left < np.inf else 0.0
    for _ in range(CENTRE_MOVES):
        if not centre.usable or 2.0 * step > max(remaining(), AT_ONCE) or not centre.move():
            break
    if not centre.usable:
        return None
    centre.share = SHARE
    mu, best, value, stalled = MU_FIRST, np.zeros(n), -np.inf, 0
    for _ in range(MOST_STEPS):
        checkpoint()
        left, d = remaining(), centre.blocks[:, 0, 0].copy()
        found, z = relax(d)
        stalled = stalled + 1 if found <= value + PROGRESS * (goal - value) else 0
        if found > value:
            best, value = d, found
        if value >= goal or stalled >= STALLED or step > max(remaining(), AT_ONCE):
            break
        weight = d * z * (1.0 - z)
        mean = float(weight.mean())
        if mean <= 0.0 or not (centre.move(np.maximum(weight / mean, FLOOR) / mu) or centre.retreat()):
            break
        mu = max(MU_FACTOR * mu, MU_LAST)
        if left < np.inf:
            step = max(step, left - remaining())
    return certified_minorant(matrix, best)


def lowest_diagonal(matrix: Float, seconds: float) -> Float:
    """A diagonal D ⪯ A that asks for little: zero where A is proven positive semidefinite, else negative entries.

    Rounding leaves stored Gram matrices with negative eigenvalues that are small beside the largest input, and need not
    be small beside the others.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        A.
    seconds : float
        Time for factorizations.
    """
    n = len(matrix)
    left, proof = max(seconds, AT_ONCE), PROOF_CUBIC * n**3
    if proof <= left and is_positive_semidefinite(matrix.copy()):
        return np.zeros(n)
    shifted = semidefinite_shift(matrix) if PROOFS * proof <= left else None
    if shifted is not None:
        return np.asarray(0.0 - shifted[1])
    # A diagonally dominant matrix is positive semidefinite.
    diagonal = np.diag(matrix)
    beside = (np.abs(matrix).sum(axis=1) - np.abs(diagonal)) * (1.0 + 4.0 * (n + 8) * UNIT)
    return np.asarray(0.0 - np.maximum(beside - diagonal, 0.0) * (1.0 + 4.0 * UNIT))
