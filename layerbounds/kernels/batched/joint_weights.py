"""Levels and support of many rows: rounding in order within given sets, and a local search over both.

``values[r, i]`` are the sorted levels of weight i of row r with zero among them, ``zero[r, i]`` is a place of zero, and
``place`` the choice. Inputs are sorted by group: group g has the inputs ``begins[g]:begins[g + 1]``. The matrix has the
diagonal 1.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.batched.tabu import next_state
from layerbounds.kernels.compilation import REORDER, kernel
from layerbounds.kernels.quantization.rounding import nearest

#: Moves of each kind that are tried in pairs, and inputs of a group all of which may be dropped for another.
MOVES, SMALL = 64, 16
#: Moves after a kick.
AFTER = 40


@kernel()
def round_sets(shifts, centres, targets, inputs, values, zero, kept, place, errors):
    """Round a block of inputs of many rows in order, those outside of the sets to zero.

    Parameters
    ----------
    shifts : ndarray of float32, shape (block, block)
        Row j: how far the centres of later inputs of the block move for a unit error of input j.
    centres : ndarray of float32, shape (rows, block)
        Targets, moved by the errors of all earlier blocks. Overwritten.
    targets : ndarray of float32, shape (rows, n)
    inputs : ndarray of int64, shape (block,)
    values, zero
        See the module.
    kept : ndarray of bool, shape (rows, n)
    place : ndarray of int16, shape (rows, n)
        Filled at the inputs.
    errors : ndarray of float32, shape (rows, block)
        Filled: targets minus levels.
    """
    block = len(inputs)
    count = values.shape[2]
    for r in range(len(centres)):
        for j in range(block):
            i = inputs[j]
            k = nearest(values[r, i], count, centres[r, j]) if kept[r, i] else zero[r, i]
            place[r, i] = k
            error = targets[r, i] - values[r, i, k]
            errors[r, j] = error
            if error != 0.0:
                for m in range(j + 1, block):
                    centres[r, m] += error * shifts[j, m]


@kernel(fastmath=REORDER, nested=True)
def _add(step, row, slope):
    for j in range(len(slope)):
        slope[j] += step * row[j]


@kernel(nested=True)
def _go(i, to, matrix, values, unit, group, place, v, slope, held, used):
    """Give input i another level."""
    new = values[i, to]
    _add(new - v[i], matrix[i], slope)
    u = unit[i]
    if v[i] != 0.0:
        held[u] -= 1
        if held[u] == 0:
            used[group[u]] -= 1
    if new != 0.0:
        if held[u] == 0:
            used[group[u]] += 1
        held[u] += 1
    place[i] = to
    v[i] = new


@kernel(nested=True)
def _entry(levels, slope):
    """The best level other than zero for an input that is zero, −1 where there is none, and what that costs."""
    k = nearest(levels, len(levels), -slope)
    if levels[k] != 0.0:
        return k, levels[k] * (2.0 * slope + levels[k])
    low, high = k, k
    while low >= 0 and levels[low] == 0.0:
        low -= 1
    while high < len(levels) and levels[high] == 0.0:
        high += 1
    best = -1
    cost = np.inf
    if low >= 0:
        best, cost = low, levels[low] * (2.0 * slope + levels[low])
    if high < len(levels):
        other = levels[high] * (2.0 * slope + levels[high])
        if other < cost:
            best, cost = high, other
    return best, cost


@kernel(nested=True)
def _beside(levels, place, v, slope):
    """The cheaper of the levels beside the present one, −1 where there is none, and its cost."""
    low, high = place, place
    while low >= 0 and levels[low] == v:
        low -= 1
    while high < len(levels) and levels[high] == v:
        high += 1
    best = -1
    cost = np.inf
    if low >= 0:
        step = levels[low] - v
        best, cost = low, step * (2.0 * slope + step)
    if high < len(levels):
        step = levels[high] - v
        other = step * (2.0 * slope + step)
        if other < cost:
            best, cost = high, other
    return best, cost


@kernel(nested=True)
def _insert(cost, i, costs, picks, size):
    """Keep the cheapest moves, sorted; returns how many there are."""
    if size == len(costs) and not cost < costs[size - 1]:
        return size
    k = size if size < len(costs) else size - 1
    while k > 0 and costs[k - 1] > cost:
        costs[k] = costs[k - 1]
        picks[k] = picks[k - 1]
        k -= 1
    costs[k] = cost
    picks[k] = i
    return min(size + 1, len(costs))


@kernel(nested=True)
def _single(values, unit, group, capacity, place, v, slope, held, used, floor):
    """The best move of one input: the gain, the input and its level."""
    best = -floor
    pick, to = -1, 0
    count = values.shape[1]
    for i in range(len(v)):
        u = unit[i]
        if held[u] == 0 and not used[group[u]] < capacity[group[u]]:
            continue
        if abs(slope[i]) * abs(slope[i]) <= -best:
            # No level saves more.
            continue
        k = nearest(values[i], count, v[i] - slope[i])
        step = values[i, k] - v[i]
        gain = step * (2.0 * slope[i] + step)
        if gain < best:
            best = gain
            pick, to = i, k
    return best, pick, to


@kernel(nested=True)
def _pair(matrix, values, unit, group, capacity, begins, place, v, slope, held, used, floor, costs, picks, cheapest):
    """The best of an exchange and two moves among the promising ones: the gain, the inputs and their levels."""
    n, count = values.shape
    moves, entries, exits = 0, 0, 0
    for g in range(len(capacity)):
        cheapest[g] = np.inf
    for i in range(n):
        if v[i] != 0.0 and held[unit[i]] == 1:
            cost = -v[i] * (2.0 * slope[i] - v[i])
            exits = _insert(cost, i, costs[2], picks[2], exits)
            g = group[unit[i]]
            cheapest[g] = min(cheapest[g], cost)
    for i in range(n):
        u = unit[i]
        if held[u] == 0 and not used[group[u]] < capacity[group[u]]:
            k, cost = _entry(values[i], slope[i])
            if k >= 0 and cheapest[group[u]] < np.inf:
                entries = _insert(cost + cheapest[group[u]], i, costs[1], picks[1], entries)
        else:
            k, cost = _beside(values[i], place[i], v[i], slope[i])
            if k >= 0:
                moves = _insert(cost, i, costs[0], picks[0], moves)
    best = -floor
    first, to, second, other = -1, 0, -1, 0
    for a in range(entries):
        j = picks[1, a]
        g = group[unit[j]]
        small = begins[g + 1] - begins[g] <= SMALL
        for b in range(begins[g + 1] - begins[g] if small else exits):
            i = begins[g] + b if small else picks[2, b]
            if v[i] == 0.0 or held[unit[i]] != 1 or group[unit[i]] != g:
                continue
            alone = -v[i] * (2.0 * slope[i] - v[i])
            cross = slope[j] - matrix[j, i] * v[i]
            if not alone - cross * cross < best:
                # No level saves more.
                continue
            k, cost = _entry(values[j], cross)
            cost += alone
            if k >= 0 and cost < best:
                best = cost
                first, to, second, other = i, -1, j, k
    for a in range(moves):
        i = picks[0, a]
        k, alone = _beside(values[i], place[i], v[i], slope[i])
        step = values[i, k] - v[i]
        opens = held[unit[i]] == 0
        for b in range(moves):
            j = picks[0, b]
            if j == i or (opens and held[unit[j]] == 0):
                continue
            cross = slope[j] + matrix[i, j] * step
            if not alone - cross * cross < best:
                continue
            q = nearest(values[j], count, v[j] - cross)
            move = values[j, q] - v[j]
            cost = alone + move * (2.0 * cross + move)
            if move != 0.0 and cost < best:
                best = cost
                first, to, second, other = i, k, j, q
    return best, first, to, second, other


@kernel(nested=True)
def _descend(
    matrix,
    values,
    zero,
    unit,
    group,
    capacity,
    begins,
    place,
    v,
    slope,
    held,
    used,
    floor,
    most,
    costs,
    picks,
    cheapest,
):
    """Single moves and pairs, the best one first, at most so many; returns the change of the error."""
    total = 0.0
    for _ in range(most):
        gain, i, to = _single(values, unit, group, capacity, place, v, slope, held, used, floor)
        if i >= 0:
            _go(i, to, matrix, values, unit, group, place, v, slope, held, used)
            total += gain
            continue
        gain, i, to, j, other = _pair(
            matrix, values, unit, group, capacity, begins, place, v, slope, held, used, floor, costs, picks, cheapest
        )
        if i < 0:
            break
        _go(i, zero[i] if to < 0 else to, matrix, values, unit, group, place, v, slope, held, used)
        _go(j, other, matrix, values, unit, group, place, v, slope, held, used)
        total += gain
    return total


@kernel(nested=True)
def _leave(i, matrix, values, zero, unit, group, place, v, slope, held, used):
    """Drop the unit of an input; returns the change of the error."""
    change = 0.0
    first = i
    while first > 0 and unit[first - 1] == unit[i]:
        first -= 1
    for j in range(first, len(v)):
        if unit[j] != unit[i]:
            break
        if v[j] != 0.0:
            change -= v[j] * (2.0 * slope[j] - v[j])
            _go(j, zero[j], matrix, values, unit, group, place, v, slope, held, used)
    return change


@kernel(nested=True)
def _kick(state, matrix, values, zero, unit, group, capacity, begins, place, v, slope, held, used):
    """Exchange units at random, and move an input; returns the change of the error and the random state."""
    n = len(v)
    change = 0.0
    for attempt in range(8):
        state = next_state(state)
        j = int(state % np.uint64(n))
        u = unit[j]
        g = group[u]
        if held[u] > 0 or used[g] < capacity[g]:
            k, cost = _beside(values[j], place[j], v[j], slope[j])
            if k >= 0 and attempt % 2 == 0:
                change += cost
                _go(j, k, matrix, values, unit, group, place, v, slope, held, used)
            continue
        width = begins[g + 1] - begins[g]
        for _ in range(16):
            state = next_state(state)
            i = begins[g] + int(state % np.uint64(width))
            if v[i] != 0.0:
                # The whole unit leaves; others of the one that enters follow in the descent.
                change += _leave(i, matrix, values, zero, unit, group, place, v, slope, held, used)
                k, cost = _entry(values[j], slope[j])
                if k >= 0:
                    change += cost
                    _go(j, k, matrix, values, unit, group, place, v, slope, held, used)
                break
        if attempt >= 2:
            break
    return change, state


@kernel()
def improve_rows(
    matrix, values, zero, unit, group, capacity, begins, place, slopes, floor, most, kicks, states, begin, end
):
    """Local search of the rows ``begin:end``, in place.

    Parameters
    ----------
    matrix : ndarray of float32, shape (n, n)
    values, zero, begins
        See the module.
    unit, group, capacity : ndarray of int64
        Of the inputs, the units and the groups.
    place : ndarray of int16, shape (rows, n)
        Allowed choices.
    slopes : ndarray of float32, shape (rows, n)
        H(v − w) for them.
    floor : float
        Gains of no more than this are rounding.
    most : int
        Moves of the first descent.
    kicks : int
    states : ndarray of uint64, shape (rows,)
        Random states.
    begin, end : int
    """
    n = len(unit)
    v, slope = np.empty(n), np.empty(n)
    held, used = np.empty(len(group), np.int64), np.empty(len(capacity), np.int64)
    old_v, old_slope = np.empty(n), np.empty(n)
    old_held, old_used = np.empty(len(group), np.int64), np.empty(len(capacity), np.int64)
    old_place = np.empty(n, np.int16)
    costs, picks = np.empty((3, MOVES)), np.empty((3, MOVES), np.int64)
    cheapest = np.empty(len(capacity))
    for r in range(begin, end):
        for u in range(len(group)):
            held[u] = 0
        for g in range(len(capacity)):
            used[g] = 0
        for i in range(n):
            v[i] = values[r, i, place[r, i]]
            slope[i] = slopes[r, i]
            if v[i] != 0.0:
                held[unit[i]] += 1
        for u in range(len(group)):
            if held[u] > 0:
                used[group[u]] += 1
        _descend(
            matrix, values[r], zero[r], unit, group, capacity, begins, place[r], v, slope, held, used, floor, most,
            costs, picks, cheapest,
        )  # fmt: skip
        for _ in range(kicks):
            for i in range(n):
                old_v[i], old_slope[i], old_place[i] = v[i], slope[i], place[r, i]
            for u in range(len(group)):
                old_held[u] = held[u]
            for g in range(len(capacity)):
                old_used[g] = used[g]
            change, states[r] = _kick(
                states[r], matrix, values[r], zero[r], unit, group, capacity, begins, place[r], v, slope, held, used
            )
            change += _descend(
                matrix, values[r], zero[r], unit, group, capacity, begins, place[r], v, slope, held, used, floor,
                AFTER, costs, picks, cheapest,
            )  # fmt: skip
            if change > 0.0:
                for i in range(n):
                    v[i], slope[i], place[r, i] = old_v[i], old_slope[i], old_place[i]
                for u in range(len(group)):
                    held[u] = old_held[u]
                for g in range(len(capacity)):
                    used[g] = old_used[g]
