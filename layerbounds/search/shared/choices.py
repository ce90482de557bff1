"""The least error of one choice of inputs for several rows, from below."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start
from layerbounds.kernels.factorization import UNIT, cholesky, gamma

#: Products of more numbers than this are made in double precision alone.
EXTENDED = 2e8
#: What double precision may leave open.
VISIBLE = 1e-9

_EXTENDED_UNIT = float(np.finfo(np.longdouble).eps)


def choice_bound(gram: Float, rows: Float, inputs: Int) -> float:
    """Lower bound on Σ (v − w)ᵀH(v − w) over weights on some inputs; 0 if these are dependent.

    For any v there, the minimum is f(v) − Σ rᵀ(H_SS)⁻¹r with r = (H(v − w))_S, and rᵀ(H_SS)⁻¹r ≤ Σ r_i²/δ_i for a
    diagonal δ ⪯ H_SS. Extended precision where the other is not enough and that takes no more than a second or so.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    rows : ndarray of shape (rows, n)
        The targets w.
    inputs : ndarray of int64
        S.
    """
    factor, delta = np.zeros((0, 0)), np.zeros(0)
    if len(inputs):
        block = np.ascontiguousarray(gram[np.ix_(inputs, inputs)])
        lower = cholesky(block)
        if lower is None:
            return 0.0
        factor, delta = lower, certified_minorant(block, 0.5 * interior_start(block))
        if not np.all(delta > 0):
            return 0.0
    bound = 0.0
    for extended in (False, True):
        if extended and float(len(gram)) ** 2 * len(rows) > EXTENDED:
            break
        value, charge = _refitted(gram, rows, inputs, factor, delta, extended)
        bound = max(bound, (value - charge) * (1.0 - 4.0 * UNIT))
        if charge <= VISIBLE * value:
            break
    return bound


def _refitted(
    gram: Float, rows: Float, inputs: Int, factor: Float, delta: Float, extended: bool
) -> tuple[float, float]:
    """The error of refitted weights, and what rounding and what is left of the normal equations make uncertain."""
    n, many = len(gram), len(rows)
    wide: Any = gram.astype(np.longdouble) if extended else gram
    unit = _EXTENDED_UNIT if extended else UNIT
    deviation: Any = -(rows.T.astype(np.longdouble) if extended else rows.T)
    charge = 0.0
    # In extended precision |H||x| is formed in double precision, a little larger.
    size = np.abs(gram)
    if len(inputs):
        for _ in range(3):
            residual = (wide[inputs] @ deviation).astype(np.float64)
            deviation[inputs] -= scipy.linalg.cho_solve((factor, True), residual, check_finite=False)
        error = 2.0 * (n + 4) * unit * (size[inputs] @ np.abs(deviation).astype(np.float64))
        largest = np.abs((wide[inputs] @ deviation).astype(np.float64)) * (1.0 + 2.0 * UNIT) + error * (1.0 + 1e-9)
        charge = float(np.sum(np.sum(largest**2, axis=1) / delta)) * (1.0 + gamma(n + many + 16))
    magnitude = np.abs(deviation).astype(np.float64) * (1.0 + 2.0 * UNIT)
    rounding = 2.0 * (n + many + 4) * unit * float(np.sum(magnitude * (size @ magnitude))) * (1.0 + 1e-9)
    return float(np.sum(deviation * (wide @ deviation))), rounding + charge
