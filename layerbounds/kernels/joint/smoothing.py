"""Newton's method on the smoothed relaxation of joint problems, prices of capacities eliminated (docs/joint-engine.md).

Arguments are those of `layerbounds.kernels.joint.relaxed_node`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.joint.relaxed_node import multiply_vector, residual, undecided
from layerbounds.kernels.linear_algebra import back_substitute, copy, factorize, solve_system

#: Exponents beyond which a value has no weight.
FARTHEST = 40.0
#: Least variance, relative to the widest step of an input squared, that counts as undecided.
DECIDED = 1e-10
#: Points along a step, what share of its first slope may be left, and the longest one.
TRIALS, FLAT, LONGEST = 6, 0.3, 16.0
#: First smoothing in units of what a point is short of divided by the root of the number of inputs, its decrease, and
#: its increase where a step comes no further than this share of its length.
FAR, COOLING, HEATING, SHORT = 0.3, 0.25, 10.0, 0.1


@kernel(error_model="numpy", nested=True)
def moments(layer, node, d, x, h, tau, mean, var, least):
    """Of each undecided input beside a kept unit: mean, variance and smoothed least cost; returns the widest variance.

    Probabilities are proportional to exp(−cost/τ).
    """
    _, _, _, _, values, zero, unit, group, _, _ = layer
    first, last, zero_ok, _, _ = node
    n = len(unit)
    single = n == len(group)
    for i in range(n):
        mean[i], var[i], least[i] = x[i], 0.0, 0.0
        if not undecided(zero, first, last, zero_ok, i):
            continue
        with_zero = zero_ok[i] and not single
        low = np.inf
        for k in range(first[i], last[i] + 1):
            if k == zero[i]:
                continue
            t = values[i, k] - x[i]
            low = min(low, t * (2.0 * h[i] + d[i] * t))
        if with_zero:
            low = min(low, x[i] * (d[i] * x[i] - 2.0 * h[i]))
        weight, one, two = 0.0, 0.0, 0.0
        for k in range(first[i], last[i] + 1):
            if k == zero[i] and not with_zero:
                continue
            t = values[i, k] - x[i]
            y = (t * (2.0 * h[i] + d[i] * t) - low) / tau
            if y < FARTHEST:
                p = np.exp(-y)
                weight += p
                one += p * t
                two += p * t * t
        if with_zero and not (first[i] < zero[i] and zero[i] < last[i]):
            t = -x[i]
            y = (t * (2.0 * h[i] + d[i] * t) - low) / tau
            if y < FARTHEST:
                p = np.exp(-y)
                weight += p
                one += p * t
                two += p * t * t
        one /= weight
        mean[i] = x[i] + one
        var[i] = max(two / weight - one * one, 0.0)
        least[i] = low - tau * np.log(weight)


@kernel(error_model="numpy", nested=True)
def kept_share(excess, tau):
    """1/(1 + exp(excess/τ))."""
    y = excess / tau
    if y > FARTHEST:
        return 0.0
    if y < -FARTHEST:
        return 1.0
    return 1.0 / (1.0 + np.exp(y))


@kernel(error_model="numpy", nested=True)
def find_price(saving, members, begin, end, status, room, tau, price):
    """The price of a kept unit at which the expected number of those kept in a group is what there is room for."""
    low, high, count = 0.0, 0.0, 0
    total = 0.0
    for p in range(begin, end):
        u = members[p]
        if status[u] == 0:
            total += kept_share(-saving[u], tau)
            high = max(high, saving[u])
            count += 1
    if total <= room:
        return 0.0
    high += tau * np.log(2.0 * count / room + 2.0)
    at = min(max(price, 0.0), high)
    for _ in range(40):
        total, slope = 0.0, 0.0
        for p in range(begin, end):
            u = members[p]
            if status[u] == 0:
                share = kept_share(at - saving[u], tau)
                total += share
                slope += share * (1.0 - share)
        if abs(total - room) <= 1e-7 * room:
            break
        if total > room:
            low = at
        else:
            high = at
        following = at + tau * (total - room) / slope if slope > 0.0 else np.inf
        at = following if low < following and following < high else 0.5 * (low + high)
    return at


@kernel(error_model="numpy", nested=True)
def smooth(layer, node, d, x, e, h, tau, price, mean, var, least, saving, share):
    """Value of the smoothed bound at a point, with the best prices: moments and shares of kept units belong to it."""
    _, _, _, _, _, zero, unit, group, members, start = layer
    first, last, zero_ok, status, room = node
    n, units = len(unit), len(group)
    moments(layer, node, d, x, h, tau, mean, var, least)
    total = 0.0
    for u in range(units):
        saving[u] = 0.0
        share[u] = 1.0 if status[u] == 1 else 0.0
    for i in range(n):
        total += e[i] * h[i]
        if not undecided(zero, first, last, zero_ok, i):
            continue
        u = unit[i]
        if status[u] == 1:
            total += least[i]
        else:
            c = x[i] * (d[i] * x[i] - 2.0 * h[i])
            total += c
            saving[u] += c - least[i]
    for g in range(len(room)):
        price[g] = find_price(saving, members, start[g], start[g + 1], status, room[g], tau, price[g])
        total -= price[g] * room[g]
        for p in range(start[g], start[g + 1]):
            u = members[p]
            if status[u] != 0:
                continue
            y = (saving[u] - price[g]) / tau
            share[u] = kept_share(price[g] - saving[u], tau)
            # log(1 + exp y)
            total -= tau * (max(y, 0.0) + np.log(1.0 + np.exp(-abs(y))) if abs(y) < FARTHEST else max(y, 0.0))
    return total


@kernel(error_model="numpy", nested=True)
def spread(unit, status, share, mean, var, i):
    """Mean and variance of an undecided input, and its covariance with the choice of its unit."""
    p = share[unit[i]]
    m = p * mean[i]
    across = p * (1.0 - p) * mean[i]
    return m, p * var[i] + across * mean[i], across


@kernel(error_model="numpy")
def variances(layer, node, mean, var, share, result):
    """Variance of every input under the smoothed relaxation's distribution; 0 where it is decided."""
    zero, unit = layer[5], layer[6]
    first, last, zero_ok, status, _ = node
    for i in range(len(unit)):
        result[i] = 0.0
        if undecided(zero, first, last, zero_ok, i):
            _, result[i], _ = spread(unit, status, share, mean, var, i)


@kernel(error_model="numpy", nested=True)
def direction(layer, node, d, x, tau, price, mean, var, share, work, step):
    """Newton's step of the smoothed bound, prices eliminated; False where a factorization breaks down."""
    gram, _, _, _, values, zero, unit, group, members, start = layer
    first, last, zero_ok, status, room = node
    n, groups = len(unit), len(room)
    index, right, ratio = np.empty(n, np.int64), np.empty(n), np.empty(n)
    m = 0
    for i in range(n):
        step[i] = 0.0
        if not undecided(zero, first, last, zero_ok, i):
            continue
        centre, variance, across = spread(unit, status, share, mean, var, i)
        r = centre - x[i]
        wide = values[i, max(last[i], zero[i])] - values[i, min(first[i], zero[i])]
        if variance > DECIDED * wide * wide:
            index[m] = i
            right[m] = 0.5 * tau * r / variance
            ratio[m] = across / variance
            work[m, m] = 0.5 * tau / variance
            m += 1
        else:
            step[i] = r
    if m == 0:
        return True
    for p in range(m):
        i = index[p]
        row, line = gram[i], work[p]
        line[p] += row[i] - d[i]
        for q in range(p + 1, m):
            line[q] = row[index[q]]
        t = 0.0
        for j in range(n):
            t += row[j] * step[j]
        right[p] -= t
    if not factorize(work, m, m):
        return False
    # Columns of prices: groups whose capacity counts.
    place = np.full(groups, -1)
    count = 0
    for g in range(groups):
        if price[g] > 0.0:
            place[g] = count
            count += 1
    plain = right[:m]
    residuals = np.empty(m)
    for p in range(m):
        centre, variance, across = spread(unit, status, share, mean, var, index[p])
        residuals[p] = centre - x[index[p]]
    back_substitute(work, m, plain)
    if count:
        columns, system, change = np.zeros((count, m)), np.zeros((count, count)), np.zeros((count, 1))
        for p in range(m):
            c = place[group[unit[index[p]]]]
            if c >= 0 and status[unit[index[p]]] == 0:
                columns[c, p] = 0.5 * ratio[p]
        for g in range(groups):
            c = place[g]
            if c >= 0:
                for p in range(start[g], start[g + 1]):
                    u = members[p]
                    if status[u] == 0:
                        system[c, c] += share[u] * (1.0 - share[u]) / tau
                system[c, c] *= 1.0 + 1e-9
        for p in range(m):
            c = place[group[unit[index[p]]]]
            if c >= 0 and status[unit[index[p]]] == 0:
                _, variance, across = spread(unit, status, share, mean, var, index[p])
                system[c, c] -= ratio[p] * across / tau
                change[c, 0] += ratio[p] * (plain[p] - residuals[p])
        for c in range(count):
            system[c, c] = max(system[c, c], 0.0) + 1e-300
            back_substitute(work, m, columns[c])
        for p in range(m):
            c = place[group[unit[index[p]]]]
            if c >= 0 and status[unit[index[p]]] == 0:
                for k in range(count):
                    system[c, k] += ratio[p] * columns[k, p]
        solve_system(system, change)
        fine = True
        for c in range(count):
            fine = fine and abs(change[c, 0]) < np.inf
        if fine:
            for c in range(count):
                for p in range(m):
                    plain[p] -= change[c, 0] * columns[c, p]
    for p in range(m):
        step[index[p]] = plain[p]
    return True


@kernel(error_model="numpy", nested=True)
def slope(unit, status, d, x, step, pull, mean, share):
    """Derivative of the smoothed bound along a step δ, half of it; ``pull`` is Hδ."""
    total = 0.0
    for i in range(len(unit)):
        total += (pull[i] - d[i] * step[i]) * (share[unit[i]] * mean[i] - x[i])
    return total


@kernel(error_model="numpy")
def ascend_smoothed(layer, node, d, x, costs, tau, steps, known, enough, stop, price, mean, var, share, work):
    """Newton steps on the smoothed bound from the point ``x``, which moves; returns its value.

    A point whose value lies far below ``known``, a bound that can be reached, is smoothed more at first. It ends where
    a step gains less than ``enough`` or the value reaches ``stop``. Means, variances and shares of kept units become
    those of the point.
    """
    gram, _, _, target, _, _, unit, group, _, _ = layer
    status = node[3]
    e, h = costs[0], costs[1]
    n = len(unit)
    least, saving = np.empty(n), np.empty(len(group))
    step, pull = np.empty(n), np.empty(n)
    before, h_before = np.empty(n), np.empty(n)
    residual(gram, target, x, e, h)
    value = smooth(layer, node, d, x, e, h, tau, price, mean, var, least, saving, share)
    heat = FAR * (known - value) / np.sqrt(n)
    if heat > 4.0 * tau:
        value = smooth(layer, node, d, x, e, h, heat, price, mean, var, least, saving, share)
    else:
        heat = tau
    for turn in range(steps):
        if value >= stop or not direction(layer, node, d, x, heat, price, mean, var, share, work, step):
            break
        multiply_vector(gram, step, pull)
        copy(x, before)
        copy(h, h_before)
        # The bound is concave along the step: a zero of its slope is looked for, roughly.
        first = slope(unit, status, d, x, step, pull, mean, share)
        low, high, low_slope, high_slope = 0.0, np.inf, first, 0.0
        length, better, fine = 1.0, value, False
        for _trial in range(TRIALS if first > 0.0 else 0):
            for i in range(n):
                x[i] = before[i] + length * step[i]
                e[i] = x[i] - target[i]
                h[i] = h_before[i] + length * pull[i]
            better = smooth(layer, node, d, x, e, h, heat, price, mean, var, least, saving, share)
            now = slope(unit, status, d, x, step, pull, mean, share)
            if better > value and abs(now) <= FLAT * first:
                fine = True
                break
            if now > 0.0:
                low, low_slope = length, now
            else:
                high, high_slope = length, now
            if high == np.inf:
                length *= 2.0
                if length > LONGEST:
                    break
            else:
                part = low_slope / (low_slope - high_slope)
                length = low + (high - low) * min(max(part, 0.1), 0.9)
        if not better > value:
            # Up to here the bound rises.
            for i in range(n):
                x[i] = before[i] + low * step[i]
                e[i] = x[i] - target[i]
                h[i] = h_before[i] + low * pull[i]
            better = smooth(layer, node, d, x, e, h, heat, price, mean, var, least, saving, share)
        gain = better - value
        value = better
        if turn + 1 == steps:
            break
        if not fine and length < SHORT and first >= enough:
            # A corner: values jump within the step.
            heat *= HEATING
        elif heat > tau and (fine or gain < enough):
            heat = max(COOLING * heat, tau)
        elif gain < enough:
            break
        else:
            continue
        value = smooth(layer, node, d, x, e, h, heat, price, mean, var, least, saving, share)
    return value
