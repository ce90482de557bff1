"""First incumbents of a channel, from the rounding kernels on the shared preparation."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.quantization.rounding import beam, coordinate_descent, nearest, successive_rounding
from layerbounds.search.quantization.grid_units import UnitProblem


def beam_width(n: int) -> int:
    """Partial assignments kept: about 20 ms of work at n = 64, a second at n = 1500."""
    return int(np.clip(2_000_000 // (n * n), 32, 512))


def first_incumbents(unit: UnitProblem, warm_start: Float | None) -> tuple[float, Int]:
    """Objective in grid units and level indices of the best of several heuristics.

    GPTQ (successive rounding) in the search order, round-to-nearest, a K-best beam, and the warm start, each followed
    by coordinate descent with pair moves.

    Parameters
    ----------
    unit : UnitProblem
    warm_start : ndarray of shape (n,) or None
        Feasible weights in the layer's order.
    """
    n = unit.size
    table = np.ascontiguousarray(unit.levels.T)
    starts: list[Int] = []

    def empty() -> Int:
        return np.zeros(n, dtype=np.int64)

    choice = empty()
    successive_rounding(unit.shifts, unit.origin, table, unit.count, choice)
    starts.append(choice)
    choice = empty()
    beam(beam_width(n), unit.pivots, unit.shifts, unit.origin, table, unit.count, choice)
    starts.append(choice)
    starts.append(np.array([nearest(table[i], unit.count[i], unit.origin[i]) for i in range(n)], dtype=np.int64))
    if warm_start is not None:
        points = warm_start[unit.prep.order] / unit.scale + unit.zero_point - unit.code_offset
        starts.append(np.argmin(np.abs(table - points[:, None]), axis=1).astype(np.int64))
    best, best_choice = np.inf, starts[0]
    for choice in starts:
        value, _ = coordinate_descent(unit.gram, unit.origin, table, unit.count, choice, n <= 1024, 50 * n)
        if value < best:
            best, best_choice = float(value), choice
    return best, best_choice
