"""Exact search of levels and support on a few inputs, the others fixed.

Arrays are those of `layerbounds.kernels.joint.moves`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel


@kernel(error_model="numpy", nested=True)
def arrange(m, inverse, share, order, pivots, shifts, curve, scratch):
    """V-BLAST order: the variable of the largest conditional pivot is fixed first (at position m − 1)."""
    for i in range(m):
        order[i] = i
    for k in range(m - 1, -1, -1):
        best = k
        for i in range(k):
            if inverse[order[i], order[i]] < inverse[order[best], order[best]]:
                best = i
        order[k], order[best] = order[best], order[k]
        v = order[k]
        p = inverse[v, v]
        pivots[k] = 1.0 / p
        for i in range(m):
            shifts[k, i] = inverse[i, v] / p
        for i in range(k):
            row = inverse[order[i]]
            f = row[v] / p
            for j in range(k):
                row[order[j]] -= f * inverse[v, order[j]]
        for i in range(k):
            curve[k, order[i]] = share / inverse[order[i], order[i]]
    for k in range(m):
        for i in range(k):
            scratch[i] = shifts[k, order[i]]
        for i in range(k):
            shifts[k, i] = scratch[i]
        for i in range(k):
            scratch[i] = curve[k, order[i]]
        for i in range(k):
            curve[k, i] = scratch[i]


@kernel(error_model="numpy", nested=True)
def least_nonzero(levels, count, zero, c, p, h):
    """The level other than zero of least p (l − c)² + 2 h l, p > 0; −1 where there is none."""
    x = c - h / p
    low, high = 0, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if levels[middle] <= x:
            low = middle
        else:
            high = middle
    if low == zero:
        low -= 1
    if high == zero:
        high += 1
    if high >= count:
        return low
    if low < 0 or levels[high] - x < x - levels[low]:
        return high
    return low


@kernel(error_model="numpy", nested=True)
def relaxed_step(levels, count, zero, c, d, price, m, s, out):
    """The minimiser of m x² + 2 s x + the convex envelope of d (l − c)² + price·[l ≠ 0].

    ``out[0]`` becomes the share of other levels than zero in it.
    """
    base = d * c * c
    # Slopes of the envelope at zero, to either side, and where its first pieces end.
    up, right = np.inf, -1
    for j in range(zero + 1, count):
        t = levels[j] - c
        slope = (d * t * t + price - base) / levels[j]
        if slope < up:
            up, right = slope, j
        else:
            break
    down, left = -np.inf, -1
    for j in range(zero - 1, -1, -1):
        t = levels[j] - c
        slope = (d * t * t + price - base) / levels[j]
        if slope > down:
            down, left = slope, j
        else:
            break
    if right >= 0 and 2.0 * s + up < 0.0:
        x = -(s + 0.5 * up) / m
        if x <= levels[right]:
            out[0] = x / levels[right]
            return x
        out[0] = 1.0
        j = right
        while True:
            # Past the level j: the next piece.
            if j + 1 >= count:
                return levels[j]
            slope = d * (levels[j] + levels[j + 1] - 2.0 * c)
            x = -(s + 0.5 * slope) / m
            if x <= levels[j]:
                return levels[j]
            if x <= levels[j + 1]:
                return x
            j += 1
    if left >= 0 and 2.0 * s + down > 0.0:
        x = -(s + 0.5 * down) / m
        if x >= levels[left]:
            out[0] = x / levels[left]
            return x
        out[0] = 1.0
        j = left
        while True:
            if j == 0:
                return levels[0]
            slope = d * (levels[j] + levels[j - 1] - 2.0 * c)
            x = -(s + 0.5 * slope) / m
            if x >= levels[j]:
                return levels[j]
            if x >= levels[j - 1]:
                return x
            j -= 1
    out[0] = 0.0
    return 0.0


@kernel(error_model="numpy", nested=True)
def relax(m, sweeps, gram, subset, values, count, zero, centre, d, unit, group, held, room, price, spend, x, slope):
    """Coordinate descent on the relaxation of a subset problem, from ``x``; prices follow the room.

    ``slope`` becomes H (x − c).
    """
    out = np.zeros(1)
    for i in range(m):
        total = 0.0
        row = gram[subset[i]]
        for j in range(m):
            total += row[subset[j]] * (x[j] - centre[j])
        slope[i] = total
    for _ in range(sweeps):
        for g in range(len(room)):
            spend[g] = 0.0
        for i in range(m):
            k = subset[i]
            u = unit[k]
            g = group[u]
            if held[u] == 0 and room[g] == 0:
                to = 0.0
                out[0] = 0.0
            else:
                curve = max(gram[k, k] - d[i], 1e-3 * gram[k, k])
                # H (x − c) without D and without the input itself.
                s = slope[i] - d[i] * (x[i] - centre[i]) - curve * x[i]
                to = relaxed_step(
                    values[k], count[k], zero[k], centre[i], d[i], price[g] if held[u] == 0 else 0.0, curve, s, out
                )
            if held[u] == 0:
                spend[g] += out[0]
            t = to - x[i]
            if t != 0.0:
                x[i] = to
                row = gram[k]
                for j in range(m):
                    slope[j] += row[subset[j]] * t
        for g in range(len(room)):
            if room[g] > 0 and spend[g] > 0.0:
                price[g] *= min(max(spend[g] / room[g], 0.7), 1.4)


@kernel(error_model="numpy", nested=True)
def rest(k, centres, table, count, zero, h, d, unit, group, taken, room, price):
    """A lower estimate of what positions below k cost, before the price of the room that is left."""
    total = 0.0
    for i in range(k):
        c = centres[i]
        least = d[i] * c * c
        u = unit[i]
        g = group[u]
        if taken[u] > 0 or room[g] > 0:
            q = least_nonzero(table[i], count[i], zero[i], c, d[i], h[i])
            if q >= 0:
                t = table[i, q] - c
                other = d[i] * t * t + 2.0 * h[i] * table[i, q]
                if taken[u] == 0:
                    other += price[g]
                least = min(least, other)
        total += least
    return total


@kernel(error_model="numpy", nested=True)
def open_position(k, full, c, p, h, table, count, zero, below, above, spare):
    """The levels next to the least cost of a position, and zero; only zero where the group is full."""
    q = -1 if full else least_nonzero(table[k], count[k], zero[k], c, p, h)
    if q < 0:
        below[k], above[k] = -1, count[k]
    else:
        if table[k, q] <= c - h / p:
            below[k], above[k] = q, q + 1
        else:
            below[k], above[k] = q - 1, q
        if below[k] == zero[k]:
            below[k] -= 1
        if above[k] == zero[k]:
            above[k] += 1
    spare[k] = True


@kernel(error_model="numpy", nested=True)
def enumerate_subset(
    m, budget, cut, tilted, pivots, shifts, table, count, zero, h, d, unit, group, taken, room, price, centres, cost,
    chosen, below, above, spare, best,
):  # fmt: skip
    """Depth-first enumeration below a cut; returns (value, found, nodes).

    Positions m − 1 to 0 take levels in turn. A position costs p (l − c)² + 2 h l with the centre c that the choices
    above it leave. ``below`` and ``above`` are the nearest levels other than zero not tried yet, ``spare`` says
    whether zero is one of those.
    """
    found = False
    nodes = 0
    slack = 0.0
    if tilted:
        for g in range(len(room)):
            slack += price[g] * room[g]
    k = m
    cost[m] = 0.0
    opening = True
    while nodes < budget:
        if opening:
            k -= 1
            u = unit[k]
            full = taken[u] == 0 and room[group[u]] == 0
            open_position(k, full, centres[k + 1, k], pivots[k], h[k], table, count, zero, below, above, spare)
            opening = False
        c, p = centres[k + 1, k], pivots[k]
        u = unit[k]
        g = group[u]
        least = np.inf
        to = -1
        side = 0
        if below[k] >= 0:
            level = table[k, below[k]]
            least = p * (level - c) * (level - c) + 2.0 * h[k] * level
            to = below[k]
            side = 1
        if above[k] < count[k]:
            level = table[k, above[k]]
            value = p * (level - c) * (level - c) + 2.0 * h[k] * level
            if value < least:
                least = value
                to = above[k]
                side = 2
        entry = price[g] if tilted and taken[u] == 0 else 0.0
        if spare[k] and p * c * c < least + entry:
            least = p * c * c
            to = zero[k]
            side = 0
        if to < 0:
            # All are tried: back to the position above, whose choice is taken back.
            k += 1
            if k == m:
                break
            if chosen[k] != zero[k]:
                u = unit[k]
                taken[u] -= 1
                if taken[u] == 0:
                    room[group[u]] += 1
                    slack += price[group[u]]
            continue
        nodes += 1
        if side == 0:
            spare[k] = False
        elif side == 1:
            below[k] = to - 1
            if below[k] == zero[k]:
                below[k] -= 1
        else:
            above[k] = to + 1
            if above[k] == zero[k]:
                above[k] += 1
        partial = cost[k + 1] + least
        if not tilted and not partial < cut:
            # Everything else costs more.
            spare[k] = False
            below[k], above[k] = -1, count[k]
            continue
        delta = table[k, to] - c
        for i in range(k):
            centres[k, i] = centres[k + 1, i] + shifts[k, i] * delta
        if side > 0:
            if taken[u] == 0:
                room[g] -= 1
                slack -= price[g]
            taken[u] += 1
        bound = partial
        if tilted:
            bound += rest(k, centres[k], table, count, zero, h, d[k], unit, group, taken, room, price) - slack
        if k > 0 and bound < cut:
            cost[k] = partial
            chosen[k] = to
            opening = True
            continue
        if k == 0 and partial < cut:
            cut = partial
            found = True
            best[0] = to
            for i in range(1, m):
                best[i] = chosen[i]
        elif side == 1:
            below[k] = -1
        elif side == 2:
            above[k] = count[k]
        if side > 0:
            taken[u] -= 1
            if taken[u] == 0:
                room[g] += 1
                slack += price[g]
    # What an ended search has not taken back.
    for i in range(k + 1 if not opening else k, m):
        if chosen[i] != zero[i]:
            u = unit[i]
            taken[u] -= 1
            if taken[u] == 0:
                room[group[u]] += 1
    return cut, found, nodes
