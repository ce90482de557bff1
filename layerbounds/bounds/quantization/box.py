"""Multipliers of the box: the dual of min (z − w)ᵀH(z − w) over low ≤ z ≤ high."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float, Int

#: Rounds in which all violated variables change side at once, and after them rounds with the worst one alone.
_ROUNDS, _SINGLE_ROUNDS = 30, 400


def box_multipliers(covariance: Float, origin: Float, low: Float, high: Float, sides: Int) -> tuple[Float, Int]:
    """Primal–dual active-set method (Hintermüller, Ito & Kunisch, SIAM J. Optim. 13, 2002) in the dual.

    With the active variables W at their ends e, h_W = (H⁻¹)_WW⁻¹ (e_W − w_W) and z = w + (H⁻¹)_W h_W. Any result is
    valid as a tilt; the exact one makes the bound best.

    Parameters
    ----------
    covariance : ndarray of shape (n, n)
        H⁻¹.
    origin, low, high : ndarray of shape (n,)
        w and the box.
    sides : ndarray of int64, shape (n,)
        Guess: −1 active at the lower end, 1 at the upper, 0 inactive.

    Returns
    -------
    multipliers : ndarray of shape (n,)
        h = H(z − w), zero where the box is inactive.
    sides : ndarray of int64, shape (n,)
    """
    fixed = low == high
    side = np.where(fixed, -1, sides)
    h = np.zeros_like(origin)
    for round_number in range(_ROUNDS + _SINGLE_ROUNDS):
        active = np.flatnonzero(side)
        ends = np.where(side[active] < 0, low[active], high[active])
        h = np.zeros_like(origin)
        if active.size:
            block = np.ascontiguousarray(covariance[np.ix_(active, active)])
            _, solution, info = lapack.dposv(block, ends - origin[active], lower=1)
            if info != 0:
                break
            h[active] = np.ravel(solution)
        z = origin + covariance[:, active] @ h[active]
        below = np.where((side == 0) & (z < low), low - z, 0.0)
        above = np.where((side == 0) & (z > high), z - high, 0.0)
        wrong = np.where(~fixed & (side * h > 0), np.abs(h) * np.diag(covariance), 0.0)
        tolerance = 1e-9 * (1.0 + np.abs(low) + np.abs(high))
        change = np.maximum(np.maximum(below, above), wrong)
        change[change <= tolerance] = 0.0
        if not np.any(change):
            break
        if round_number >= _ROUNDS:
            worst = int(np.argmax(change))
            change = np.where(np.arange(len(change)) == worst, change, 0.0)
        changed = change > 0
        side = np.where(changed, np.where(below > 0, -1, np.where(above > 0, 1, 0)), side)
    h[(side * h > 0) & ~fixed] = 0.0
    return h, side
