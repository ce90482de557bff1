"""Which units to drop, by branch and bound on the error itself: it only rises while more of them are dropped.

The error of dropping the inputs T is ⟨(H⁻¹)_TT⁻¹, (WᵀW)_TT⟩, so that `elimination` applies to H⁻¹ and WᵀW. See
docs/shared-bounds.md; Furnival & Wilson (Technometrics 16, 1974) search regressions in this way.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.shared.drop_levels import (
    next_level,
    rank_costs,
    room_for,
    single_costs,
    take_rows,
)
from layerbounds.kernels.shared.elimination import PASSED, eliminate_rows

#: Why `drop_units` returned: it is done, it has done the work asked for, there is no room for sets, or rounding has
#: made a pivot negative.
DONE, WORKED, MANY_FOUND, BROKEN = 0, 1, 2, 3


@kernel(error_model="numpy", nested=True)
def make_room(near, found, values, counts, threshold):
    """Whether there is room for some more sets, perhaps after those are forgotten whose value exceeds the threshold."""
    if counts[0] + near > len(found):
        left = 0
        for x in range(counts[0]):
            if values[x] <= threshold:
                values[left] = values[x]
                for p in range(found.shape[1]):
                    found[left, p] = found[x, p]
                left += 1
        counts[0] = left
    return counts[0] + near <= len(found)


@kernel(error_model="numpy", nested=True)
def note_found(chosen, count, units, many, single, threshold, slack, found, values, counts):
    """Write down the sets that one of the last units completes, and lower the threshold."""
    for t in range(many):
        if single[t] <= threshold[0]:
            values[counts[0]] = single[t]
            for r in range(count):
                found[counts[0], r] = chosen[r]
            found[counts[0], count] = units[t]
            counts[0] += 1
            threshold[0] = min(threshold[0], (1.0 + slack[0]) * single[t] + slack[1])


@kernel(error_model="numpy", nested=True)
def take_rest(unit, count, group, flag, needed, rest, units, single):
    """The flagged units of groups that need more; returns how many."""
    many = 0
    for t in range(count):
        if flag[t] and needed[group[unit[t]]] > 0:
            rest[many] = t
            units[many] = unit[t]
            single[many] = 0.0
            many += 1
    return many


@kernel(error_model="numpy")
def drop_units(group, need, most, flat_a, flat_m, begin, side, edge, unit, count, order, cost, value, position, chosen,
               level, threshold, slack, found, values, counts):  # fmt: skip
    """Sets of units to be dropped whose error does not exceed a threshold, which falls with the errors found.

    The search goes depth first. At each node the units of which one more can be dropped are dropped in turn, the most
    costly one first; after each, those before it stay. Can be called again to go on.

    Parameters
    ----------
    group, need
        The group of each unit, and for each level how many are still to be dropped in each group: at least two in all.
    most
        Multiplications after which the function returns.
    flat_a, flat_m, begin, side
        For each level the matrices of the undecided units, of ``side`` rows, from an index on; upper triangles.
    edge, unit, count
        For each level the first input of each unit, the units' numbers, and how many there are.
    order, cost, value, position, chosen
        For each level the units by descending cost, the error with each of them dropped, and with none of them; which
        one is next, and which one is dropped.
    level
        [0] is the level, negative at the end.
    threshold, slack
        [0] is the threshold; it falls to (1 + slack[0])·error + slack[1].
    found, values
        Results: sets, shape (sets, drops), and their errors.
    counts
        Results: sets found, nodes, and multiplications.

    Returns
    -------
    int
        `DONE`, `WORKED`, `MANY_FOUND` or `BROKEN`.
    """
    n, widest, drops = side[0], 0, 0
    for g in range(need.shape[1]):
        drops += need[0, g]
    for g in range(count[0]):
        widest = max(widest, edge[0, g + 1] - edge[0, g])
    scaled, y, x, source = (
        np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)),
    )  # fmt: skip
    panel = (scaled, y, x)
    state = np.zeros(n, np.int8)
    work = (
        np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)), np.zeros(n), state,
        np.zeros(n),
    )  # fmt: skip
    floor = np.zeros(n)
    rest, flag, single = np.empty(len(unit[0]), np.int64), np.zeros(len(unit[0]), np.bool_), np.empty(len(unit[0]))
    needed, available, units = need[0].copy(), need[0].copy(), np.empty(len(unit[0]), np.int64)
    q = level[0]
    end = counts[2] + most
    while q >= 0:
        left = drops - q
        p = position[q]
        if p + left > count[q]:
            q -= 1
            continue
        if counts[2] > end:
            level[0] = q
            return WORKED
        position[q] = p + 1
        s = order[q, p]
        if not cost[q, s] <= threshold[0]:
            continue
        chosen[q] = unit[q, s]
        for g in range(len(needed)):
            needed[g] = need[q, g]
        needed[group[chosen[q]]] -= 1
        for t in range(count[q]):
            flag[order[q, t]] = t > p
        size = edge[q, s + 1] - edge[q, s]
        many = take_rest(unit[q], count[q], group, flag, needed, rest, units, single)
        stop = size
        for t in range(many):
            stop += edge[q, rest[t] + 1] - edge[q, rest[t]]
        if not room_for(units, many, group, needed, single, available):
            continue
        a = flat_a[begin[q] : begin[q] + side[q] * side[q]].reshape(side[q], side[q])
        m = flat_m[begin[q] : begin[q] + side[q] * side[q]].reshape(side[q], side[q])
        take_rows(a, edge[q], s, rest, many, source)
        take_rows(m, edge[q], s, rest, many, x)
        total = value[q] + eliminate_rows(0, size, stop, floor, source, x, scaled, y, state, work[6])
        counts[1] += 1
        counts[2] += 6 * size * size * stop
        for i in range(size):
            if state[i] == PASSED:
                return BROKEN
        near = single_costs(a, m, edge[q], rest, many, size, panel, work, floor, total, threshold[0], single)
        if near < 0:
            return BROKEN
        if not room_for(units, many, group, needed, single, available):
            continue
        if left == 2:
            if not make_room(near, found, values, counts, threshold[0]):
                position[q] = p
                level[0] = q
                return MANY_FOUND
            note_found(chosen, q + 1, units, many, single, threshold, slack, found, values, counts)
            continue
        to_a = flat_a[begin[q + 1] : begin[q + 1] + side[q + 1] * side[q + 1]].reshape(side[q + 1], side[q + 1])
        to_m = flat_m[begin[q + 1] : begin[q + 1] + side[q + 1] * side[q + 1]].reshape(side[q + 1], side[q + 1])
        next_level(
            a, m, edge[q], rest, many, size, panel, single, to_a, to_m, edge[q + 1], cost[q + 1], unit[q + 1], unit[q]
        )
        q += 1
        counts[2] += 3 * size * edge[q, near] * edge[q, near] // 2
        count[q] = near
        for g in range(len(needed)):
            need[q, g] = needed[g]
        rank_costs(cost[q], near, order[q])
        value[q] = total
        position[q] = 0
    level[0] = -1
    return DONE
