"""One choice for each layer, least total cost within a budget of sizes: exactly, in integers.

The multiple-choice knapsack by dynamic programming over states (size, cost), one layer after the other. A state is
dropped where another one is no larger and costs no more, or where it cannot lead to less than a solution that is
known, by the linear relaxation of the layers to come. Neither loses an optimum, and nothing else is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Bool, Float, Int

#: Sums of all costs are below this.
MOST_COST = 2**61
#: More than the relaxation's rounding errors, as a share of the largest numbers in it.
_SLACK = 1e-12


@dataclass(frozen=True, eq=False)
class Item:
    """What may be chosen for a layer.

    Attributes
    ----------
    size, cost : ndarray of int64, shape (options,)
        Not negative; the largest of all layers sum to at most 2⁵³ and `MOST_COST`.
    allowed : ndarray of bool, shape (options,)
        Options that may be chosen at all.
    """

    size: Int
    cost: Int
    allowed: Bool


@dataclass(frozen=True, eq=False)
class _Curve:
    """The options of a layer that no other one improves: ``option`` numbers them, sizes rise and costs fall.

    ``corners`` are those on the convex curve below them.
    """

    option: Int
    size: Int
    cost: Int
    corners: Int


def least_size(items: Sequence[Item]) -> int | None:
    """The smallest total size, or None if a layer has no allowed option."""
    if not all(item.allowed.any() for item in items):
        return None
    return sum(int(item.size[item.allowed].min()) for item in items)


def solve(items: Sequence[Item], budget: int) -> tuple[int, list[int]] | None:
    """The least total cost of one option for each layer whose sizes are at most ``budget`` together.

    Parameters
    ----------
    items : sequence of Item
    budget : int

    Returns
    -------
    (int, list of int) or None
        The cost, and an option for each layer that reaches it; None where nothing fits.
    """
    smallest = least_size(items)
    if smallest is None or smallest > budget:
        return None
    curves = [_curve(item) for item in items]
    known, choice = _greedy(curves, budget)
    size, cost = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    steps: list[tuple[Int, Int]] = []
    for curve, (least, more, value) in zip(curves, _relaxations(curves), strict=True):
        size = np.add.outer(size, curve.size).ravel()
        cost = np.add.outer(cost, curve.cost).ravel()
        room = budget - least - size
        bound = cost + np.interp(room, more, value)
        keep = np.flatnonzero((room >= 0) & (cost < known) & (bound < known + _SLACK * (known + value[0])))
        keep = keep[_undominated(size[keep], cost[keep])]
        if not len(keep):
            # Nothing is better than what is known.
            return known, choice
        size, cost = size[keep], cost[keep]
        steps.append((keep // len(curve.option), curve.option[keep % len(curve.option)]))
    return int(cost[-1]), _choice(steps, np.array([len(cost) - 1]))[0]


def pareto(items: Sequence[Item], most: int) -> tuple[Int, Int, list[list[int]]] | None:
    """All pairs of total size and total cost that no other choice improves.

    Parameters
    ----------
    items : sequence of Item
    most : int
        Give up beyond so many states.

    Returns
    -------
    (size, cost, choices) or None
        Arrays of int64, sizes rise and costs fall, and a list of options for each; None where there are too many, or a
        layer has no allowed option.
    """
    if least_size(items) is None:
        return None
    size, cost = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    steps: list[tuple[Int, Int]] = []
    for curve in map(_curve, items):
        size = np.add.outer(size, curve.size).ravel()
        cost = np.add.outer(cost, curve.cost).ravel()
        keep = _undominated(size, cost)
        if len(keep) > most:
            return None
        size, cost = size[keep], cost[keep]
        steps.append((keep // len(curve.option), curve.option[keep % len(curve.option)]))
    return size, cost, _choice(steps, np.arange(len(size)))


def _choice(steps: Sequence[tuple[Int, Int]], states: Int) -> list[list[int]]:
    """The options that led to some of the last states, from each layer's parents and options."""
    columns = []
    for parent, option in reversed(steps):
        columns.append(option[states])
        states = parent[states]
    chosen: list[list[int]] = np.stack(columns[::-1], axis=1).tolist()
    return chosen


def _undominated(size: Int, cost: Int) -> Int:
    """Which states are neither larger nor dearer than another one: by rising size and falling cost."""
    order = np.lexsort((cost, size))
    least = np.minimum.accumulate(cost[order])
    better = np.ones(len(order), dtype=bool)
    better[1:] = least[1:] < least[:-1]
    return np.asarray(order[better])


def _curve(item: Item) -> _Curve:
    allowed = np.flatnonzero(item.allowed)
    option = allowed[_undominated(item.size[allowed], item.cost[allowed])]
    size, cost = item.size[option], item.cost[option]
    # Python's integers: the products leave 64 bits.
    points = list(zip(size.tolist(), cost.tolist(), strict=True))
    corners: list[int] = []
    for i, (x, y) in enumerate(points):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = points[corners[-2]], points[corners[-1]]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append(i)
    return _Curve(option, size, cost, np.array(corners))


def _slopes(curve: _Curve) -> tuple[Int, Int, Float]:
    """Sizes, savings and slopes of the parts of a convex curve."""
    more, less = np.diff(curve.size[curve.corners]), np.diff(curve.cost[curve.corners])
    return more, less, less / more


def _relaxations(curves: Sequence[_Curve]) -> list[tuple[int, Int, Float]]:
    """For each layer what the ones after it cost at least: their smallest size, more sizes, and costs at these.

    Between them the relaxation is linear, and beyond the last one constant.
    """
    parts = [_slopes(curve) for curve in curves]
    of = np.concatenate([np.full(len(part[0]), i) for i, part in enumerate(parts)])
    more, less, slope = (np.concatenate([part[k] for part in parts]) for k in range(3))
    order = np.argsort(slope, kind="stable")
    of, more, less = of[order], more[order], less[order]
    least = list(itertools.accumulate((int(c.size[0]) for c in curves[:0:-1]), initial=0))[::-1]
    first = list(itertools.accumulate((int(c.cost[0]) for c in curves[:0:-1]), initial=0))[::-1]
    relaxed = []
    for i in range(len(curves)):
        later = of > i
        of, more, less = of[later], more[later], less[later]
        sizes, value = np.zeros(len(of) + 1, dtype=np.int64), np.full(len(of) + 1, first[i])
        np.cumsum(more, out=sizes[1:])
        value[1:] += np.cumsum(less)
        relaxed.append((least[i], sizes, value.astype(np.float64)))
    return relaxed


def _greedy(curves: Sequence[_Curve], budget: int) -> tuple[int, list[int]]:
    """A choice that fits: the smallest options, enlarged along the convex curves where that saves most for each bit."""
    place = [0] * len(curves)
    room = budget - sum(int(curve.size[0]) for curve in curves)
    steps = [
        (slope, i, corner)
        for i, curve in enumerate(curves)
        for slope, corner in zip(_slopes(curve)[2].tolist(), curve.corners[1:].tolist(), strict=True)
    ]
    for _, i, corner in sorted(steps):
        more = int(curves[i].size[corner] - curves[i].size[place[i]])
        if more <= room:
            room -= more
            place[i] = corner
    for i, curve in enumerate(curves):
        # What the convex curves skip may still fit.
        larger = int(np.searchsorted(curve.size, curve.size[place[i]] + room, side="right")) - 1
        room -= int(curve.size[larger] - curve.size[place[i]])
        place[i] = larger
    cost = sum(int(curve.cost[p]) for curve, p in zip(curves, place, strict=True))
    return cost, [int(curve.option[p]) for curve, p in zip(curves, place, strict=True)]
