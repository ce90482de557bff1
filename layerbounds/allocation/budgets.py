"""The least certified error for every budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds.allocation.fixed_point import FixedPoint, fixed_point, outward, total_of
from layerbounds.allocation.knapsack import pareto, solve
from layerbounds.allocation.options import LayerOptions, check_layers
from layerbounds.arguments import members, whole_number
from layerbounds.exceptions import InputError

#: More points than this are computed for some budgets only.
MOST_POINTS = 50_000
#: How many budgets these are.
_BUDGETS = 65


@dataclass(frozen=True)
class FrontPoint:
    """The least total error within a budget.

    Attributes
    ----------
    storage : int
        The budget in bits.
    lower, upper : float
        Certified interval of the least total error of any allocation that takes at most that.
    choices : dict of str to str
        The allocation that reaches the upper end; empty where that is infinite.
    """

    storage: int
    lower: float
    upper: float
    choices: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"storage": self.storage, "lower": self.lower, "upper": self.upper, "choices": self.choices}


def front(layers: Sequence[LayerOptions], budgets: Sequence[int] | None = None) -> list[FrontPoint]:
    """The Pareto front of bits against certified error.

    Parameters
    ----------
    layers : sequence of LayerOptions
    budgets : sequence of int, optional
        Bits of all layers together. Default: all budgets at which one of the ends changes; where these are more than
        `MOST_POINTS`, evenly spaced ones.

    Returns
    -------
    list of FrontPoint
        By rising budgets, each about its own. Its upper end holds for all larger budgets; its lower end up to the next
        point where these are all budgets at which an end changes. Without ``budgets`` the ends are exact to 2⁻⁵⁰ of the
        total at the smallest one.

    Raises
    ------
    InputError
        If a budget is less than the smallest options take, or the layers are not what they should be.
    """
    layers = check_layers(layers)
    least = sum(min(option.storage for option in layer.options) for layer in layers)
    largest = sum(max(option.storage for option in layer.options) for layer in layers)
    if budgets is None:
        table = fixed_point(layers, least)
        whole = _whole_front(layers, table)
        if whole is not None:
            return whole
        spaced = sorted({least + (largest - least) * i // (_BUDGETS - 1) for i in range(_BUDGETS)})
        return [_at(layers, table, budget) for budget in spaced]
    wanted = sorted({whole_number(budget, "a budget", 0) for budget in members(budgets, "budgets")})
    if wanted and wanted[0] < least:
        raise InputError(f"a budget is {wanted[0]} bits, and the smallest options take {least}; raise it.")
    return [_at(layers, fixed_point(layers, budget), budget) for budget in wanted]


def _at(layers: Sequence[LayerOptions], table: FixedPoint, budget: int) -> FrontPoint:
    low, high = solve(table.of_lower(), budget), solve(table.of_upper(), budget)
    assert low is not None
    ends = outward(low[0] * table.unit, None if high is None else total_of(table.exact_upper, high[1]))
    return FrontPoint(budget, *ends, {} if high is None else _named(layers, high[1]))


def _named(layers: Sequence[LayerOptions], choice: Sequence[int]) -> dict[str, str]:
    return {layer.name: layer.options[c].name for layer, c in zip(layers, choice, strict=True)}


def _whole_front(layers: Sequence[LayerOptions], table: FixedPoint) -> list[FrontPoint] | None:
    """All points in the unit of the smallest budget, or None where they are too many."""
    low = pareto(table.of_lower(), MOST_POINTS)
    high = pareto(table.of_upper(), MOST_POINTS)
    if low is None or (high is None and all(finite.any() for finite in table.finite)):
        return None
    sizes = np.union1d(low[0], low[0] if high is None else high[0])
    points = []
    for size in sizes.tolist():
        below = low[1][np.searchsorted(low[0], size, side="right") - 1]
        upper: Fraction | None = None
        choices: dict[str, str] = {}
        if high is not None and size >= high[0][0]:
            place = int(np.searchsorted(high[0], size, side="right")) - 1
            upper, choices = int(high[1][place]) * table.unit, _named(layers, high[2][place])
        points.append(FrontPoint(size, *outward(int(below) * table.unit, upper), choices))
    return points
