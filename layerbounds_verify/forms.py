"""Integer forms of the codes in the bound of a dual point, beside single weights or blocks of them.

Levels are near scale · (code − zero), codes 0, 1, 2, …. With any multipliers ρ weights have the slopes 2(h − Uρ), U =
forms / scale, and each form adds the least 2ρ(t − y) + g(t − y)² over the integers t that it can be, y its value at z.
A form of levels differs from an integer by up to ``near``, as levels are rounded.
"""

from __future__ import annotations

from copy import copy
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import Minorant, Tangent
from layerbounds_verify.exact import RefusedError, fraction, power

#: Slopes are rounded to so many more bits than the multipliers have.
_MORE_BITS = 64


def with_forms(
    tangent: Tangent, values: Any, minorant: Minorant, rho: Any, scale: Any, zero: Any, count: Any
) -> tuple[Tangent, Fraction]:
    """The tangent with slopes h − Uρ, and what the forms add to a bound from it.

    Parameters
    ----------
    tangent : Tangent
    values : ndarray of shape (n, levels)
    minorant : Minorant
        Proven, with forms.
    rho : ndarray of shape (cuts,)
    scale, zero : ndarray of shape (n,)
    count : ndarray of int, shape (n,)
        How many codes each input has; further levels are the same again.
    """
    if rho.shape != minorant.weights.shape:
        raise RefusedError("its multipliers are not one for each form")
    added, pull = Fraction(0), [Fraction(0)] * len(scale)
    last = (count - 1).tolist()
    s, offset = [Fraction(x) for x in scale.tolist()], [Fraction(x) for x in zero.tolist()]
    point, levels = [fraction(z, tangent.a) for z in tangent.z], [list(map(Fraction, row)) for row in values.tolist()]
    levels = [row[:k] for row, k in zip(levels, count.tolist(), strict=True)]
    away = [max(abs(v / s[i] - code + offset[i]) for code, v in enumerate(row)) for i, row in enumerate(levels)]
    columns = zip(minorant.forms.T.astype(int).tolist(), minorant.weights.tolist(), rho.tolist(), strict=True)
    for form, weight, multiplier in columns:
        g, r, inputs = Fraction(weight), Fraction(multiplier), [i for i, c in enumerate(form) if c]
        y = sum((form[i] * (point[i] / s[i] + offset[i]) for i in inputs), Fraction(0))
        near = sum((abs(form[i]) * away[i] for i in inputs), Fraction(0))
        low, high = (sum(choose(form[i] * last[i], 0) for i in inputs) for choose in (min, max))
        vertex = round(y - r / g) if g else low
        tried = {low, high, *(min(max(vertex + move, low), high) for move in (-1, 0, 1))}
        farthest = max(abs(low - y), abs(high - y))
        least = min(2 * r * (t - y) + g * (t - y) ** 2 for t in tried) - near * (2 * abs(r) + g * (2 * farthest + near))
        added += _down(least)
        for i in inputs:
            pull[i] += form[i] * r / s[i]
    found, p = copy(tangent), tangent.a + tangent.b
    more = max(power(rho) + _MORE_BITS + max(int(np.frexp(scale)[1].max(initial=0)), 0) - p, 0)
    found.b, found.unit = tangent.b + more, tangent.unit + more
    found.value, found.d, found.shift = tangent.value << more, tangent.d << more, tangent.shift << more
    found.h = (tangent.h << more) - np.array([(x.numerator << p + more) // x.denominator for x in pull], dtype=object)
    # The slopes of inputs in forms are too large by less than a unit.
    reach = sum((max(abs(v - z) for v in row) for row, z, x in zip(levels, point, pull, strict=True) if x), Fraction(0))
    return found, added + _down(-reach * Fraction(2, 1 << p + more))


def _down(value: Fraction) -> Fraction:
    """A fraction with a power of two as denominator, lower by less than 2⁻¹⁰⁰ of it: sums of such stay short."""
    bits = max(value.denominator.bit_length() - abs(value.numerator).bit_length(), 0) + 100
    return Fraction((value.numerator << bits) // value.denominator, 1 << bits)
