"""Exact arithmetic on float64 matrices, which are integers times a power of two.

Fractions of integers grow without bound, so all of this is for small matrices.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float, Int

#: Digits of a float64, and the exponent of a zero: it shifts nothing.
_DIGITS, _ZERO = 53, 1 << 20
LARGEST = sys.float_info.max


def dyadic(values: Float, exponents: Int | None = None) -> tuple[list[int], int]:
    """Integers m and one exponent e with values = m·2^e exactly.

    Parameters
    ----------
    values : ndarray
        Finite; read in C order.
    exponents : ndarray of int64, optional
        Of a power of two for each value, by which it is multiplied first.
    """
    mantissa, exponent = np.frexp(np.ravel(values))
    whole = np.ldexp(mantissa, _DIGITS).astype(np.int64).tolist()
    powers = np.where(mantissa == 0.0, _ZERO, exponent.astype(np.int64) + (0 if exponents is None else exponents))
    least = int(powers.min(initial=_ZERO))
    if least == _ZERO:
        return [0] * len(whole), 0
    shifts = np.where(mantissa == 0.0, 0, powers - least).tolist()
    return [m << s for m, s in zip(whole, shifts, strict=True)], least - _DIGITS


def balance(gram: Float) -> Int:
    """Exponents e for which the diagonal of 2^(e_i + e_j)·h_ij lies in [1/4, 1); 0 where it is not positive."""
    diagonal = np.diag(gram)
    _, exponent = np.frexp(np.where(diagonal > 0.0, diagonal, 0.5))
    return np.asarray(-((exponent + 1) // 2), dtype=np.int64)


def balanced_integers(gram: Float, exponents: Int) -> tuple[list[list[int]], int]:
    """Rows of integers and an exponent e: the matrix 2^(e_i + e_j)·h_ij is the integers times 2^e."""
    n = len(gram)
    entries, exponent = dyadic(gram, np.ravel(exponents[:, None] + exponents[None, :]))
    return [entries[i * n : (i + 1) * n] for i in range(n)], exponent


def eliminate(rows: list[list[int]], pivot: int, previous: int) -> list[list[int]] | None:
    """One step of fraction-free elimination (Bareiss) of the symmetric matrix left over by earlier ones.

    Parameters
    ----------
    rows : list of list of int
        Schur complement times the product of the earlier pivots.
    pivot : int
        Row and column to eliminate; it is dropped.
    previous : int
        The entry that the last step divided by: 1 at first, then the pivot before.

    Returns
    -------
    list of list of int or None
        None where the pivot is not positive.
    """
    top = rows[pivot]
    p = top[pivot]
    if p <= 0:
        return None
    others = [i for i in range(len(rows)) if i != pivot]
    result = [[0] * len(others) for _ in others]
    for x, i in enumerate(others):
        row, factor = rows[i], top[i]
        for y in range(x, len(others)):
            j = others[y]
            value = (row[j] * p - factor * top[j]) // previous if factor else row[j] * p // previous
            result[x][y] = result[y][x] = value
    return result


def is_positive_semidefinite(gram: Float, less: int | None = None) -> bool:
    """Whether a symmetric matrix, less 2^−less of its diagonal if given, is positive semidefinite; decided exactly."""
    rows, _ = balanced_integers(gram, balance(gram))
    if less is not None:
        rows = [[(h << less) - (h if i == j else 0) for j, h in enumerate(row)] for i, row in enumerate(rows)]
    previous = 1
    while rows:
        # Pivots from the end, which is cheaper to drop.
        last = len(rows) - 1
        p = rows[last][last]
        if p < 0 or (p == 0 and any(rows[last])):
            return False
        if p == 0:
            rows = [row[:-1] for row in rows[:-1]]
            continue
        if any(rows[i][i] < 0 for i in range(last)):
            return False
        following = eliminate(rows, last, previous)
        assert following is not None
        rows, previous = following, p
    return True


def quadratic_form(gram: Float, target: Float, weights: Float) -> Fraction:
    """(v − w)ᵀH(v − w), exactly."""
    n = len(target)
    if n == 0:
        return Fraction(0)
    both, power = dyadic(np.concatenate([weights, target]))
    difference = [a - b for a, b in zip(both[:n], both[n:], strict=True)]
    active = [i for i in range(n) if difference[i]]
    entries, scale = dyadic(gram[np.ix_(active, active)])
    count, total = len(active), 0
    for x, i in enumerate(active):
        row = entries[x * count : (x + 1) * count]
        total += difference[i] * sum(h * difference[j] for h, j in zip(row, active, strict=True))
    return times_power(Fraction(total), scale + 2 * power)


def metric_form(gram: Float, metric: Float, target: Float, weights: Float) -> Fraction:
    """tr(Q (v − w) H (v − w)ᵀ), exactly.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    metric : ndarray of shape (rows, rows)
        Q.
    target, weights : ndarray of shape (rows, n)
        w and v.
    """
    rows, n = target.shape
    h, h_power = dyadic(gram)
    q, q_power = dyadic(metric)
    both, power = dyadic(np.stack([weights, target]))
    size = rows * n
    moved = [v - w for v, w in zip(both[:size], both[size:], strict=True)]
    deviation = [moved[r * n : (r + 1) * n] for r in range(rows)]
    matrix = [h[i * n : (i + 1) * n] for i in range(n)]
    pulled = [[sum(x * y for x, y in zip(row, d, strict=True)) for row in matrix] for d in deviation]
    total = 0
    for r, d in enumerate(deviation):
        for s, other in enumerate(pulled):
            if q[r * rows + s]:
                total += q[r * rows + s] * sum(x * y for x, y in zip(d, other, strict=True))
    return times_power(Fraction(total), h_power + q_power + 2 * power)


def times_power(value: Fraction, exponent: int) -> Fraction:
    """Value · 2^exponent."""
    return value * (1 << exponent) if exponent >= 0 else value / (1 << -exponent)


def float_below(value: Fraction) -> float:
    """A float64 that is not larger, next to the value."""
    try:
        result = float(value)
    except OverflowError:
        return LARGEST if value > 0 else -math.inf
    return result if Fraction(result) <= value else float(np.nextafter(result, -np.inf))


def float_above(value: Fraction) -> float:
    """A float64 that is not smaller, next to the value."""
    try:
        result = float(value)
    except OverflowError:
        return math.inf if value > 0 else -LARGEST
    return result if Fraction(result) >= value else float(np.nextafter(result, np.inf))
