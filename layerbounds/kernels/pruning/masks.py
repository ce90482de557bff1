"""Compiled loops for choosing a mask: min zᵀAz − 2βᵀz over binary z with capacities per group (docs/pruning-bounds.md).

``status`` is 1 (kept), −1 (dropped) or 0 (free).
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import sort


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
    order = np.empty(n)
    for i in range(n):
        if status[i] != 0:
            z[i] = 1.0 if status[i] > 0 else 0.0
    for g in range(groups):
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
    low = np.empty(groups, np.int64)
    high = np.empty(groups, np.int64)
    slope_low = np.empty(groups)
    slope_high = np.empty(groups)
    best = -np.inf
    count = 0
    while True:
        # The proven bound of this point: f(z) and per free unit the better one of dropping and keeping.
        if count % (4 * n) == 0 or count >= rounds:
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
            for g in range(groups):
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
            best = value - allowance
            if best >= stop or count >= rounds:
                return best
        # Steepest feasible move of each group: one unit up and another one down, or one alone.
        for g in range(groups):
            low[g] = -1
            high[g] = -1
            slope_low[g] = np.inf
            slope_high[g] = -np.inf
        for i in range(n):
            if status[i] == 0:
                slope = 2.0 * h[i] + d[i] * (1.0 - 2.0 * z[i])
                g = group[i]
                if z[i] < 1.0 and slope < slope_low[g]:
                    slope_low[g] = slope
                    low[g] = i
                if z[i] > 0.0 and slope > slope_high[g]:
                    slope_high[g] = slope
                    high[g] = i
        worst = 1e-9 * energy
        chosen = -1
        single = False
        for g in range(groups):
            if low[g] >= 0 and used[g] < free[g] - 1e-12 and -slope_low[g] > worst:
                worst = -slope_low[g]
                chosen = g
                single = True
            if high[g] >= 0 and slope_high[g] > worst:
                worst = slope_high[g]
                chosen = g
                single = True
            if low[g] >= 0 and high[g] >= 0 and slope_high[g] - slope_low[g] > 1.000001 * worst:
                worst = slope_high[g] - slope_low[g]
                chosen = g
                single = False
        if chosen < 0:
            count = max(rounds, count + 1)
            rounds = count
            continue
        g = chosen
        up, down = low[g], high[g]
        if single:
            if used[g] < free[g] - 1e-12 and up >= 0 and -slope_low[g] >= worst:
                down = -1
            else:
                up = -1
        slope = 0.0
        curve = 0.0
        most = np.inf
        if up >= 0:
            slope += slope_low[g]
            curve += a[up, up] - d[up]
            most = min(most, 1.0 - z[up])
        if down >= 0:
            slope -= slope_high[g]
            curve += a[down, down] - d[down]
            most = min(most, z[down])
        if up >= 0 and down >= 0:
            curve -= 2.0 * a[up, down]
        if up >= 0 and down < 0:
            most = min(most, free[g] - used[g])
        step = most if curve <= 0.0 else min(most, -slope / (2.0 * curve))
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
