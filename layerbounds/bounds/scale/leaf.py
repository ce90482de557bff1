"""The least error of given codes over all scales: what a point stands for that a search over scales has visited."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.kernels.factorization import UNIT

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)
#: Directions of the codes count as independent where their unit-diagonal Gram matrix exceeds this.
_INDEPENDENT = 1e-6
#: Roundings of the weights may be this large a share of their norm.
_SMALL = 0.1


def leaf_bound(gram: Float, target: Float, weights: Float, directions: Float, error: float) -> float:
    """Lower bound on f(v) for all v = Bx and their roundings to float64, from weights that are near their best.

    With g = BᵀH(v − w), f(Bx) ≥ f(v) − gᵀ(BᵀHB)⁻¹g for every x; v, and the weights that it stands for, may be
    roundings: ‖fl(v) − v‖_H ≤ u·Σ √H_ii·|v_i|.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target, weights : ndarray of shape (n,)
        w, and v.
    directions : ndarray of shape (n, k)
        B.
    error : float
        A lower bound on f(v).

    Returns
    -------
    float
        0 where nothing can be proven.
    """
    n, k = directions.shape
    norms = np.sqrt(np.diag(gram))
    moved = 1.01 * UNIT * float(norms @ np.abs(weights))
    root = np.sqrt(max(error, 0.0)) * (1.0 - 4.0 * UNIT) - moved
    if not root > 0.0:
        return 0.0
    wide, columns = gram.astype(_LONG), directions.astype(_LONG)
    deviation = weights.astype(_LONG) - target.astype(_LONG)
    pull = wide @ columns
    size = (np.abs(gram) @ np.abs(directions)) * (1.0 + 4.0 * n * UNIT)
    slope = np.abs(pull.T @ deviation).astype(np.float64)
    slope += 4.0 * (n + 4) * _UNIT_LONG * (size.T @ np.abs(deviation).astype(np.float64))
    square = (columns.T @ pull).astype(np.float64)
    square = (square + square.T) / 2.0
    scale = np.sqrt(np.diag(square))
    if not np.all(scale > 0.0):
        return 0.0
    # The slope at Bx instead of at its rounding v.
    slope += 1.01 * scale * moved
    hidden = 4.0 * (n + 4) * _UNIT_LONG * (np.abs(directions).T @ size) + 4.0 * UNIT * np.abs(square)
    unit_square = square / np.outer(scale, scale)
    share = hidden / np.outer(scale, scale)
    floor = 0.5 if k == 1 else _INDEPENDENT
    least = unit_square.copy()
    least[np.diag_indices(k)] -= floor + 1.01 * share.sum(axis=1)
    if not is_positive_semidefinite(least):
        return 0.0
    lost = 1.01 * float(np.sum((slope / scale) ** 2)) / floor
    value = root**2 * (1.0 - 8.0 * UNIT) - lost
    # With y the distance of Bx from the best point of the directions, its rounding moves it by ratio·y and what that
    # point itself is moved by; √(f + y²) − ratio·y ≥ √f·(1 − ratio).
    reach = norms @ np.abs(directions) / scale / np.sqrt(floor)
    ratio = 1.01 * UNIT * float(np.sum(reach))
    if not ratio < _SMALL or not value > 0.0:
        return 0.0
    moved += 1.01 * UNIT * float(np.sum(reach)) * float(np.sqrt(lost))
    root = np.sqrt(value) * (1.0 - ratio) - 1.01 * moved
    return float(max(root, 0.0) ** 2 * (1.0 - 8.0 * UNIT))
