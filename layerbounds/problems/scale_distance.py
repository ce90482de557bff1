"""The scale, and zero point, with the smallest largest distance of weights to their levels.

Intervals of scales (and of offsets) are bisected: in each, no scale brings a weight nearer to a level than the nearest
multiple of a code by any scale of the interval is. Few weights decide, the largest and those that a solution for the
others leaves farthest from their levels. Weights of many more values than there are levels are no multiples of codes,
whatever the scale; for them, and for more than 16 levels, the scale of given codes is improved alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from layerbounds.arrays import Bool, Float, Int
from layerbounds.problems.scale_fit import Box, Explanation
from layerbounds.problems.scale_nearest import near_in_boxes, near_with_offset, nearest_codes

#: Intervals in the beginning, how narrow they become relative to the distance, and how many are kept at most.
_CELLS, _PRECISION, _MOST_CELLS = 32, 1e-3, 4096
#: Weights that are looked at first, and those that join them at a time, in so many rounds.
_FIRST, _JOINING, _ROUNDS = 12, 6, 24
_POWERS = 40
#: Smaller weights are not looked at: quotients of them by codes underflow.
_UNDERFLOW = 1e-280
#: Intervals are bisected up to so many levels, and so many different weights for each.
_MOST_LEVELS, _MOST_VALUES = 16, 16


@dataclass(frozen=True, eq=False)
class _Cells:
    """Intervals of scales and of offsets.

    Attributes
    ----------
    low, high : ndarray of shape (cells,)
        Of the scales, above 0.
    left, right : ndarray of shape (cells,)
        Of the offsets.
    """

    low: Float
    high: Float
    left: Float
    right: Float

    def chosen(self, kept: Bool | Int) -> _Cells:
        """Some of them."""
        return _Cells(self.low[kept], self.high[kept], self.left[kept], self.right[kept])

    def middle(self) -> _Cells:
        """Their centres, as intervals of width 0."""
        scale, offset = np.sqrt(self.low * self.high), 0.5 * (self.left + self.right)
        return _Cells(scale, scale, offset, offset)

    def halves(self, reach: float) -> _Cells:
        """Twice as many, divided where the levels move most; codes reach up to ``reach``."""
        centre = self.middle()
        by_offset = self.right - self.left > reach * (self.high - self.low)
        return _Cells(
            np.concatenate((self.low, np.where(by_offset, self.low, centre.low))),
            np.concatenate((np.where(by_offset, self.high, centre.low), self.high)),
            np.concatenate((self.left, np.where(by_offset, centre.left, self.left))),
            np.concatenate((np.where(by_offset, centre.left, self.right), self.right)),
        )

    def distance(self, values: Float, codes: Float) -> Float:
        """Largest, over the values, smallest distance to a level of any scale and offset, shape (cells,)."""
        low, high, left, right = (a[:, None] for a in (self.low, self.high, self.left, self.right))
        above = np.maximum((values - right) / high, (values - right) / low)
        below = np.minimum((values - left) / high, (values - left) / low)
        first, last = np.searchsorted(codes, below), np.searchsorted(codes, above, side="right")
        # Codes from first to last − 1 meet the value; else the nearest are the one before and the one after.
        before, after = codes[np.maximum(first - 1, 0)], codes[np.minimum(last, len(codes) - 1)]
        over = values - np.maximum(before * high, before * low) - right
        under = np.minimum(after * high, after * low) + left - values
        over, under = np.where(first > 0, over, np.inf), np.where(last < len(codes), under, np.inf)
        nearest = np.where(first < last, 0.0, np.maximum(np.minimum(over, under), 0.0))
        return np.asarray(nearest.max(axis=1, initial=0.0))


def nearest_line(values: Float, boxes: list[Box], offset: bool, powers_of_two: bool) -> tuple[Explanation, float]:
    """The fit of the smallest largest distance to values, and this distance.

    Parameters
    ----------
    values : ndarray of shape (n,)
    boxes : list of Box
    offset : bool
        Whether any number may be added to the levels, whose codes then are 0, …, len(boxes) − 1.
    powers_of_two : bool
    """
    distinct, inverse = np.unique(values, return_inverse=True)
    if offset:
        best = near_with_offset(distinct, len(boxes), np.inf)
    else:
        best = near_in_boxes(distinct, boxes, powers_of_two, np.inf)
    distance = _distance(distinct, best)
    levels = len(boxes[0].codes)
    if powers_of_two:
        best, distance = _nearest_power(distinct, boxes, best, distance)
    elif levels > _MOST_LEVELS or len(distinct) > _MOST_VALUES * levels:
        for start in [best, *_unclipped(distinct, boxes, offset)]:
            found, reached = _improved(distinct, start, _distance(distinct, start), offset)
            if reached < distance:
                best, distance = found, reached
    else:
        for box in [Box(np.arange(float(levels)), 1.0, 0.0)] if offset else boxes:
            best, distance = _bisected(distinct, box, offset, best, distance)
    codes = best.codes[inverse]
    return Explanation(best.scale, best.low, best.high, best.zero_point, codes), distance


def _distance(values: Float, found: Explanation) -> float:
    return float(np.max(np.abs(values - found.scale * (found.codes - found.zero_point))))


def _nearest_power(values: Float, boxes: list[Box], best: Explanation, distance: float) -> tuple[Explanation, float]:
    size = float(np.max(np.abs(values), initial=0.0)) or 1.0
    for box in boxes:
        top = np.floor(np.log2(size / np.max(np.abs(box.codes))))
        for scale in (2.0 ** (top + np.arange(-2, _POWERS))).tolist():
            found = box.explanation(scale, nearest_codes(box.codes, values / scale))
            if _distance(values, found) < distance:
                best, distance = found, _distance(values, found)
    return best, distance


def _unclipped(values: Float, boxes: list[Box], offset: bool) -> list[Explanation]:
    """The fit that leaves no value farther outside of the levels than half a step, if there is one."""
    levels = len(boxes[0].codes)
    if offset:
        scale = float(values[-1] - values[0]) / levels
        codes = np.clip(np.rint((values - values[0]) / scale - 0.5), 0, levels - 1)
        return [Explanation(scale, scale, scale, -float(values[0]) / scale - 0.5, codes)]
    found = []
    for box in boxes:
        step = float(np.diff(box.codes).min()) if levels > 1 else 1.0
        ends = np.array([box.codes[0] - step / 2, box.codes[-1] + step / 2])
        scale = float(np.max(np.array([values[0], values[-1]]) / ends))
        if ends[0] < 0 < ends[1] and scale > 0:
            found.append(box.explanation(scale, nearest_codes(box.codes, values / scale)))
    return sorted(found, key=lambda fit: _distance(values, fit))[:1]


def _improved(values: Float, best: Explanation, distance: float, offset: bool) -> tuple[Explanation, float]:
    """The best scale for the codes of a fit, or a better one than it has."""
    levels = best.codes - (0.0 if offset else best.zero_point)
    scale, shift = best.scale, -best.scale * best.zero_point if offset else 0.0
    chosen: Int = np.zeros(0, dtype=np.int64)
    for _ in range(_ROUNDS):
        away = np.abs(values - scale * levels - shift)
        if away.max() < distance:
            best = Explanation(scale, scale, scale, -shift / scale if offset else best.zero_point, best.codes)
            distance = float(away.max())
        grown = np.union1d(chosen, np.argsort(-away, kind="stable")[:_JOINING])
        if len(grown) == len(chosen):
            break
        chosen = grown
        (scale, shift), _ = _sharpened(values[chosen], levels[chosen], scale, shift, offset)
    return best, distance


def _bisected(values: Float, box: Box, offset: bool, best: Explanation, distance: float) -> tuple[Explanation, float]:
    """A better fit with the codes of a box, if there is one."""
    order = np.argsort(-np.abs(values - (values.min() if offset else 0.0)), kind="stable")
    chosen = np.unique(np.concatenate((order[: _FIRST // 2], order[:: max(len(order) // (_FIRST // 2), 1)])))
    for _ in range(_ROUNDS):
        found = _for_few(values[chosen], box, offset, distance)
        if found is None:
            return best, distance
        scale, shift = found
        codes = nearest_codes(box.codes, (values - shift) / scale)
        away = np.abs(values - scale * codes - shift)
        if away.max() < distance:
            plain = box.explanation(scale, codes)
            best = Explanation(plain.scale, plain.low, plain.high, plain.zero_point - shift / scale, plain.codes)
            distance = float(away.max())
        worst = np.argsort(-away, kind="stable")[:_JOINING]
        grown = np.union1d(chosen, worst)
        if len(grown) == len(chosen):
            return best, distance
        chosen = grown
    return best, distance


def _for_few(values: Float, box: Box, offset: bool, limit: float) -> tuple[float, float] | None:
    """The best scale and offset of few values; None unless their distance is below a limit."""
    codes = box.codes
    reach = float(np.max(np.abs(codes)))
    sizes = np.abs(codes[codes != 0])
    width = float(np.max(np.abs(values - (values.min() if offset else 0.0)), initial=0.0))
    if not len(sizes) or width < _UNDERFLOW:
        return None
    # Below the first scale the largest value, above the last one every value but 0 is farther from its level.
    least = max(width - (2 * limit if offset else limit), 1e-9 * width) / reach
    edges = np.geomspace(least, max(2.0 * width / float(sizes.min()), 2 * least), _CELLS + 1)
    low, high = (values.min() - limit, values.min() + limit) if offset else (0.0, 0.0)
    cells = _Cells(edges[:-1], edges[1:], np.full(_CELLS, low), np.full(_CELLS, high))
    best: tuple[float, float] | None = None
    for _ in range(64):
        cells = cells.chosen(cells.distance(values, codes) < limit * (1 - 1e-9))
        if not len(cells.low):
            break
        middle = cells.middle()
        reached = middle.distance(values, codes)
        index = int(np.argmin(reached))
        if reached[index] < limit:
            point = float(middle.low[index]), float(middle.left[index])
            nearest = nearest_codes(codes, (values - point[1]) / point[0])
            sharp, reach_of_sharp = _sharpened(values, nearest, *point, offset)
            best, limit = min((point, float(reached[index])), (sharp, reach_of_sharp), key=lambda found: found[1])
        wide = np.maximum(reach * (cells.high - cells.low), cells.right - cells.left) > _PRECISION * limit
        cells = cells.chosen(wide)
        if len(cells.low) > _MOST_CELLS:
            cells = cells.chosen(np.argsort(cells.distance(values, codes), kind="stable")[:_MOST_CELLS])
        cells = cells.halves(reach)
    return best


def _sharpened(
    values: Float, chosen: Float, scale: float, shift: float, offset: bool
) -> tuple[tuple[float, float], float]:
    """The scale and offset with the smallest largest distance for given codes, by linear programming."""
    unit = float(np.max(np.abs(values), initial=0.0)) or 1.0
    columns = np.stack((chosen, np.full(len(values), float(offset)), np.zeros(len(values))), axis=1)
    rows = np.concatenate((columns, -columns))
    rows[:, 2] = -1.0
    sides = np.concatenate((values, -values)) / unit
    # A scale keeps its sign.
    positive = (1e-12 * scale / unit, None) if scale > 0 else (None, 1e-12 * scale / unit)
    bounds = [positive, (None, None) if offset else (0.0, 0.0), (0.0, None)]
    answer = linprog([0.0, 0.0, 1.0], A_ub=rows, b_ub=sides, bounds=bounds)
    if answer.status != 0:
        return (scale, shift), np.inf
    point = (float(answer.x[0]) * unit, float(answer.x[1]) * unit)
    return point, float(np.max(np.abs(values - point[0] * chosen - point[1])))
