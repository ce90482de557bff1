"""Allowed weights near given ones where the scale is free: codes and scale in turn, and recognition up to rounding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.scale_fit import Box, Explanation, constant

#: Starting scales, as multiples of the one at which nothing is clipped, and the turns that each of them gets.
_STARTS, _TURNS = 2.0 ** (np.arange(-9, 13) / 6.0), 8
#: So many zero points are all tried; of more, those near the one that a range of weights calls for.
_FEW_ZEROS, _NEAR_ZEROS = 16, 3
#: The scale of weights that want to be 0 where no code is.
VANISHING = 2.0**-332


def nearest_codes(codes: Float, values: Float) -> Float:
    """The nearest of ascending codes; ties go to the lower one."""
    return np.asarray(codes[np.searchsorted(0.5 * (codes[1:] + codes[:-1]), values)])


def snapped_zero(zero: float, levels: int) -> float:
    """The zero point rounded so that the differences of 0, …, levels − 1 from it are exact float64 numbers."""
    _, exponent = np.frexp(max(abs(zero), float(levels)))
    unit = int(exponent) - 52
    return float(np.ldexp(np.rint(np.ldexp(zero, -unit)), unit))


def near_in_boxes(values: Float, boxes: list[Box], powers_of_two: bool, limit: float) -> Explanation:
    """Codes of one of the boxes and a scale for which the squared distance to the values is small.

    Parameters
    ----------
    values : ndarray of shape (n,)
    boxes : list of Box
    powers_of_two : bool
        Whether scales are powers of two.
    limit : float
        Largest size of a weight.
    """
    best, least = None, np.inf
    for box in _promising(values, boxes):
        scale, codes = _in_box(values, box.codes, powers_of_two, limit)
        distance = float(np.sum((values - scale * codes) ** 2))
        if best is None or distance < least:
            best, least = box.explanation(scale, codes), distance
    assert best is not None
    return best


def _promising(values: Float, boxes: list[Box]) -> list[Box]:
    """All boxes if they are few, else those whose range is shaped most like that of the values."""
    if len(boxes) <= _FEW_ZEROS:
        return boxes
    low, high = min(float(values.min(initial=0.0)), 0.0), max(float(values.max(initial=0.0)), 0.0)
    width = len(boxes) - 1
    centre = round(-low / (high - low) * width) if high > low else 0
    return boxes[max(centre - _NEAR_ZEROS, 0) : centre + _NEAR_ZEROS + 1]


def _in_box(values: Float, codes: Float, powers_of_two: bool, limit: float) -> tuple[float, Float]:
    size, reach = float(np.max(np.abs(values), initial=0.0)), float(np.max(np.abs(codes)))
    smallest = np.full(len(values), codes[np.argmin(np.abs(codes))])
    nothing = (1.0, smallest) if smallest.size == 0 or smallest[0] == 0 else (VANISHING, smallest)
    if size == 0.0 or reach == 0.0:
        return nothing
    if powers_of_two:
        scales = 2.0 ** (np.floor(np.log2(size / reach)) + np.arange(-2, 6))
    else:
        scales = _improved(values, codes, size / reach * _STARTS)
    chosen = nearest_codes(codes, values / scales[:, None])
    distance = np.sum((values - scales[:, None] * chosen) ** 2, axis=1)
    if not len(distance) or distance.min() >= np.sum((values - nothing[0] * nothing[1]) ** 2):
        return nothing
    best = int(np.argmin(distance))
    return _within(float(scales[best]), chosen[best], powers_of_two, limit), chosen[best]


def _improved(values: Float, codes: Float, scales: Float) -> Float:
    for _ in range(_TURNS):
        chosen = nearest_codes(codes, values / scales[:, None])
        along, square = chosen @ values, np.sum(chosen**2, axis=1)
        kept = along > 0
        scales = along[kept] / square[kept]
    return np.asarray(scales)


def _within(scale: float, codes: Float, powers_of_two: bool, limit: float) -> float:
    """The scale, lowered until no weight exceeds the limit."""
    reach = float(np.max(np.abs(codes), initial=0.0))
    if scale * reach <= limit:
        return scale
    if powers_of_two:
        return float(2.0 ** np.floor(np.log2(limit / reach)))
    scale = limit / reach
    while scale * reach > limit:
        scale = float(np.nextafter(scale, 0.0))
    return scale


def near_with_offset(values: Float, levels: int, limit: float) -> Explanation:
    """The same with any zero point."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return constant(low, len(values))
    best, least = constant(float(np.mean(values)), len(values)), float(np.sum((values - np.mean(values)) ** 2))
    for start in (high - low) / (levels - 1 or 1) * _STARTS:
        for offset in (low, high - start * (levels - 1), 0.5 * (low + high - start * (levels - 1))):
            scale, shift = float(start), offset
            for _ in range(_TURNS):
                codes = np.clip(np.rint((values - shift) / scale), 0, levels - 1)
                spread = codes - codes.mean()
                along, square = float(spread @ values), float(spread @ spread)
                if along <= 0:
                    break
                scale = along / square
                shift = float(np.mean(values - scale * codes))
            zero = snapped_zero(-shift / scale, levels)
            distance = float(np.sum((values - scale * (codes - zero)) ** 2))
            if along > 0 and distance < least:
                best, least = Explanation(scale, scale, scale, zero, codes), distance
    scale = _within(best.scale, best.codes - best.zero_point, False, limit)
    return Explanation(scale, scale, scale, best.zero_point, best.codes)


def recognised(values: Float, boxes: list[Box], powers_of_two: bool, tolerance: float) -> Explanation | None:
    """Codes and a scale from which values differ by no more than a share of the largest; None if there are none."""
    size = float(np.max(np.abs(values), initial=0.0))
    distinct, inverse = np.unique(values, return_inverse=True)
    for box in boxes:
        if size == 0.0 and np.any(box.codes == 0):
            return box.explanation(1.0, np.zeros(len(values)))
        if size == 0.0:
            continue
        anchor = distinct[np.argmax(np.abs(distinct))]
        codes = box.codes[box.codes * anchor > 0]
        for scale in (anchor / codes[np.argsort(np.abs(codes), kind="stable")]).tolist():
            chosen = nearest_codes(box.codes, distinct / scale)
            better = _refined(scale, chosen, distinct, powers_of_two)
            if np.max(np.abs(distinct - better * chosen)) <= tolerance * size:
                return box.explanation(better, chosen[inverse])
    return None


def _refined(scale: float, codes: Float, values: Float, powers_of_two: bool) -> float:
    if powers_of_two:
        return float(2.0 ** np.rint(np.log2(scale)))
    along = float(codes @ values)
    return along / float(codes @ codes) if along > 0 else scale


def recognised_with_offset(values: Float, levels: int, tolerance: float) -> Explanation | None:
    """The same with any zero point."""
    size = float(np.max(np.abs(values), initial=0.0))
    distinct, inverse = np.unique(values, return_inverse=True)
    if not len(distinct):
        return constant(0.0, 0)
    width = float(distinct[-1] - distinct[0])
    if width <= tolerance * size:
        return constant(float(distinct[0]), len(values))
    for top in range(1, levels):
        codes = np.rint((distinct - distinct[0]) * (top / width))
        for scale, shift in _lines(codes, distinct):
            zero = snapped_zero(-shift / scale, levels)
            if np.max(np.abs(distinct - scale * (codes - zero))) <= tolerance * size:
                return Explanation(scale, scale, scale, zero, codes[inverse])
    return None


def _lines(codes: Float, values: Float) -> Iterator[tuple[float, float]]:
    spread = codes - codes.mean()
    scale = float(spread @ values) / float(spread @ spread)
    if scale > 0:
        yield scale, float(np.mean(values - scale * codes))
