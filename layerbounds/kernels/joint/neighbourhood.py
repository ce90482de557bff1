"""Large neighbourhoods of a joint problem: exact enumeration over subsets of the inputs, levels and support free.

Arrays are those of `layerbounds.kernels.joint.moves`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.joint.moves import MOVES, descend, enter_state, exchange_units, move, thin_out
from layerbounds.kernels.joint.subsets import arrange, enumerate_subset, least_nonzero, relax
from layerbounds.kernels.linear_algebra import copy, invert_by_sweeps, largest, select
from layerbounds.kernels.pruning.subset import random_below

#: Largest subset.
MOST = 64


@kernel(error_model="numpy", nested=True)
def uniform(state):
    """A random number in [0, 1)."""
    return random_below(state, 1 << 30) / float(1 << 30)


@kernel(error_model="numpy", nested=True)
def pick(n, size, relation, how, place, other, zero, favour, state, score, ordered, subset):
    """Choose a subset: any inputs, or an input and those most related to it; kept ones count ``favour`` times.

    Inputs where ``other`` differs come first.
    """
    seed = random_below(state, n)
    for i in range(n):
        weight = favour if place[i] != zero[i] else 1.0
        if place[i] != other[i]:
            weight *= 1e3
        if how == 0:
            score[i] = -weight * uniform(state)
        else:
            score[i] = -weight * abs(relation[seed, i]) * (0.25 + uniform(state))
        ordered[i] = score[i]
    score[seed] = -np.inf
    ordered[seed] = -np.inf
    select(ordered, n, size - 1)
    threshold = ordered[size - 1]
    count = 0
    for i in range(n):
        if score[i] < threshold and count < size:
            subset[count] = i
            count += 1
    for i in range(n):
        if not score[i] < threshold and count < size:
            subset[count] = i
            count += 1


@kernel(error_model="numpy", nested=True)
def kick(many, gram, values, count, zero, unit, group, capacity, place, gradient, held, used, inverse, state):
    """Exchange some kept units for others of their groups, and move some levels by one."""
    n, units = len(place), len(group)
    for _ in range(many):
        first = random_below(state, n)
        out = -1
        for t in range(n):
            i = (first + t) % n
            if place[i] != zero[i]:
                out = i
                break
        if out < 0:
            return
        if uniform(state) < 0.3:
            to = place[out] + (1 if uniform(state) < 0.5 else -1)
            if 0 <= to < count[out]:
                move(out, to, gram, values, zero, unit, group, place, gradient, held, used)
            continue
        u = unit[out]
        g = group[u]
        for i in range(n):
            if unit[i] == u and place[i] != zero[i]:
                move(i, zero[i], gram, values, zero, unit, group, place, gradient, held, used)
        first = random_below(state, units)
        for t in range(units):
            v = (first + t) % units
            if v != u and held[v] == 0 and group[v] == g:
                for i in range(n):
                    if unit[i] == v:
                        q = least_nonzero(
                            values[i], count[i], zero[i], values[i, place[i]] - gradient[i] * inverse[i], 1.0, 0.0
                        )
                        if q >= 0:
                            move(i, q, gram, values, zero, unit, group, place, gradient, held, used)
                break


@kernel(error_model="numpy", nested=True)
def settle(
    gram, target, values, count, zero, unit, begin, group, capacity, place, gradient, held, used, inverse, floor
):  # fmt: skip
    """Moves of all kinds until none helps."""
    for _ in range(MOVES + len(group)):
        descend(gram, target, values, count, zero, unit, group, capacity, place, gradient, held, used, inverse, floor)
        if len(group) == len(target):
            return
        if exchange_units(
            gram, target, values, count, zero, unit, begin, group, capacity, place, gradient, held, used, inverse,
            floor,
        ) >= 0.0:  # fmt: skip
            return


@kernel(error_model="numpy", nested=True)
def error_of(target, values, place, gradient):
    """(v − w)ᵀH(v − w)."""
    total = 0.0
    for i in range(len(target)):
        total += (values[i, place[i]] - target[i]) * gradient[i]
    return total


@kernel(error_model="numpy", nested=True)
def choose(at, size, pool, mixes, zero, relations, place, elite, state, score, ordered, subset):
    """The inputs of a subset; returns how many."""
    n = len(place)
    m = min(min(n, MOST), max(2, int(size[at])))
    if m >= n:
        for i in range(n):
            subset[i] = i
        return n
    how = random_below(state, 3)
    favour = 1.0 + 3.0 * uniform(state)
    other = place
    if pool > 0 and uniform(state) < mixes:
        other = elite[random_below(state, pool)]
    pick(n, m, relations[max(how - 1, 0)], how, place, other, zero, favour, state, score, ordered, subset)
    return m


@kernel(error_model="numpy", nested=True)
def centre_of(m, block, gradient, values, place, subset, theta, score, x, flat):
    """The best point of a subset given the others, into ``score``; returns what the present choice is above it.

    ``block`` is the inverse of the subset's matrix; ``x`` becomes the present weights.
    """
    present = 0.0
    for i in range(m):
        t = 0.0
        for j in range(m):
            t += block[i, j] * gradient[subset[j]]
        v = values[subset[i], place[subset[i]]]
        score[i] = v - t
        x[i] = v
        present += t * gradient[subset[i]]
        flat[i] = theta / block[i, i]
    return present


@kernel(error_model="numpy", nested=True)
def tilted_cost(m, gram, values, place, subset, x, slope):
    """What the present choice of a subset costs from the point x, tilted by ``slope``."""
    present = 0.0
    for i in range(m):
        k = subset[i]
        v = values[k, place[k]]
        t = 0.0
        for j in range(m):
            t += gram[k, subset[j]] * (values[subset[j], place[subset[j]]] - x[j])
        present += (v - x[i]) * t + 2.0 * slope[i] * v
    return present


@kernel(error_model="numpy", nested=True)
def take_out(m, subset, place, zero, unit, group, capacity, held, used, room):
    """Take a subset's weights out of the capacities; ``room`` is what the others leave."""
    for k in range(m):
        i = subset[k]
        if place[i] != zero[i]:
            held[unit[i]] -= 1
            if held[unit[i]] == 0:
                used[group[unit[i]]] -= 1
    for g in range(len(capacity)):
        room[g] = capacity[g] - used[g]


@kernel(error_model="numpy", nested=True)
def put_back(m, subset, place, zero, unit, group, held, used):
    """Undo `take_out`."""
    for k in range(m):
        i = subset[k]
        if place[i] != zero[i]:
            if held[unit[i]] == 0:
                used[group[unit[i]]] += 1
            held[unit[i]] += 1


@kernel(error_model="numpy", nested=True)
def search_subset(
    m, budget, floor, tilted, theta, sweeps, problem, place, gradient, held, used, price, subset, score, ordered, work,
):  # fmt: skip
    """Enumerate a subset: whether something better was found, which is the last array of ``work``, and the nodes."""
    gram, values, count, zero, unit, group, capacity = problem
    (
        block, shifts, curves, pivots, cost, h, flat, x, slope, spend, room, table, counts, zeros, units, centres,
        chosen, below, above, spare, order, found_place,
    ) = work  # fmt: skip
    for i in range(m):
        for j in range(m):
            block[i, j] = gram[subset[i], subset[j]]
    if not invert_by_sweeps(block, m):
        return False, 0
    present = centre_of(m, block, gradient, values, place, subset, theta, score, x, flat)
    take_out(m, subset, place, zero, unit, group, capacity, held, used, room)
    if tilted:
        relax(
            m, sweeps, gram, subset, values, count, zero, score, flat, unit, group, held, room, price, spend, x, slope
        )
        present = tilted_cost(m, gram, values, place, subset, x, slope)
        for i in range(m):
            score[i] = x[i]
    arrange(m, block, theta, order, pivots, shifts, curves, ordered)
    for k in range(m):
        i = subset[order[k]]
        centres[m, k] = score[order[k]]
        h[k] = slope[order[k]] if tilted else 0.0
        counts[k], zeros[k], units[k] = count[i], zero[i], unit[i]
        for j in range(count[i]):
            table[k, j] = values[i, j]
    _, found, nodes = enumerate_subset(
        m, budget, present - floor, tilted, pivots, shifts, table, counts, zeros, h, curves, units, group, held, room,
        price, centres, cost, chosen, below, above, spare, found_place,
    )  # fmt: skip
    put_back(m, subset, place, zero, unit, group, held, used)
    return found, nodes


@kernel(error_model="numpy", nested=True)
def remember(value, floor, pool, place, elite, merit):
    """Keep a choice among the good ones, if it is not there yet; returns how many there are."""
    most = len(merit)
    slot = pool if pool < most else largest(merit, most)
    if not value < merit[slot]:
        slot = -1
    for q in range(pool):
        if abs(merit[q] - value) <= floor:
            slot = -1
    if slot == pool:
        pool += 1
    if slot >= 0:
        merit[slot] = value
        copy(place, elite[slot])
    return pool


@kernel(error_model="numpy", nested=True)
def work_space(most, longest, groups):
    """Arrays for the work on a subset."""
    return (
        np.empty((most, most)), np.empty((most, most)), np.empty((most, most)), np.empty(most), np.empty(most + 1),
        np.zeros(most), np.empty(most), np.empty(most), np.empty(most), np.empty(groups), np.zeros(groups, np.int64),
        np.empty((most, longest)), np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64),
        np.empty((most + 1, most)), np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64),
        np.empty(most, np.bool_), np.empty(most, np.int64), np.empty(most, np.int64),
    )  # fmt: skip


@kernel(error_model="numpy")
def improve_place(
    gram, target, values, count, zero, unit, begin, group, capacity, relations, place, floor, size, stall, rounds,
    budget, tilts, mixes, theta, sweeps, price, elite, merit, state,
):  # fmt: skip
    """Improve a choice in place by moves, subsets and kicks.

    Parameters
    ----------
    gram : (n, n) float64
    target : (n,) float64
    values : (n, longest) float64
    count, zero, unit : (n,) int64
    begin : (units + 1,) int64
        First input of each unit.
    group : (units,) int64
    capacity : (groups,) int64
    relations : (2, n, n) float64
        How much two inputs interact.
    place : (n,) int64
        Becomes the best choice.
    floor : float
        Smaller gains do not count.
    size : (2,) float64
        Subset size without and with tilts; adapted so that most enumerations end within the budget. State.
    stall : int
        Subsets without success before a kick.
    rounds, budget : int
        Subsets, and nodes for each.
    tilts, mixes : float
        Share of the enumerations that a relaxation of the subset's problem tilts and bounds, and of the subsets that
        begin with the inputs in which a good choice differs.
    theta : float
        Curvature of these bounds, as a share of what an input has when the others of the subset follow it; it is a
        guess and not proven.
    sweeps : int
        Of the relaxation.
    price : (groups,) float64
        Of a unit in the relaxation. State.
    elite : (choices, n) int64
    merit : (choices,) float64
        Other good choices and their errors, infinite where there is none yet. State.
    state : (1,) uint64
        Of the random numbers.

    Returns
    -------
    float
        The error of the best choice.
    """
    n = len(target)
    most = min(n, MOST)
    problem = (gram, values, count, zero, unit, group, capacity)
    gradient, inverse = np.empty(n), np.empty(n)
    held, used = np.empty(len(group), np.int64), np.empty(len(capacity), np.int64)
    for i in range(n):
        inverse[i] = 1.0 / gram[i, i]
    now = place.copy()
    enter_state(gram, target, values, zero, unit, group, now, gradient, held, used)
    # A start may keep more than the capacities.
    thin_out(gram, target, values, count, zero, unit, begin, group, capacity, now, gradient, held, used, inverse, floor)
    settle(gram, target, values, count, zero, unit, begin, group, capacity, now, gradient, held, used, inverse, floor)
    enter_state(gram, target, values, zero, unit, group, now, gradient, held, used)
    best = error_of(target, values, now, gradient)
    copy(now, place)
    subset, score, ordered = np.empty(n, np.int64), np.empty(n), np.empty(n)
    work = work_space(most, values.shape[1], len(capacity))
    order, found_place = work[-2], work[-1]
    idle, at, pool = 0, 0, 0
    while pool < len(merit) and merit[pool] < np.inf:
        pool += 1
    for _ in range(rounds):
        if idle == 0:
            at = 1 if uniform(state) < tilts else 0
        m = choose(at, size, pool, mixes, zero, relations, now, elite, state, score, ordered, subset)
        found, nodes = search_subset(
            m, budget, floor, at == 1, theta, sweeps, problem, now, gradient, held, used, price, subset, score, ordered,
            work,
        )  # fmt: skip
        if nodes >= budget:
            size[at] = max(4.0, size[at] - 0.5)
        elif 0 < nodes < budget // 8:
            size[at] = min(float(most), size[at] + 0.1)
        idle += 1
        if found:
            # First those that go to zero: no group is ever too full.
            for part in range(2):
                for k in range(m):
                    i = subset[order[k]]
                    to = found_place[k]
                    if to != now[i] and (to == zero[i]) == (part == 0):
                        move(i, to, gram, values, zero, unit, group, now, gradient, held, used)
            idle = 0
        elif idle > stall:
            idle = 0
            enter_state(gram, target, values, zero, unit, group, now, gradient, held, used)
            pool = remember(error_of(target, values, now, gradient), floor, pool, now, elite, merit)
            chance = uniform(state)
            if chance < 0.75:
                copy(place if chance < 0.5 else elite[random_below(state, pool)], now)
            enter_state(gram, target, values, zero, unit, group, now, gradient, held, used)
            many = 2 + random_below(state, 3)
            kick(many, gram, values, count, zero, unit, group, capacity, now, gradient, held, used, inverse, state)
        else:
            continue
        settle(
            gram, target, values, count, zero, unit, begin, group, capacity, now, gradient, held, used, inverse, floor
        )
        value = error_of(target, values, now, gradient)
        if value < best - floor:
            best = value
            copy(now, place)
    return best
