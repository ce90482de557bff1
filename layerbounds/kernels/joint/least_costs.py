"""Least costs of blocks of inputs whose weights are levels or zero, for every number of units that are kept.

Blocks, levels and costs are those of `layerbounds.kernels.quantization.block_relaxation`; zero is among the levels of
every input. A unit is kept where one of its inputs has a weight other than zero. ``unit[s]`` and ``group[s]`` are the
unit of input ``member[s]`` and the group of that unit, numbered within the block, and ``room[g, j]`` is how many units
of the block's group j may be kept.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.quantization.block_relaxation import settle, term


@kernel(nested=True)
def _following(levels, i, j, by, before, pivot, middle, tilt, centre, floor):
    """The first level other than zero from j on in a direction, and the value with it; infinite where there is none."""
    while 0 <= j < levels.shape[1] and levels[i, j] == 0.0:
        j += by
    if 0 <= j < levels.shape[1]:
        return j, before + term(pivot, levels[i, j], middle, tilt, centre, floor)
    return j, np.inf


@kernel(nested=True)
def _first_from(levels, i, turn):
    """The first level that is not below a number."""
    low = 0
    high = levels.shape[1]
    while low < high:
        half = (low + high) >> 1
        if levels[i, half] < turn:
            low = half + 1
        else:
            high = half
    return low


@kernel(nested=True)
def closest_by_count(
    r, m, levels, inputs, unit, group, room, top, centre, tilt, most, least, use, filled, state, work, where
):
    """Depth-first search for the points of least ‖R(v − c)‖² + Σ [2 t_i (v_i − c_i) − its least], t the tilt.

    All terms are nonnegative, and those of one input are convex in its level. Zero is a choice of its own; the other
    levels are visited on either side of the turning point until they reach what counts for so many kept units.

    Parameters
    ----------
    top : int
        With top > 0 all units are of one group, and ``least[j]`` returns the least value with at most j ≤ top of them;
        otherwise ``least[0]`` is that of all points that the groups' room allows.
    most : int
        Nodes that the search may take.
    least : ndarray of shape (≥ top + 1,)
        Returned; infinite after ``most`` nodes.
    use, filled : ndarray of int64
        Scratch: kept inputs of each unit, kept units of each group.
    state, work, where
        Scratch of shapes (m,), (7, m + 1) and (2, m).

    Returns
    -------
    int
        Nodes.
    """
    step, middle, distance, floor = work[0], work[1], work[2], work[3]
    below, above, without = work[4], work[5], work[6]
    left, right = where[0], where[1]
    for p in range(m):
        i = inputs[p]
        use[p] = 0
        filled[p] = 0
        end = levels[i, levels.shape[1] - 1]
        floor[p] = min(2.0 * tilt[p] * (levels[i, 0] - centre[p]), 2.0 * tilt[p] * (end - centre[p]))
    for j in range(len(least)):
        least[j] = np.inf
    nodes = 0
    k = m - 1
    distance[m] = 0.0
    entering = True
    while True:
        i, u, g = inputs[k], unit[k], group[k]
        pivot, before = r[k, k], distance[k + 1]
        if entering:
            # The centre given the levels above, where the cost is least, and the levels on either side of that.
            shift = 0.0
            for j in range(k + 1, m):
                shift += r[k, j] * step[j]
            middle[k] = centre[k] - shift / pivot
            without[k] = before + term(pivot, 0.0, middle[k], tilt[k], centre[k], floor[k])
            below[k] = np.inf
            above[k] = np.inf
            if use[u] > 0 or filled[g] < room[g]:
                j = _first_from(levels, i, middle[k] - tilt[k] / (pivot * pivot))
                left[k], below[k] = _following(
                    levels, i, j - 1, -1, before, pivot, middle[k], tilt[k], centre[k], floor[k]
                )
                right[k], above[k] = _following(levels, i, j, 1, before, pivot, middle[k], tilt[k], centre[k], floor[k])
        elif state[k] == 1:
            use[u] -= 1
            if use[u] == 0:
                filled[g] -= 1
        kept = filled[0] if top > 0 else 0
        opened = kept + 1 if top > 0 and use[u] == 0 else kept
        value = min(below[k], above[k])
        if not (opened <= top and value < least[opened]):
            # The levels that are left cost more.
            below[k] = np.inf
            above[k] = np.inf
            value = np.inf
        if (value <= without[k] and value < np.inf) or not without[k] < least[kept]:
            if value == np.inf:
                k += 1
                if k == m:
                    return nodes
                entering = False
                continue
            j = left[k] if below[k] <= above[k] else right[k]
            if below[k] <= above[k]:
                left[k], below[k] = _following(
                    levels, i, j - 1, -1, before, pivot, middle[k], tilt[k], centre[k], floor[k]
                )
            else:
                right[k], above[k] = _following(
                    levels, i, j + 1, 1, before, pivot, middle[k], tilt[k], centre[k], floor[k]
                )
            step[k] = levels[i, j] - centre[k]
            kept = opened
            state[k] = 1
            use[u] += 1
            if use[u] == 1:
                filled[g] += 1
        else:
            value = without[k]
            without[k] = np.inf
            step[k] = -centre[k]
            state[k] = 0
        nodes += 1
        if nodes > most:
            for j in range(len(least)):
                least[j] = np.inf
            return nodes
        entering = k > 0
        if k > 0:
            distance[k] = value
            k -= 1
            continue
        for j in range(kept, top + 1):
            if not value < least[j]:
                break
            least[j] = value


@kernel()
def least_costs_by_count(
    first, member, unit, group, room, top, block, factor, levels, z, h, most, budget, centre, tilt, least
):
    """Per block the least of (v − z)ᵀB(v − z) + 2hᵀ(v − z), by `closest_by_count` around `settle`'s point.

    ``least``, shape (blocks, counts), returns the values, infinite where a search took more than ``most`` nodes or all
    took more than ``budget``; ``centre`` and ``tilt`` what `settle` found. Returns the number of nodes.
    """
    widest = factor.shape[1]
    use = np.empty(widest, np.int64)
    filled = np.empty(widest, np.int64)
    state = np.zeros(widest, np.int64)
    work = np.empty((7, widest + 1))
    where = np.empty((2, widest), np.int64)
    anchor = np.empty(widest)
    slope = np.empty(widest)
    middle = np.empty(widest)
    side = np.empty(widest)
    count = np.full(len(levels), levels.shape[1])
    total = 0
    for g in range(len(first) - 1):
        f0 = first[g]
        m = first[g + 1] - f0
        inputs = member[f0 : f0 + m]
        for p in range(m):
            anchor[p] = z[inputs[p]]
            slope[p] = h[inputs[p]]
        settle(block[g], m, levels, inputs, count, anchor, slope, middle, side)
        for p in range(m):
            centre[inputs[p]] = middle[p]
            tilt[inputs[p]] = side[p]
        total += closest_by_count(
            factor[g], m, levels, inputs, unit[f0 : f0 + m], group[f0 : f0 + m], room[g], top[g], middle, side,
            min(most, budget - total), least[g], use, filled, state, work, where,
        )  # fmt: skip
        for j in range(top[g] + 1, least.shape[1]):
            least[g, j] = least[g, top[g]]
    return total
