"""Local search over levels and support at once: single moves, pairs of moves, and exchanges of whole units.

All work on a Gram matrix H, a target w, and sorted values of each input with zero among them, shape (n, longest),
padded with the last one; ``count`` holds their numbers and ``zero`` the place of zero. ``place`` is the choice. Units
with a weight other than zero fill the capacities of their groups.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel
from layerbounds.kernels.quantization.rounding import nearest

#: Sweeps over the inputs of a unit that comes in.
SWEEPS = 2
#: Moves of a descent for each input, at most: where all terms cancel, rounding makes up gains without end.
MOVES = 100


@kernel(error_model="numpy", fastmath=REORDER, nested=True)
def add_scaled(amount, column, gradient):
    """Gradient += amount · column."""
    for i in range(len(gradient)):
        gradient[i] += amount * column[i]


@kernel(error_model="numpy", nested=True)
def enter_state(gram, target, values, zero, unit, group, place, gradient, held, used):
    """Fill what belongs to a choice: H(v − w), nonzero weights of each unit, kept units of each group."""
    n = len(target)
    for u in range(len(held)):
        held[u] = 0
    for g in range(len(used)):
        used[g] = 0
    for i in range(n):
        gradient[i] = 0.0
    for i in range(n):
        add_scaled(values[i, place[i]] - target[i], gram[i], gradient)
        if place[i] != zero[i]:
            if held[unit[i]] == 0:
                used[group[unit[i]]] += 1
            held[unit[i]] += 1


@kernel(error_model="numpy", nested=True)
def move(i, to, gram, values, zero, unit, group, place, gradient, held, used):
    """Give input i another value."""
    add_scaled(values[i, to] - values[i, place[i]], gram[i], gradient)
    u = unit[i]
    if place[i] != zero[i]:
        held[u] -= 1
        if held[u] == 0:
            used[group[u]] -= 1
    if to != zero[i]:
        if held[u] == 0:
            used[group[u]] += 1
        held[u] += 1
    place[i] = to


@kernel(error_model="numpy", nested=True)
def best_partner(
    i, s, change, gram, values, count, zero, unit, group, capacity, place, gradient, held, used, inverse, best
):
    """The move of another input that goes best with a step s of input i.

    ``change`` is 1 where the step brings a unit in, −1 where it takes one out. Returns the gain (negative, below
    ``best``), the input and its new place; −1 for none.
    """
    n = len(gradient)
    row = gram[i]
    own, at = unit[i], group[unit[i]]
    alone = s * (2.0 * gradient[i] + row[i] * s)
    pick = -1
    to = -1
    for j in range(n):
        if j == i:
            continue
        cross = gradient[j] + row[j] * s
        # The least that any value of it could bring.
        if alone - cross * cross * inverse[j] >= best:
            continue
        u = unit[j]
        if held[u] == 0 and u != own:
            g = group[u]
            if not used[g] + (change if g == at else 0) < capacity[g]:
                continue
        now = values[j, place[j]]
        q = nearest(values[j], count[j], now - cross * inverse[j])
        if q == place[j]:
            continue
        t = values[j, q] - now
        gain = alone + t * (2.0 * cross + gram[j, j] * t)
        if gain < best:
            best = gain
            pick = j
            to = q
    return best, pick, to


@kernel(error_model="numpy", nested=True)
def descend(gram, target, values, count, zero, unit, group, capacity, place, gradient, held, used, inverse, floor):
    """Single moves and pairs of moves, the best ones of each input in turn, until none gains more than ``floor``.

    Returns the change of the error.
    """
    n = len(target)
    total = 0.0
    idle = 0
    left = MOVES * n
    i = 0
    while idle < n and left > 0:
        best = -floor
        first = -1
        second, other = -1, -1
        u = unit[i]
        now = values[i, place[i]]
        full = held[u] == 0 and not used[group[u]] < capacity[group[u]]
        if not full:
            q = nearest(values[i], count[i], now - gradient[i] * inverse[i])
            if q != place[i]:
                s = values[i, q] - now
                gain = s * (2.0 * gradient[i] + gram[i, i] * s)
                if gain < best:
                    best = gain
                    first = q
            # To zero, and to the values beside the present one.
            for option in range(3):
                if option == 0:
                    q = zero[i]
                elif option == 1:
                    q = place[i] - 1
                else:
                    q = place[i] + 1
                if q < 0 or q >= count[i] or q == place[i] or (option > 0 and q == zero[i]):
                    continue
                s = values[i, q] - now
                if place[i] == zero[i]:
                    change = 1 if held[u] == 0 else 0
                else:
                    change = -1 if q == zero[i] and held[u] == 1 else 0
                value, j, to = best_partner(
                    i, s, change, gram, values, count, zero, unit, group, capacity, place, gradient, held, used,
                    inverse, best,
                )  # fmt: skip
                if j >= 0:
                    best = value
                    first = q
                    second, other = j, to
        if first >= 0:
            move(i, first, gram, values, zero, unit, group, place, gradient, held, used)
            if second >= 0:
                move(second, other, gram, values, zero, unit, group, place, gradient, held, used)
            total += best
            idle = 0
            left -= 1
        else:
            idle += 1
        i = i + 1 if i + 1 < n else 0
    return total


@kernel(error_model="numpy", nested=True)
def thin_out(
    gram, target, values, count, zero, unit, begin, group, capacity, place, gradient, held, used, inverse, floor
):
    """Drop units until the capacities hold: the one that costs least beside the best move of an input that is kept.

    After each the others move as long as that helps, at the number of units that is left.
    """
    reached = np.empty(len(capacity), np.int64)
    while True:
        for g in range(len(capacity)):
            reached[g] = max(used[g] - 1, capacity[g])
        best = np.inf
        out, partner, to = -1, -1, -1
        for u in range(len(group)):
            if held[u] == 0 or not used[group[u]] > capacity[group[u]]:
                continue
            first, last = begin[u], begin[u + 1]
            if last == first + 1:
                s = -values[first, place[first]]
                alone = s * (2.0 * gradient[first] + gram[first, first] * s)
                cost, j, q = best_partner(
                    first, s, -1, gram, values, count, zero, unit, group, reached, place, gradient, held, used, inverse,
                    alone,
                )  # fmt: skip
            else:
                # The gradient moves with the unit's inputs, one after the other.
                cost, j, q = 0.0, -1, -1
                for i in range(first, last):
                    s = -values[i, place[i]]
                    slope = gradient[i]
                    for k in range(first, i):
                        slope -= gram[i, k] * values[k, place[k]]
                    cost += s * (2.0 * slope + gram[i, i] * s)
            # Costs that overflow are none, but something has to go.
            if cost < best or out < 0:
                best = cost
                out, partner, to = u, j, q
        if out < 0:
            return
        for i in range(begin[out], begin[out + 1]):
            if place[i] != zero[i]:
                move(i, zero[i], gram, values, zero, unit, group, place, gradient, held, used)
        if partner >= 0:
            move(partner, to, gram, values, zero, unit, group, place, gradient, held, used)
        descend_levels(gram, values, count, zero, place, gradient, inverse, floor)


@kernel(error_model="numpy", nested=True)
def descend_levels(gram, values, count, zero, place, gradient, inverse, floor):
    """Single moves of the weights other than zero to other levels, the best of all first, until none helps."""
    for _ in range(MOVES * len(place)):
        best = -floor
        pick, to = -1, -1
        for i in range(len(place)):
            if place[i] == zero[i]:
                continue
            now = values[i, place[i]]
            q = nearest(values[i], count[i], now - gradient[i] * inverse[i])
            if q == place[i] or q == zero[i]:
                continue
            s = values[i, q] - now
            gain = s * (2.0 * gradient[i] + gram[i, i] * s)
            if gain < best:
                best = gain
                pick, to = i, q
        if pick < 0:
            return
        add_scaled(values[pick, to] - values[pick, place[pick]], gram[pick], gradient)
        place[pick] = to


@kernel(error_model="numpy", nested=True)
def fill_unit(members, gram, values, count, gradient, inverse, steps, to):
    """Values of the inputs of an empty unit by coordinate descent; ``gradient`` of the members is used up.

    Returns the change of the error; ``to`` are the places and ``steps`` the values.
    """
    size = len(members)
    for p in range(size):
        steps[p] = 0.0
        to[p] = -1
    total = 0.0
    for _ in range(SWEEPS):
        for p in range(size):
            i = members[p]
            q = nearest(values[i], count[i], steps[p] - gradient[p] * inverse[i])
            t = values[i, q] - steps[p]
            to[p] = q
            if t == 0.0:
                continue
            total += t * (2.0 * gradient[p] + gram[i, i] * t)
            steps[p] = values[i, q]
            for r in range(size):
                gradient[r] += gram[i, members[r]] * t
    return total


@kernel(error_model="numpy", nested=True)
def exchange_units(
    gram, target, values, count, zero, unit, begin, group, capacity, place, gradient, held, used, inverse, floor
):
    """The best exchange of a kept unit for an empty one of its group, or entry where there is room; True if it helps.

    Units are runs of inputs: ``begin[u]`` to ``begin[u + 1]``.
    """
    n, units = len(target), len(group)
    shifted = np.empty(n)
    inside = np.arange(n)
    local, steps = np.empty(n), np.empty(n)
    to = np.empty(n, np.int64)
    best = -floor
    leaving, entering = -1, -1
    for out in range(-1, units):
        if out >= 0 and held[out] == 0:
            continue
        change = 0.0
        for j in range(n):
            shifted[j] = gradient[j]
        if out >= 0:
            for i in range(begin[out], begin[out + 1]):
                t = -values[i, place[i]]
                if t != 0.0:
                    change += t * (2.0 * shifted[i] + gram[i, i] * t)
                    add_scaled(t, gram[i], shifted)
        for u in range(units):
            if held[u] > 0 or u == out:
                continue
            g = group[u]
            if not used[g] < capacity[g] and (out < 0 or group[out] != g):
                continue
            first, last = begin[u], begin[u + 1]
            for i in range(first, last):
                local[i] = shifted[i]
            value = change + fill_unit(
                inside[first:last], gram, values, count, local[first:last], inverse, steps[first:last], to[first:last]
            )
            if value < best:
                best = value
                leaving, entering = out, u
    if entering < 0:
        return 0.0
    if leaving >= 0:
        for i in range(begin[leaving], begin[leaving + 1]):
            if place[i] != zero[i]:
                move(i, zero[i], gram, values, zero, unit, group, place, gradient, held, used)
    first, last = begin[entering], begin[entering + 1]
    for i in range(first, last):
        local[i] = gradient[i]
    fill_unit(inside[first:last], gram, values, count, local[first:last], inverse, steps[first:last], to[first:last])
    for i in range(first, last):
        if to[i] >= 0 and to[i] != place[i]:
            move(i, to[i], gram, values, zero, unit, group, place, gradient, held, used)
    return best
