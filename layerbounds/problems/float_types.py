"""Floating-point types that weights arrive in: one rounding to each, and what a rounded number can have been."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from layerbounds.arrays import Float


class FloatType(NamedTuple):
    """Binary digits of the significand, and the exponent of the smallest positive number."""

    digits: int
    smallest: int


FLOAT_TYPES = {
    "float64": FloatType(53, -1074),
    "float32": FloatType(24, -149),
    "bfloat16": FloatType(8, -133),
    "float16": FloatType(11, -24),
}


class Interval(NamedTuple):
    """Real numbers between two ends, each of which belongs to it or not."""

    low: Fraction
    low_closed: bool
    high: Fraction
    high_closed: bool

    def __contains__(self, value: object) -> bool:
        """Whether a number lies between the ends."""
        assert isinstance(value, Fraction)
        above = value > self.low or (self.low_closed and value == self.low)
        return above and (value < self.high or (self.high_closed and value == self.high))

    def meet(self, other: Interval) -> Interval | None:
        """What both have in common; None where that is nothing."""
        low, low_open = max((self.low, not self.low_closed), (other.low, not other.low_closed))
        high, high_closed = min((self.high, self.high_closed), (other.high, other.high_closed))
        if low > high or (low == high and (low_open or not high_closed)):
            return None
        return Interval(low, not low_open, high, high_closed)

    def minus(self, other: Interval) -> Interval:
        """The differences of a number of this interval and one of another."""
        low_closed, high_closed = self.low_closed and other.high_closed, self.high_closed and other.low_closed
        return Interval(self.low - other.high, low_closed, self.high - other.low, high_closed)

    def divided(self, value: Fraction) -> Interval:
        """The quotients by a number other than zero."""
        first, second = self.low / value, self.high / value
        if value > 0:
            return Interval(first, self.low_closed, second, self.high_closed)
        return Interval(second, self.high_closed, first, self.low_closed)


def rounded(values: Float, dtype: str) -> Float:
    """Float64 numbers rounded once to another type (to nearest, ties to even), as float64 numbers."""
    if dtype == "float64":
        return values
    kind = FLOAT_TYPES[dtype]
    _, exponent = np.frexp(values)
    unit = np.maximum(exponent - kind.digits, kind.smallest)
    return np.asarray(np.ldexp(np.rint(np.ldexp(values, -unit)), unit))


def rounds_from(value: float, dtype: str) -> Interval:
    """The real numbers that one rounding turns into ``value``, a number of the type."""
    kind = FLOAT_TYPES[dtype]
    if value == 0.0:
        half = Fraction(2) ** (kind.smallest - 1)
        return Interval(-half, True, half, True)
    size = abs(value)
    mantissa, exponent = np.frexp(size)
    unit = max(int(exponent) - kind.digits, kind.smallest)
    centre, gap = Fraction(size), Fraction(2) ** unit
    # Below a power of two the numbers lie twice as close, unless they are the smallest of the type.
    below = gap / 2 if mantissa == 0.5 and unit > kind.smallest else gap
    even = int(centre / gap) % 2 == 0
    interval = Interval(centre - below / 2, even, centre + gap / 2, even)
    return interval if value > 0 else interval.divided(Fraction(-1))
