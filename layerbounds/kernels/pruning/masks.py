"""Compiled loops for choosing a mask: min zᵀAz − 2βᵀz over binary z with capacities per group (docs/pruning-bounds.md).

``status`` is 1 (kept), −1 (dropped) or 0 (free).
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import sort


@kernel(error_model="numpy", nested=True)
def enter(group, free, status, z, used):
    """Move a point to the fixed units and, by a factor for each group, to the capacities; ``used`` becomes Σ_g z."""
    n = len(z)
    for i in range(n):
        if status[i] != 0:
            z[i] = 1.0 if status[i] > 0 else 0.0
    for g in range(len(free)):
        total = 0.0
        for i in range(n):
            if group[i] == g and status[i] == 0:
                total += z[i]
        scale = free[g] / total if total > free[g] else 1.0
        used[g] = 0.0
        for i in range(n):
            if group[i] == g and status[i] == 0:
                z[i] *= scale
                used[g] += z[i]


@kernel(error_model="numpy", nested=True)
def mask_bound(a, beta, energy, d, group, free, status, z, h, saving, edge):
    """The bound of a point, but for rounding: f(z) and per free unit the better one of dropping and keeping."""
    n = len(beta)
    order = np.empty(n)
    value = energy
    for i in range(n):
        # Afresh, so that the rounding of the moves does not add up.
        t = -beta[i]
        row = a[i]
        for j in range(n):
            t += row[j] * z[j]
        h[i] = t
    for i in range(n):
        value += z[i] * (h[i] - beta[i])
        saving[i] = 0.0
        if status[i] == 0:
            drop = -2.0 * h[i] * z[i] + d[i] * z[i] * z[i]
            value += drop
            saving[i] = d[i] * (2.0 * z[i] - 1.0) - 2.0 * h[i]
    for g in range(len(free)):
        m = 0
        for i in range(n):
            if group[i] == g and status[i] == 0:
                order[m] = max(saving[i], 0.0)
                m += 1
        part = order[:m]
        sort(part)
        for q in range(max(m - free[g], 0), m):
            value -= part[q]
        edge[g, 0] = part[m - free[g] - 1] if m > free[g] else 0.0
        edge[g, 1] = part[m - free[g]] if 0 < free[g] <= m else 0.0
    return value


@kernel(error_model="numpy", nested=True)
def steepest_moves(d, group, status, z, h, unit, slope):
    """Per group the free unit that gains most by going up and the one that gains most by going down, −1 for none."""
    for g in range(len(unit)):
        unit[g, 0] = -1
        unit[g, 1] = -1
        slope[g, 0] = np.inf
        slope[g, 1] = -np.inf
    for i in range(len(z)):
        if status[i] == 0:
            change = 2.0 * h[i] + d[i] * (1.0 - 2.0 * z[i])
            g = group[i]
            if z[i] < 1.0 and change < slope[g, 0]:
                slope[g, 0] = change
                unit[g, 0] = i
            if z[i] > 0.0 and change > slope[g, 1]:
                slope[g, 1] = change
                unit[g, 1] = i


@kernel(error_model="numpy", nested=True)
def choose_move(least, free, used, unit, slope):
    """The steepest feasible move, one unit up and another one down, or one alone: group and units; −1 for none."""
    worst = least
    chosen = -1
    single = False
    for g in range(len(free)):
        if unit[g, 0] >= 0 and used[g] < free[g] - 1e-12 and -slope[g, 0] > worst:
            worst = -slope[g, 0]
            chosen = g
            single = True
        if unit[g, 1] >= 0 and slope[g, 1] > worst:
            worst = slope[g, 1]
            chosen = g
            single = True
        if unit[g, 0] >= 0 and unit[g, 1] >= 0 and slope[g, 1] - slope[g, 0] > 1.000001 * worst:
            worst = slope[g, 1] - slope[g, 0]
            chosen = g
            single = False
    if chosen < 0:
        return -1, -1, -1
    g = chosen
    up, down = unit[g, 0], unit[g, 1]
    if single:
        if used[g] < free[g] - 1e-12 and up >= 0 and -slope[g, 0] >= worst:
            down = -1
        else:
            up = -1
    return g, up, down


@kernel(error_model="numpy", nested=True)
def best_step(a, d, z, room, slope, up, down):
    """How far a move of one or two units goes: to the least value, or to the end of what is feasible."""
    total = 0.0
    curve = 0.0
    most = np.inf
    if up >= 0:
        total += slope[0]
        curve += a[up, up] - d[up]
        most = min(most, 1.0 - z[up])
    if down >= 0:
        total -= slope[1]
        curve += a[down, down] - d[down]
        most = min(most, z[down])
    if up >= 0 and down >= 0:
        curve -= 2.0 * a[up, down]
    if up >= 0 and down < 0:
        most = min(most, room)
    return most if curve <= 0.0 else min(most, -total / (2.0 * curve))


@kernel(error_model="numpy")
def relax_mask(a, beta, energy, d, group, free, status, rounds, stop, allowance, z, h, saving, edge):
    """Pairwise coordinate descent on the relaxation zᵀAz − 2βᵀz + Σ d_i z_i (1 − z_i) over 0 ≤ z ≤ 1, Σ_g z ≤ free.

    Parameters
    ----------
    a, beta, energy
        The objective is energy + zᵀAz − 2βᵀz.
    d
        A minorant of A on the free units.
    group, free, status
        Group of each unit, capacity that is left, and what is fixed.
    rounds, stop, allowance
        Limit of moves; a bound that ends the work; rounding charged.
    z, h, saving, edge
        Warm start and result: the point, Az − β, what keeping each unit saves, and per group the thresholds below
        and above which units are dropped and kept.

    Returns
    -------
    float
        A proven bound.
    """
    n = len(beta)
    groups = len(free)
    used = np.zeros(groups)
    unit, slope = np.empty((groups, 2), np.int64), np.empty((groups, 2))
    enter(group, free, status, z, used)
    count = 0
    while True:
        if count % (4 * n) == 0 or count >= rounds:
            best = mask_bound(a, beta, energy, d, group, free, status, z, h, saving, edge) - allowance
            if best >= stop or count >= rounds:
                return best
        steepest_moves(d, group, status, z, h, unit, slope)
        g, up, down = choose_move(1e-9 * energy, free, used, unit, slope)
        if g < 0:
            count = max(rounds, count + 1)
            rounds = count
            continue
        step = best_step(a, d, z, free[g] - used[g], slope[g], up, down)
        if up >= 0:
            z[up] = min(z[up] + step, 1.0)
            used[g] += step
            for j in range(n):
                h[j] += step * a[up, j]
        if down >= 0:
            z[down] = max(z[down] - step, 0.0)
            used[g] -= step
            for j in range(n):
                h[j] -= step * a[down, j]
        count += 1


@kernel(error_model="numpy")
def descend_mask(a, beta, group, capacity, kept, moves):
    """So many best single changes or exchanges, at most until none improves; returns zᵀAz − 2βᵀz, and whether it is."""
    n = len(beta)
    used = np.zeros(len(capacity), np.int64)
    h = -beta.copy()
    for i in range(n):
        if kept[i]:
            used[group[i]] += 1
            for j in range(n):
                h[j] += a[i, j]
    done = False
    for _ in range(moves):
        best = -1e-13 * (a[0, 0] + 1e-300)
        out = -1
        add = -1
        for i in range(n):
            if kept[i]:
                drop = a[i, i] - 2.0 * h[i]
                if drop < best:
                    best = drop
                    out = i
                    add = -1
                for j in range(n):
                    if not kept[j] and (group[j] == group[i] or used[group[j]] < capacity[group[j]]):
                        change = drop + a[j, j] + 2.0 * h[j] - 2.0 * a[i, j]
                        if change < best:
                            best = change
                            out = i
                            add = j
            elif used[group[i]] < capacity[group[i]]:
                change = a[i, i] + 2.0 * h[i]
                if change < best:
                    best = change
                    out = -1
                    add = i
        if out < 0 and add < 0:
            done = True
            break
        if out >= 0:
            kept[out] = False
            used[group[out]] -= 1
            for j in range(n):
                h[j] -= a[out, j]
        if add >= 0:
            kept[add] = True
            used[group[add]] += 1
            for j in range(n):
                h[j] += a[add, j]
    total = 0.0
    for i in range(n):
        if kept[i]:
            total += h[i] - beta[i]
    return total, done
