"""How much narrowing an interval is worth: for the allocation, for verdicts, and as one of the largest gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerbounds.allocation import knapsack
from layerbounds.arrays import Bool, Float, Int
from layerbounds.contests.verdict import Verdict, decide
from layerbounds.network.entries import Entry
from layerbounds.network.pairs import equal_bits

#: What a unit of relative error counts beside one that an allocation depends on: in an open verdict, and anywhere.
VERDICT, ANYWHERE = 0.25, 0.02
#: The same of the upper end of what is allocated itself.
ALLOCATED = 0.5
#: Fixed point of the costs.
_UNITS = 2.0**40


def worth(
    grid: Sequence[Sequence[Entry]], budgets: Sequence[float], alone: bool = False
) -> dict[tuple[int, int], float]:
    """For each entry, by its numbers, what a unit of its error is worth.

    Parameters
    ----------
    grid : sequence of sequence of Entry
    budgets : sequence of float
        Bits per weight for which an allocation is wanted.
    alone : bool
        Whether nothing but these allocations counts.
    """
    rows = [of_layer for of_layer in grid if of_layer[0].layer.energy > 0]
    if not rows:
        return {}
    scale = np.array([1.0 / of_layer[0].layer.energy for of_layer in rows])
    low, high = (
        np.array([[e.interval[end] for e in of_layer] for of_layer in rows]) * scale[:, None] for end in (0, 1)
    )
    size = np.array([[e.storage for e in of_layer] for of_layer in rows], dtype=np.int64)
    there = np.array([[e.refused is None for e in of_layer] for of_layer in rows])
    value = np.where(there & (not alone), ANYWHERE, 0.0)
    weights = sum(of_layer[0].layer.weights for of_layer in rows)
    if there.any(axis=1).all() and np.isfinite(high[there]).all():
        for budget in budgets:
            value = value + _threats(low, high, size, there, int(budget * weights))
    for i, of_layer in enumerate(rows if not alone else []):
        for a, b in equal_bits(of_layer):
            if decide(of_layer[a].interval, of_layer[b].interval) == Verdict.OPEN:
                value[i, [a, b]] += VERDICT
    return {e.number: float(value[i, j] * scale[i]) for i, of_layer in enumerate(rows) for j, e in enumerate(of_layer)}


def _threats(low: Float, high: Float, size: Int, there: Bool, budget: int) -> Float:
    """How much each interval matters for the regret of the best allocation at a budget, from 0 to 1.

    With a price λ of a bit, the regret of an allocation y is at most Σ over layers of the largest
    (u_y + λ s_y) − (l_j + λ s_j) over the options j, and λ times the bits that y leaves: an option matters as much as
    it comes near to that largest one.
    """
    top = high[there].max(initial=0.0)
    if not top > 0:
        return np.zeros_like(low)
    cost = np.where(there, np.ceil(np.where(there, high, 0.0) / top * (_UNITS / len(low))), 0).astype(np.int64)
    found = knapsack.solve([knapsack.Item(s, c, t) for s, c, t in zip(size, cost, there, strict=True)], budget)
    if found is None:
        return np.zeros_like(low)
    rows, chosen = np.arange(len(low)), np.array(found[1])
    own, bits = high[rows, chosen], size[rows, chosen]
    rivals = np.where(there, low, np.inf)
    rivals[rows, chosen] = own
    price = _price(rivals, size, there, budget)
    threat = (own + price * bits)[:, None] - (rivals + price * size)
    largest = threat.max(axis=1, keepdims=True)
    value = np.where((threat > 0) & there, (threat / np.where(largest > 0, largest, 1.0)) ** 2, 0.0)
    value[rows, chosen] = np.where(largest[:, 0] > 0, ALLOCATED, 0.0)
    return np.asarray(value)


def _price(cost: Float, size: Int, there: Bool, budget: int) -> float:
    """The price of a bit at which the options that are best with it just fit a budget."""
    least, most = 0.0, float(np.where(there, cost, 0.0).max()) + 1e-300

    def taken(price: float) -> int:
        return int(size[np.arange(len(size)), np.argmin(np.where(there, cost + price * size, np.inf), axis=1)].sum())

    if taken(least) <= budget:
        return 0.0
    for _ in range(100):
        middle = 0.5 * (least + most)
        least, most = (middle, most) if taken(middle) > budget else (least, middle)
    return most
