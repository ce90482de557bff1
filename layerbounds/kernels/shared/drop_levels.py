"""Levels of the search of `drops`: the matrices of the undecided units, and what dropping one more of them costs."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.shared.elimination import PASSED, eliminate_rows, update_row


@kernel(error_model="numpy", nested=True)
def rank_costs(cost, count, order):
    """Units by descending cost."""
    for i in range(count):
        at = i
        while at > 0 and cost[order[at - 1]] < cost[i]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = i


@kernel(error_model="numpy", nested=True)
def take_rows(matrix, edge, s, rest, count, target):
    """The rows of a unit of a symmetric matrix, whose upper triangle is stored: its own columns, then the others'."""
    low, high = edge[s], edge[s + 1]
    for i in range(low, high):
        row = target[i - low]
        source = matrix[i]
        for k in range(i, high):
            row[k - low] = source[k]
        at = high - low
        for x in range(count):
            begin, end = edge[rest[x]], edge[rest[x] + 1]
            if begin > low:
                for k in range(begin, end):
                    row[at + k - begin] = source[k]
            else:
                for k in range(begin, end):
                    row[at + k - begin] = matrix[k, i]
            at += end - begin


@kernel(error_model="numpy", nested=True)
def single_costs(a, m, edge, rest, count, size, panel, work, floor, value, threshold, cost):
    """What one more unit adds to a value, infinite where the sum exceeds a threshold; how many stay below.

    ``panel`` are the rows of a unit that is eliminated, whose columns begin with its own ``size`` ones. −1 where a
    pivot is not above its ``floor``; but such inputs add nothing, and the function goes on.
    """
    scaled, y, x = panel
    leaf, moment, own, own_y, floors, state, peak = work
    at, left, passed = size, 0, False
    for u in range(count):
        low, high = edge[rest[u]], edge[rest[u] + 1]
        stop = at + high - low
        for j in range(low, high):
            row, other = leaf[j - low], moment[j - low]
            source, second = a[j], m[j]
            floors[at + j - low] = floor[j]
            for k in range(j, high):
                row[at + k - low] = source[k]
                other[at + k - low] = second[k]
            update_row(at + j - low, stop, size, scaled, y, x, row, other)
        total = value + eliminate_rows(at, high - low, stop, floors, leaf, moment, own, own_y, state, peak)
        for k in range(at, stop):
            passed = passed or state[k] == PASSED
        cost[u] = total
        if total <= threshold:
            left += 1
        else:
            cost[u] = np.inf
        at = stop
    return -1 if passed else left


@kernel(error_model="numpy", nested=True)
def next_level(a, m, edge, rest, count, size, panel, cost, to_a, to_m, to_edge, to_cost, to_unit, unit):
    """What is left of the matrices for the units of finite cost; returns their number."""
    scaled, y, x = panel
    at, to, left = size, 0, 0
    to_edge[0] = 0
    for u in range(count):
        width = edge[rest[u] + 1] - edge[rest[u]]
        if cost[u] < np.inf:
            for i in range(size):
                for k in range(width):
                    scaled[i, to + k] = scaled[i, at + k]
                    y[i, to + k] = y[i, at + k]
                    x[i, to + k] = x[i, at + k]
            rest[left] = rest[u]
            to_cost[left] = cost[u]
            to_unit[left] = unit[rest[u]]
            to += width
            left += 1
            to_edge[left] = to
        at += width
    for u in range(left):
        begin = edge[rest[u]]
        for j in range(begin, edge[rest[u] + 1]):
            r = to_edge[u] + j - begin
            row, other = to_a[r], to_m[r]
            for v in range(u, left):
                low = max(edge[rest[v]], j)
                shift = to_edge[v] - edge[rest[v]]
                for k in range(low, edge[rest[v] + 1]):
                    row[k + shift] = a[j, k]
                    other[k + shift] = m[j, k]
            update_row(r, to, size, scaled, y, x, row, other)
    return left


@kernel(error_model="numpy", nested=True)
def room_for(units, many, group, need, cost, available):
    """Whether every group has as many units of finite cost as are still to be dropped in it."""
    for g in range(len(need)):
        available[g] = 0
    for u in range(many):
        if cost[u] < np.inf:
            available[group[units[u]]] += 1
    for g in range(len(need)):
        if available[g] < need[g]:
            return False
    return True


@kernel(error_model="numpy")
def open_level(a, m, edge, group, need, dropped, free, threshold, to_a, to_m, to_edge, to_unit, to_cost, order, value):
    """What is left of the matrices for the units that can still be dropped, after those that are.

    Parameters
    ----------
    a, m, edge
        Matrices of all units and the first input of each; upper triangles.
    group, need
        The group of each unit, and how many are still to be dropped in each group.
    dropped, free
        Units.
    to_a, to_m, to_edge, to_unit, to_cost, order, value
        Results: as for a level of `drop_units`.

    Returns
    -------
    int
        How many units there are; −1 where rounding has made a pivot negative.
    """
    count = len(dropped)
    units = np.empty(count + len(free), np.int64)
    at = np.zeros(len(units) + 1, np.int64)
    widest, many = 1, 0
    for x in range(len(units)):
        unit = dropped[x] if x < count else free[x - count]
        if x >= count and need[group[unit]] == 0:
            continue
        width = edge[unit + 1] - edge[unit]
        widest = max(widest, width)
        units[many] = unit
        at[many + 1] = at[many] + width
        many += 1
    n = at[many]
    left, moments = np.empty((n, n)), np.empty((n, n))
    for x in range(many):
        for y in range(x, many):
            for i in range(edge[units[x]], edge[units[x] + 1]):
                for k in range(edge[units[y]], edge[units[y] + 1]):
                    r, c = at[x] + i - edge[units[x]], at[y] + k - edge[units[y]]
                    left[r, c] = a[min(i, k), max(i, k)]
                    moments[r, c] = m[min(i, k), max(i, k)]
    panel, second, scaled, quotient = (
        np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)),
    )  # fmt: skip
    own, other = np.empty((widest, n)), np.empty((widest, n))
    floor, state, peak = np.zeros(n), np.zeros(n, np.int8), np.zeros(n)
    total = 0.0
    for x in range(count):
        low, high = at[x], at[x + 1]
        for i in range(low, high):
            for k in range(i, n):
                panel[i - low, k] = left[i, k]
                second[i - low, k] = moments[i, k]
        total += eliminate_rows(low, high - low, n, floor, panel, second, scaled, quotient, state, peak)
        for i in range(low, high):
            if state[i] == PASSED:
                return -1
        for j in range(high, n):
            update_row(j, n, high - low, scaled, quotient, second, left[j], moments[j])
    value[0] = total
    rest, cost = np.arange(count, many), np.empty(many - count)
    work = (panel, second, own, other, np.zeros(n), state, peak)
    none = (scaled, quotient, np.empty((widest, n)))
    if single_costs(left, moments, at, rest, many - count, 0, none, work, floor, total, threshold, cost) < 0:
        return -1
    final = next_level(
        left, moments, at, rest, many - count, 0, none, cost, to_a, to_m, to_edge, to_cost, to_unit, units
    )
    rank_costs(to_cost, final, order)
    return final
