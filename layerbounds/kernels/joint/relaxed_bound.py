"""Proven bounds of the relaxation of joint problems at a point, and what they exclude.

Arguments are those of `layerbounds.kernels.joint.relaxed_node`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.joint.relaxed_node import residual, undecided
from layerbounds.kernels.pruning.subset_relaxation import top_sum

UNIT = 2.0**-53


@kernel(error_model="numpy")
def bound_at(layer, node, d, x, costs):
    """Proven lower bound of a node at a point; the decided inputs are at their values."""
    gram, norm, shift, target, values, zero, unit, group, members, start = layer
    first, last, zero_ok, status, room = node
    e, h, drop, own, best, save, edge = costs
    n, units = len(unit), len(group)
    single = n == units
    residual(gram, target, x, e, h)
    size = 0.0
    for i in range(n):
        size += norm[i] * abs(e[i])
    for u in range(units):
        save[u] = 0.0
    gamma = 2.5 * (n + 8) * UNIT
    total, magnitude, charge = 0.0, 0.0, 0.0
    for i in range(n):
        error = gamma * norm[i] * size
        total += e[i] * h[i]
        magnitude += abs(e[i] * h[i])
        charge += abs(e[i]) * error
        drop[i], own[i], best[i] = 0.0, 0.0, zero[i]
        if not undecided(zero, first, last, zero_ok, i):
            if not zero_ok[i]:
                best[i] = first[i]
            continue
        least, far = np.inf, 0.0
        for k in range(first[i], last[i] + 1):
            if k == zero[i]:
                continue
            t = values[i, k] - x[i]
            c = t * (2.0 * h[i] + d[i] * t)
            far = max(far, abs(t))
            if c < least:
                least = c
                best[i] = k
        c = x[i] * (d[i] * x[i] - 2.0 * h[i])
        if zero_ok[i]:
            far = max(far, abs(x[i]))
            if not single and c < least:
                least = c
                best[i] = zero[i]
        drop[i], own[i] = c, least
        u = unit[i]
        if status[u] == 1:
            total += least
        else:
            total += c
            save[u] += c - least
        magnitude += far * (2.0 * abs(h[i]) + d[i] * far)
        charge += far * (2.0 * error + shift[i] * far)
    scratch = np.empty(units)
    for g in range(len(room)):
        count = 0
        for p in range(start[g], start[g + 1]):
            u = members[p]
            if status[u] == 0:
                scratch[count] = max(save[u], 0.0)
                count += 1
        if count == 0:
            continue
        most, after, among = top_sum(scratch, count, room[g])
        total -= most
        edge[g, 0] = after
        edge[g, 1] = among if count > room[g] else 0.0
    # The sum of magnitudes covers what choices cost, saved ones twice: see docs/joint-engine.md.
    value = total - charge * (1.0 + 1e-9) - 4.0 * (n + 32) * UNIT * magnitude
    return value if value > -np.inf else -np.inf


@kernel(error_model="numpy")
def tighten(layer, node, d, x, costs, bound, cut):
    """Drop what is proven to reach the cut: values, zeros, and the choice of units; returns how many."""
    _, _, _, _, values, zero, unit, group, _, _ = layer
    first, last, zero_ok, status, room = node
    _, h, drop, own, _, save, edge = costs
    n, units = len(unit), len(group)
    single = n == units
    # What may be added to the bound without reaching the cut.
    gap = (cut - bound) * (1.0 + 8.0 * UNIT)
    count = 0
    for i in range(n):
        if not undecided(zero, first, last, zero_ok, i):
            continue
        u = unit[i]
        g = group[u]
        free = status[u] == 0
        chosen = not free or (save[u] >= edge[g, 1] and save[u] > 0.0)
        keep = 0.0 if chosen else edge[g, 1] - save[u]
        without = max(save[u] - edge[g, 0], 0.0) if chosen else 0.0
        if zero_ok[i]:
            cost = without
            if not single:
                beside = keep + drop[i] - own[i]
                cost = min(cost, beside) if free else beside
            if cost >= gap:
                zero_ok[i] = 0
                count += 1
        while first[i] <= last[i]:
            t = values[i, first[i]] - x[i]
            if first[i] != zero[i] and not keep + (t * (2.0 * h[i] + d[i] * t) - own[i]) >= gap:
                break
            first[i] += 1
            count += 1
        while first[i] <= last[i]:
            t = values[i, last[i]] - x[i]
            if last[i] != zero[i] and not keep + (t * (2.0 * h[i] + d[i] * t) - own[i]) >= gap:
                break
            last[i] -= 1
            count += 1
    if not single:
        for u in range(units):
            g = group[u]
            if status[u] == 0 and save[u] > 0.0 and save[u] >= edge[g, 1] and save[u] - edge[g, 0] >= gap:
                status[u] = 1
                room[g] -= 1
                count += 1
    return count


@kernel(error_model="numpy")
def round_point(layer, node, costs, found):
    """The best allowed point of the relaxation's separable part."""
    _, _, _, _, values, _, unit, group, members, start = layer
    _, _, _, status, room = node
    best, save, edge = costs[4], costs[5], costs[6]
    n = len(unit)
    kept = np.zeros(len(group), np.bool_)
    for g in range(len(room)):
        count = 0
        for tie in range(2):
            for p in range(start[g], start[g + 1]):
                u = members[p]
                if status[u] == 0 and not kept[u] and save[u] > 0.0 and count < room[g]:
                    if save[u] > edge[g, 0] or (tie == 1 and save[u] == edge[g, 0]):
                        kept[u] = True
                        count += 1
    for i in range(n):
        u = unit[i]
        found[i] = values[i, best[i]] if status[u] == 1 or kept[u] else 0.0
