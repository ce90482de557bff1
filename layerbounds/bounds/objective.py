"""The error of given weights, enclosed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels import exact

#: Errors of weights are computed exactly where extended precision leaves this share of them open, up to so many inputs.
VISIBLE, EXACT_INPUTS = 1e-8, 256

_LONG = np.longdouble
_UNIT = float(np.finfo(_LONG).eps)


def objective_interval(gram: Float, target: Float, weights: Float, most: int = EXACT_INPUTS) -> tuple[float, float]:
    """Enclosure of Σ (v − w)ᵀH(v − w) over the rows of v, in extended precision, with an a-priori error bound.

    Where that leaves visibly open what it is, as under cancellation, up to ``most`` inputs are evaluated exactly.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target, weights : ndarray of shape (n,) or (rows, n)
    """
    deviation = np.atleast_2d(weights.astype(_LONG) - target.astype(_LONG))
    matrix = gram.astype(_LONG)
    size = np.abs(deviation)
    value, magnitude = _LONG(0), _LONG(0)
    for row, absolute in zip(deviation, size, strict=True):
        value += row @ (matrix @ row)
        if len(gram) > EXACT_INPUTS:
            # For large matrices the magnitude is summed in float64, which is many times faster.
            double = absolute.astype(np.float64)
            magnitude += 1.01 * (double @ (np.abs(gram) @ double)) + np.finfo(np.float64).tiny * np.any(double)
        else:
            magnitude += absolute @ (np.abs(matrix) @ absolute)
    error = 2 * (len(gram) + len(deviation) + 3) * _UNIT * magnitude
    if value == 0 and error == 0:
        return 0.0, 0.0
    if not error <= VISIBLE * value and len(gram) <= most:
        pairs = zip(np.atleast_2d(target), np.atleast_2d(weights), strict=True)
        exactly = sum((exact.quadratic_form(gram, w, v) for w, v in pairs), Fraction(0))
        return max(exact.float_below(exactly), 0.0), max(exact.float_above(exactly), 0.0)
    return max(_below(float(value - error)), 0.0), max(_above(float(value + error)), 0.0)


def _below(value: float) -> float:
    return float(np.nextafter(value, -np.inf))


def _above(value: float) -> float:
    return float(np.nextafter(value, np.inf))
