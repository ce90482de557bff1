"""Recognition of scales: which s, and which zero point, explain weights that were rounded once.

A weight v that is the rounding of s·c came from an interval of real numbers around it, so that s lies in that interval
over c. A row is explained by the scales that lie in such an interval of every weight. A weight takes as many different
values as there are levels at most, the largest of which has few codes to try: with each, floating-point arithmetic
(rounded outward) says which codes are left for the other values, and rational arithmetic decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.problems.float_types import Interval, rounded, rounds_from

#: Outward rounding of quotients of floating-point numbers.
_SLACK = 2.0**-50
#: Where a type is too coarse to tell codes apart so many choices are followed up, which is far more than occur.
_MOST_STEPS = 1024
#: Scales that are tried for one whose zero point float64 arithmetic gives the weights with.
_SCALES = 16
_SMALLEST = float(np.finfo(np.float64).smallest_subnormal)


@dataclass(frozen=True, eq=False)
class ScaleFit:
    """Scales, zero points and codes: weights are ``scale * (codes - zero_point)``, rounded once.

    Attributes
    ----------
    scale, zero_point : ndarray of shape (groups,)
    codes : ndarray of the shape of the weights
    low, high : ndarray of shape (groups,)
        With these codes and zero points, all scales in between explain the weights.
    """

    scale: Float
    zero_point: Float
    codes: Float
    low: Float
    high: Float


@dataclass(frozen=True, eq=False)
class Explanation:
    """The scale, the scales that explain as much, the zero point and the codes of some values."""

    scale: float
    low: float
    high: float
    zero_point: float
    codes: Float


@dataclass(frozen=True, eq=False)
class Box:
    """Codes c whose multiples s·c by positive scales are allowed: scale sign·s times (q − zero), q = sign·c + zero.

    Attributes
    ----------
    codes : ndarray
        Ascending.
    """

    codes: Float
    sign: float
    zero: float

    def explanation(self, scale: float, codes: Float) -> Explanation:
        """In terms of the allowed set."""
        signed = self.sign * scale
        return Explanation(signed, signed, signed, self.zero, self.sign * codes + self.zero)


@dataclass(frozen=True, eq=False)
class _Values:
    """Different values, ascending, and the real numbers that they are roundings of.

    Attributes
    ----------
    number : ndarray of shape (values,)
    came_from : list of Interval
    low, high : ndarray of shape (values,)
        Ends of the intervals, rounded outward.
    dtype : str
        To which they were rounded.
    """

    number: Float
    came_from: list[Interval]
    low: Float
    high: Float
    dtype: str

    @property
    def largest(self) -> int:
        """Where the value of the largest size is."""
        return int(np.argmax(np.abs(self.number)))


def _read(values: Float, dtype: str) -> _Values:
    came_from = [rounds_from(v, dtype) for v in values.tolist()]
    low = np.nextafter([float(e.low) for e in came_from], -np.inf)
    high = np.nextafter([float(e.high) for e in came_from], np.inf)
    return _Values(values, came_from, low, high, dtype)


def explain(values: Float, codes: Float, dtype: str, powers_of_two: bool = False) -> Iterator[Explanation]:
    """Positive scales s for which all values are roundings of s·code, the largest scales first.

    Parameters
    ----------
    values : ndarray of shape (values,)
        Ascending and distinct.
    codes : ndarray of shape (levels,)
        Ascending and distinct.
    dtype : str
        A key of `FLOAT_TYPES`.
    powers_of_two : bool
        Whether scales are powers of two.

    Yields
    ------
    Explanation
        With zero point 0; none if the values are not allowed.
    """
    if len(values) > len(codes):
        return
    if not np.any(values):
        if np.any(codes == 0):
            yield Explanation(1.0, 0.0, np.inf, 0.0, np.zeros(len(values)))
        return
    read = _read(values, dtype)
    for anchor, first, last in _candidates(read, codes):
        yield from _explanations(read, anchor, codes, first, last, powers_of_two)


def explain_at_once(values: Float, codes: Float, span: int | None = None) -> Explanation | None:
    """The largest float64 scale whose products with codes are the values themselves, without exact arithmetic.

    Parameters
    ----------
    values, codes : ndarray
        As in `explain`, float64 numbers.
    span : int, optional
        The largest difference of two codes, 0 among them, where the codes are −span, …, span; the zero point is then
        one of 0, …, span, as near to their middle as possible.
    """
    anchor = float(values[np.argmax(np.abs(values))])
    choices = codes[codes * np.sign(anchor) > 0]
    if anchor == 0.0 or len(values) > len(codes) or not len(choices):
        return None
    choices = choices[np.argsort(np.abs(choices), kind="stable")]
    scale = anchor / choices
    edges = 0.5 * (codes[1:] + codes[:-1])
    chosen = codes[np.searchsorted(edges, values / scale[:, None])]
    # A product that rounds to the largest value has a factor within two units in the last place of the quotient.
    near = scale[:, None] + np.spacing(scale)[:, None] * np.arange(-2.0, 3.0)
    exactly = np.all(near[:, :, None] * chosen[:, None, :] == values, axis=2)
    if span is not None:
        low, high = np.minimum(chosen.min(axis=1), 0.0), np.maximum(chosen.max(axis=1), 0.0)
        exactly &= (high - low <= span)[:, None]
    rows = np.flatnonzero(exactly.any(axis=1))
    if not len(rows):
        return None
    row = int(rows[0])
    found = float(near[row][exactly[row]][np.argmin(np.abs(near[row][exactly[row]] - scale[row]))])
    zero = 0.0
    if span is not None:
        least, most = -float(low[row]), span - float(high[row])
        zero = float(np.floor((least + most) / 2))
    return Explanation(found, found, found, zero, chosen[row] + zero)


def explain_shifted(values: Float, levels: int, dtype: str) -> Iterator[Explanation]:
    """The same for codes q − z, q one of 0, …, levels − 1 and z, too."""
    if len(values) > levels:
        return
    if not np.any(values):
        yield Explanation(1.0, 0.0, np.inf, 0.0, np.zeros(len(values)))
        return
    codes = np.arange(1.0 - levels, levels)
    read = _read(values, dtype)
    for anchor, first, last in _candidates(read, codes):
        least = max(0, int(np.max(-codes[last - 1])))
        most = min(levels - 1, int(np.min(levels - 1 - codes[first])))
        middle = (least + most) / 2
        for zero in sorted(range(least, most + 1), key=lambda z: (abs(z - middle), z)):
            window = slice(levels - 1 - zero, 2 * levels - 1 - zero)
            begin = np.maximum(first, window.start) - window.start
            end = np.minimum(last, window.stop) - window.start
            for found in _explanations(read, anchor, codes[window], begin, end, False):
                yield Explanation(found.scale, found.low, found.high, float(zero), found.codes + zero)


def _candidates(read: _Values, codes: Float) -> list[tuple[float, Int, Int]]:
    """Codes of the value of the largest size, with the codes first…last − 1 that are then left for each value."""
    anchor = read.largest
    choices = codes[codes * np.sign(read.number[anchor]) > 0]
    choices = choices[np.argsort(np.abs(choices), kind="stable")]
    ends = np.abs([read.low[anchor], read.high[anchor]])
    least = np.maximum(ends.min() / np.abs(choices) * (1 - _SLACK) - _SMALLEST, 0.0)[:, None]
    most = (ends.max() / np.abs(choices) * (1 + _SLACK) + _SMALLEST)[:, None]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        low = np.where(read.low < 0, read.low / least * (1 + _SLACK), read.low / most * (1 - _SLACK))
        high = np.where(read.high > 0, read.high / least * (1 + _SLACK), read.high / most * (1 - _SLACK))
    first = np.searchsorted(codes, np.where(np.isnan(low), -np.inf, low))
    last = np.searchsorted(codes, np.where(np.isnan(high), np.inf, high), side="right")
    return [(float(choices[i]), first[i], last[i]) for i in np.flatnonzero(np.all(first < last, axis=1))]


def _explanations(
    read: _Values, anchor: float, codes: Float, first: Int, last: Int, powers_of_two: bool
) -> Iterator[Explanation]:
    """What exact arithmetic leaves of one code of the largest value."""
    left = [read.came_from[read.largest].divided(Fraction(anchor))]
    for index in np.argsort(last - first, kind="stable").tolist():
        origin, sign = read.came_from[index], np.sign(read.number[index])
        parts = [
            Interval(Fraction(0), False, left[-1].high, True) if c == 0 else origin.divided(Fraction(c))
            for c in codes[first[index] : last[index]].tolist()
            if (c == 0 and Fraction(0) in origin) or c * sign > 0 or (c != 0 and sign == 0)
        ]
        left = _union(both for a in left for b in parts if (both := a.meet(b)) is not None)
        if not left:
            return
    for interval in left:
        for scale in _powers(interval) if powers_of_two else [_choose(interval)]:
            chosen = [
                next(c for c in codes[a:b].tolist() if Fraction(c) * scale in origin)
                for a, b, origin in zip(first, last, read.came_from, strict=True)
            ]
            exactly = _range(interval, read.came_from, chosen)
            low, high = (float(scale), float(scale)) if powers_of_two else (float(exactly.low), float(exactly.high))
            yield Explanation(float(scale), low, high, 0.0, np.array(chosen))


def _range(interval: Interval, origins: list[Interval], codes: list[float]) -> Interval:
    """The scales that explain all values by these codes, a part of an interval that has some."""
    for origin, code in zip(origins, codes, strict=True):
        met = interval if code == 0 else interval.meet(origin.divided(Fraction(code)))
        assert met is not None
        interval = met
    return interval


def _union(intervals: Iterator[Interval]) -> list[Interval]:
    """Ascending and apart from each other."""
    merged: list[Interval] = []
    for part in sorted(intervals, key=lambda i: (i.low, not i.low_closed)):
        last = merged[-1] if merged else None
        if (
            last is None
            or part.low > last.high
            or (part.low == last.high and not (part.low_closed or last.high_closed))
        ):
            merged.append(part)
        elif (part.high, part.high_closed) > (last.high, last.high_closed):
            merged[-1] = Interval(last.low, last.low_closed, part.high, part.high_closed)
    return merged


def _choose(interval: Interval) -> Fraction:
    """A number of an interval of positive ones: a float64 number where there is one."""
    middle = (interval.low + interval.high) / 2
    for number in (float(middle), _above(interval.low), _below(interval.high)):
        for near in (number, float(np.nextafter(number, 0.0)), float(np.nextafter(number, np.inf))):
            if near > 0 and np.isfinite(near) and Fraction(near) in interval:
                return Fraction(near)
    return middle


def _above(value: Fraction) -> float:
    number = float(value)
    return number if Fraction(number) >= value else float(np.nextafter(number, np.inf))


def _below(value: Fraction) -> float:
    number = float(value)
    return number if Fraction(number) <= value else float(np.nextafter(number, -np.inf))


def _powers(interval: Interval) -> list[Fraction]:
    """The powers of two in an interval of positive numbers that does not begin at 0."""
    exponent = interval.low.numerator.bit_length() - interval.low.denominator.bit_length() - 1
    found = []
    while (power := Fraction(2) ** exponent) <= interval.high:
        if power in interval:
            found.append(power)
        exponent += 1
    return found


def explain_real(values: Float, levels: int, dtype: str) -> Iterator[Explanation]:
    """The same as `explain_shifted` where z is any real number: without loss of generality the first code is 0."""
    if len(values) > levels:
        return
    if len(values) == 1:
        yield constant(float(values[0]), 1)
        return
    read = _read(values, dtype)
    steps = [0]
    for top in range(len(values) - 1, levels):
        width = read.came_from[-1].minus(read.came_from[0]).divided(Fraction(top))
        scales = width.meet(Interval(Fraction(0), False, max(width.high, Fraction(0)), True))
        if scales is None:
            continue
        low, high = (
            max(float(scales.low) * (1 - _SLACK) - _SMALLEST, 0.0),
            float(scales.high) * (1 + _SLACK) + _SMALLEST,
        )
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            first = np.ceil((read.low - read.high[0]) / high * (1 - _SLACK))
            last = np.floor((read.high - read.low[0]) / low * (1 + _SLACK))
        first = np.clip(np.where(np.isnan(first), 0.0, first), np.arange(len(values)), top)
        last = np.clip(np.where(np.isnan(last), np.inf, last), 0, top - np.arange(len(values))[::-1])
        first[0], last[0], first[-1] = 0.0, 0.0, top
        if np.any(first > last):
            continue
        for codes, left in _assignments(read, first.astype(int).tolist(), last.astype(int).tolist(), scales, steps):
            yield _with_offset(read, codes, left)
            break


def constant(value: float, count: int) -> Explanation:
    """A real zero point one step beside code 0 gives any number to all weights."""
    scale = abs(value) or 1.0
    return Explanation(scale, scale, scale, 0.0 - float(np.sign(value)), np.zeros(count))


def _assignments(
    read: _Values, first: list[int], last: list[int], scales: Interval, steps: list[int]
) -> Iterator[tuple[list[int], Interval]]:
    """Ascending codes, from first to last each, and the scales for which some zero point explains the values."""
    stack: list[tuple[list[int], Interval]] = [([0], scales)]
    while stack and steps[0] < _MOST_STEPS:
        codes, left = stack.pop()
        index = len(codes)
        if index == len(read.number):
            yield codes, left
            continue
        steps[0] += 1
        # The likeliest code comes last and is taken from the stack first.
        likely = float(read.number[index] - read.number[0]) / float((left.low + left.high) / 2)
        span = range(max(first[index], codes[-1] + 1), last[index] + 1)
        for code in sorted(span, key=lambda c: -abs(c - likely)):
            met = _with_code(read, codes, code, left)
            if met is not None:
                stack.append(([*codes, code], met))


def _with_code(read: _Values, codes: list[int], code: int, scales: Interval) -> Interval | None:
    """The scales that are left when the next value has a code: its distance from every other one is s times theirs."""
    index = len(codes)
    own = read.came_from[index]
    apart = code - np.array(codes, dtype=np.float64)
    low, high = (read.low[index] - read.high[:index]) / apart, (read.high[index] - read.low[:index]) / apart
    # The ends above are rounded outward, by no more than this.
    size = np.abs(read.number[:index]) + abs(read.number[index])
    slack = _SLACK * (size + np.abs(low) * apart + np.abs(high) * apart) / apart + _SMALLEST
    if np.max(low - slack) > np.min(high + slack):
        return None
    # Only the distances that may be the narrowest are looked at exactly.
    decisive = (low + slack >= np.max(low - slack)) | (high - slack <= np.min(high + slack))
    for other in np.flatnonzero(decisive).tolist():
        met = scales.meet(own.minus(read.came_from[other]).divided(Fraction(code - codes[other])))
        if met is None:
            return None
        scales = met
    return scales


def _with_offset(read: _Values, codes: list[int], scales: Interval) -> Explanation:
    """A scale of an interval, and the simplest zero point for it: float64 numbers that give the values, if any do."""
    chosen = np.array(codes, dtype=np.float64)
    first: tuple[Fraction, Fraction] | None = None
    for scale in _some(scales):
        zero = _zero_point(read, codes, scale)
        exactly = rounded(float(scale) * (chosen - float(zero)), read.dtype)
        if first is None or np.array_equal(exactly, read.number):
            first = scale, zero
        if np.array_equal(exactly, read.number):
            break
    assert first is not None
    scale, zero = first
    around = [o.divided(c - zero) for o, c in zip(read.came_from, codes, strict=True) if c != zero]
    low = max((interval.low for interval in around), default=scale)
    high = min((interval.high for interval in around), default=scale)
    return Explanation(float(scale), float(low), float(high), float(zero), chosen)


def _some(interval: Interval) -> Iterator[Fraction]:
    """A number of an interval, and others of it that are float64 numbers."""
    middle = _choose(interval)
    yield middle
    for share in range(1, _SCALES):
        number = Fraction(float(interval.low + (interval.high - interval.low) * Fraction(share, _SCALES)))
        if number in interval and number != middle:
            yield number


def _zero_point(read: _Values, codes: list[int], scale: Fraction) -> Fraction:
    """The simplest zero point for codes and a scale that have one."""
    offsets = read.came_from[0]
    for origin, code in zip(read.came_from, codes, strict=True):
        met = offsets.meet(origin.minus(Interval(scale * code, True, scale * code, True)))
        assert met is not None
        offsets = met
    return _simplest(offsets.divided(-scale))


def _simplest(interval: Interval) -> Fraction:
    """The number of an interval with the fewest binary digits after the point, the one nearest to 0 of these."""
    if Fraction(0) in interval:
        return Fraction(0)
    if interval.low == interval.high:
        return interval.low
    width = interval.high - interval.low
    unit = Fraction(2) ** (width.numerator.bit_length() - width.denominator.bit_length() + 1)
    while True:
        nearest = -(-interval.low // unit) if interval.low >= 0 else interval.high // unit
        for multiple in (nearest, nearest + 1 if interval.low >= 0 else nearest - 1):
            if multiple * unit in interval:
                return multiple * unit
        unit /= 2
