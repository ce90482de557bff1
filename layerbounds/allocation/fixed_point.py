"""Intervals as integers in one unit, lower ends rounded down and upper ends up, so that sums are exact."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from layerbounds.allocation.knapsack import MOST_COST, Item, least_size, solve
from layerbounds.allocation.options import LayerOptions
from layerbounds.arrays import Bool, Int

#: For each layer the ends of its options; None where infinite.
Ends = list[list[Fraction | None]]


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """The options of all layers for the knapsack at one budget.

    Attributes
    ----------
    unit : Fraction
        What one is, a power of two.
    size : list of ndarray of int64, shape (options,)
        Bits, for each layer.
    lower, upper : list of ndarray of int64, shape (options,)
        Ends in units, none above ``most``: what costs more is in no optimum.
    finite : list of ndarray of bool, shape (options,)
        Which upper ends are finite.
    most : int
    exact_lower, exact_upper : list of list of Fraction or None
        The ends as they are; None where infinite.
    """

    unit: Fraction
    size: list[Int]
    lower: list[Int]
    upper: list[Int]
    finite: list[Bool]
    most: int
    exact_lower: Ends
    exact_upper: Ends

    def of_lower(self) -> list[Item]:
        """The knapsack of the lower ends."""
        return [Item(s, c, np.ones(len(s), dtype=bool)) for s, c in zip(self.size, self.lower, strict=True)]

    def of_upper(self) -> list[Item]:
        """The knapsack of the upper ends that are finite."""
        return [Item(*item) for item in zip(self.size, self.upper, self.finite, strict=True)]

    def against(self, choice: Sequence[int]) -> list[Item]:
        """The knapsack in which a choice is at its worst and all else at its best."""
        items = [Item(item.size, item.cost.copy(), item.allowed) for item in self.of_lower()]
        for item, upper, chosen in zip(items, self.upper, choice, strict=True):
            item.cost[chosen] = upper[chosen]
        return items

    def between(self, share: float) -> list[Item]:
        """The knapsack of costs between the ends, of the options with finite upper ends: no certificate."""
        costs = [
            low + (share * (high - low)).astype(np.int64) for low, high in zip(self.lower, self.upper, strict=True)
        ]
        return [Item(*item) for item in zip(self.size, costs, self.finite, strict=True)]


def weighted(layers: Sequence[LayerOptions]) -> tuple[Ends, Ends]:
    """Lower and upper ends times the scales of the layers, exactly; None where infinite."""
    lower: Ends = []
    upper: Ends = []
    for layer in layers:
        scale = Fraction(layer.scale)
        lower.append([scale * Fraction(option.lower) for option in layer.options])
        upper.append([_times(scale, option.upper) for option in layer.options])
    return lower, upper


def _times(scale: Fraction, value: float) -> Fraction | None:
    if not scale:
        return Fraction(0)
    return None if value == math.inf else scale * Fraction(value)


def fixed_point(layers: Sequence[LayerOptions], budget: int) -> FixedPoint:
    """The options in the finest unit in which what matters at a budget, and at larger ones, can be added.

    An option that alone costs more than some allocation as a whole is in none that is optimal, however much more it
    costs. So the unit follows from the least total that is known, not from the largest error of any option.

    Parameters
    ----------
    layers : sequence of LayerOptions
    budget : int
        At least the smallest total size.
    """
    size = [np.array([option.storage for option in layer.options], dtype=np.int64) for layer in layers]
    lower, upper = weighted(layers)
    finite = [np.array([end is not None for end in ends]) for ends in upper]
    least = least_size([Item(s, s, f) for s, f in zip(size, finite, strict=True)])
    total = Fraction(0)
    if least is not None:
        total = _known_total(size, upper, max(budget, least))
    if least is None or least > budget:
        # What fits has no finite upper end: the lower ends alone count there.
        total = max(total, _known_total(size, lower, budget))
    unit, most = _unit(total, len(layers))

    def rounded(ends: Ends, up: bool) -> list[Int]:
        return [
            np.array([most if e is None else min(_whole(e / unit, up), most) for e in layer], dtype=np.int64)
            for layer in ends
        ]

    return FixedPoint(unit, size, rounded(lower, False), rounded(upper, True), finite, most, lower, upper)


def _known_total(size: Sequence[Int], ends: Ends, budget: int) -> Fraction:
    """What an allocation that fits costs, nearly the least; one of finite cost must fit."""
    allowed = [np.array([end is not None for end in layer]) for layer in ends]
    total = sum((max(e for e in layer if e is not None) for layer in ends), Fraction(0))
    while True:
        unit, most = _unit(total, len(ends))
        costs = [
            np.array([0 if e is None else min(_whole(e / unit, True), most) for e in layer], dtype=np.int64)
            for layer in ends
        ]
        found = solve([Item(*item) for item in zip(size, costs, allowed, strict=True)], budget)
        assert found is not None
        better = total_of(ends, found[1])
        assert better is not None
        # Errors of very different magnitudes: what the coarse unit could not tell apart counts now.
        if better * 2**8 >= total:
            return min(better, total)
        total = better


def total_of(ends: Ends, choice: Sequence[int]) -> Fraction | None:
    """The sum of the ends of a choice; None where infinite."""
    total = Fraction(0)
    for layer, chosen in zip(ends, choice, strict=True):
        end = layer[chosen]
        if end is None:
            return None
        total += end
    return total


def _unit(total: Fraction, layers: int) -> tuple[Fraction, int]:
    """The finest power of two in which ``layers`` numbers above a total still add up, and a number above the total."""
    room = MOST_COST // layers - layers - 3
    exponent = -1100
    if total > room:
        exponent = (math.ceil(total / room) - 1).bit_length()
    elif total:
        exponent = max(exponent, 1 - int(room / total).bit_length())
    unit = Fraction(2) ** exponent
    return unit, _whole(total / unit, True) + layers + 1


def _whole(value: Fraction, up: bool) -> int:
    return math.ceil(value) if up else math.floor(value)


def outward(low: Fraction, high: Fraction | None) -> tuple[float, float]:
    """Floating-point numbers around an interval; None is infinite."""
    return rounded_down(low), math.inf if high is None else rounded_up(high)


def rounded_down(value: Fraction) -> float:
    """The largest floating-point number of at most a value."""
    return 0.0 - rounded_up(-value)


def rounded_up(value: Fraction) -> float:
    """The smallest floating-point number of at least a value."""
    try:
        nearest = float(value)
    except OverflowError:
        return math.inf if value > 0 else -sys.float_info.max
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)
