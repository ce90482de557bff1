"""The error of given weights, enclosed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels import exact
from layerbounds.kernels.factorization import UNIT

#: Errors of weights are computed exactly where extended precision leaves this share of them open, up to so many inputs.
VISIBLE, EXACT_INPUTS = 1e-8, 256
#: What rows of more inputs that are evaluated together may leave open: one by one they take up to seconds each.
VISIBLE_TOGETHER = 1e-6

#: Errors under a metric are computed exactly up to so many multiplications.
EXACT_WORK = 3e5
#: Several rows are evaluated in extended precision up to so many multiplications, and in double precision above.
EXTENDED_WORK = 2.5e8
#: Rows that are treated together, and more than underflow can do: to an error, and to its derivative by a weight.
CHUNK, UNDERFLOW, SLOPE_UNDERFLOW = 256, 1e-290, float(np.finfo(np.float64).tiny)

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
    if weights.ndim == 2 and len(weights) > 1 and gram.size * len(weights) > EXTENDED_WORK:
        low, high = objective_rows(gram, target, weights)
        if not np.all(np.isfinite(high)):
            return 0.0, np.inf
        return exact.float_below(_sum(low)), exact.float_above(_sum(high))
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


def metric_interval(gram: Float, metric: Float, target: Float, weights: Float) -> tuple[float, float]:
    """Enclosure of tr(Q (v − w) H (v − w)ᵀ), at least 0, in extended precision, or in double where that takes long.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    metric : ndarray of shape (rows, rows)
        Q.
    target, weights : ndarray of shape (n,) or (rows, n)
    """
    target, weights = np.atleast_2d(target), np.atleast_2d(weights)
    rows, n = target.shape
    if np.array_equal(target, weights):
        return 0.0, 0.0
    work = rows * n * (n + rows)
    wide = work <= EXTENDED_WORK
    kind, unit = (_LONG, _UNIT) if wide else (np.float64, UNIT)
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = weights.astype(kind) - target.astype(kind)
        between = (deviation @ gram.astype(kind)) @ deviation.T
        value = float(np.sum(metric.astype(kind) * between))
        # |d_rᵀHd_s| and all that it is added up from is at most the product of these.
        size = np.abs(deviation).astype(np.float64) @ entry_sizes(gram)
        error = 4 * (2 * n + 2 * rows + 16) * unit * float(size @ (np.abs(metric) @ size)) * 1.01
    error += UNIT * abs(value) + UNDERFLOW
    if not error <= VISIBLE * value and work <= EXACT_WORK:
        exactly = exact.metric_form(gram, metric, target, weights)
        return max(exact.float_below(exactly), 0.0), max(exact.float_above(exactly), 0.0)
    return (max(_below(value - error), 0.0), _above(value + error)) if np.isfinite(error + value) else (0.0, np.inf)


def _sum(values: Float) -> Fraction:
    return sum(map(Fraction, values.tolist()), Fraction(0))


def objective_rows(gram: Float, targets: Float, weights: Float) -> tuple[Float, Float]:
    """Enclosures of the errors of many rows, by one product in double precision (docs/numerics.md).

    Rows that this leaves visibly open are evaluated one by one.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        With a positive diagonal.
    targets, weights : ndarray of shape (rows, n)

    Returns
    -------
    low, high : ndarray of shape (rows,)
    """
    n = len(gram)
    low, high = np.zeros((2, len(targets)))
    size = entry_sizes(gram)
    visible = VISIBLE if n <= EXACT_INPUTS else VISIBLE_TOGETHER
    for begin in range(0, len(targets), CHUNK):
        rows = slice(begin, begin + CHUNK)
        deviation = weights[rows] - targets[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.einsum("ij,ij->i", deviation @ gram, deviation)
            charge = 4 * (n + 16) * UNIT * (np.abs(deviation) @ size) ** 2 + UNDERFLOW
            low[rows], high[rows] = value - charge, value + charge
        moved = deviation.any(axis=1)
        low[rows][~moved] = high[rows][~moved] = 0.0
        for row in np.flatnonzero(moved & ~((charge <= visible * value) & np.isfinite(value))):
            low[begin + row], high[begin + row] = objective_interval(gram, targets[begin + row], weights[begin + row])
    return np.maximum(low, 0.0), high


def entry_sizes(gram: Float) -> Float:
    """Numbers ν with |H_ik| ≤ ν_i ν_k, shape (n,): the roots of the diagonal, a little more where H has been rounded.

    With them the rounding of Hx is at most γ_n ν_i Σ ν_k|x_k|, without a product of absolute values.
    """
    root = np.sqrt(np.diag(gram))
    if not root.size:
        return root
    stripes = (slice(i, i + CHUNK) for i in range(0, len(gram), CHUNK))
    largest = max(float(np.max(np.abs(gram[rows]) / root[rows, None] / root)) for rows in stripes)
    return np.asarray(root * np.sqrt(max(largest, 1.0)) * (1 + 8 * UNIT))


def _below(value: float) -> float:
    return float(np.nextafter(value, -np.inf))


def _above(value: float) -> float:
    return float(np.nextafter(value, np.inf))
