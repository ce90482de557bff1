"""Compiled fixing, rounding and branching below the block dual; arrays as in `kernels.clusters`."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import factorize, inverse_diagonal, invert_by_sweeps, largest, solve


@kernel(error_model="numpy")
def survivors(first, member, place, kept, free, base, code, number, s, price, gap, status, cost):
    """What each code adds to the bound; fixes inputs that all codes within the gap keep, or drop; returns how many.

    With a price, another code than its cluster's best one raises the bound by the difference of their values.
    """
    count = 0
    for g in range(len(free)):
        f0 = first[g]
        hard = -np.inf
        for at in range(base[g], base[g + 1]):
            hard = max(hard, s[at] - price * number[at])
        some = 0
        every = (1 << free[g]) - 1
        for at in range(base[g], base[g + 1]):
            cost[at] = hard - (s[at] - price * number[at])
            if cost[at] <= gap:
                some |= code[at]
                every &= code[at]
        for p in range(free[g]):
            bit = 1 << (free[g] - 1 - p)
            i = member[f0 + place[f0 + kept[g] + p]]
            if every & bit:
                status[i] = 1
                count += 1
            elif not some & bit:
                status[i] = -1
                count += 1
    return count


@kernel(error_model="numpy")
def best_codes(first, member, place, kept, free, base, code, number, s, price, chosen):
    """The set that keeps, in every cluster, the inputs of its best code."""
    for g in range(len(free)):
        f0 = first[g]
        best = -np.inf
        arg = 0
        for at in range(base[g], base[g + 1]):
            if s[at] - price * number[at] > best:
                best = s[at] - price * number[at]
                arg = code[at]
        for p in range(kept[g] + free[g]):
            chosen[member[f0 + place[f0 + p]]] = p < kept[g] or (arg >> (kept[g] + free[g] - 1 - p)) & 1


@kernel(error_model="numpy")
def pick(gram, block, first, member, place, kept, free, curve, share, u, status, candidates, power, work, column):
    """The free input that occurs and whose exclusion is estimated to cost most: u²/((H − B + K⁻¹)⁻¹)_ii; −1 if none.

    Only the ``candidates`` of largest B_ii u_i² are looked at. ``column`` becomes the move of the point when the input
    is excluded, per unit of its weight.
    """
    groups = len(free)
    n = len(u)
    widest = block.shape[1]
    x = np.empty((widest, widest))
    index = np.empty(widest, np.int64)
    ids = np.empty(n, np.int64)
    estimate = np.empty(n)
    y = np.empty(n)
    z = np.ones(n)
    m = 0
    for g in range(groups):
        f0 = first[g]
        count = 0
        for p in range(kept[g] + free[g]):
            if share[g, p] > 0.0:
                index[count] = p
                count += 1
        for a in range(count):
            for e in range(count):
                x[a, e] = curve[g, index[a], index[e]]
            x[a, a] *= 1.0 + 1e-9
        if not invert_by_sweeps(x, count):
            return -1
        for a in range(count):
            i = member[f0 + place[f0 + index[a]]]
            ids[m + a] = i
            estimate[m + a] = -1.0
            if status[i] == 0:
                z[m + a] = share[g, index[a]]
                estimate[m + a] = (
                    block[g, place[f0 + index[a]], place[f0 + index[a]]]
                    * u[i]
                    * u[i]
                    / z[m + a] ** 2
                    * max(1.0 - z[m + a], 1e-3) ** power
                )
            for e in range(a, count):
                work[m + a, m + e] = x[a, e] - block[g, place[f0 + index[a]], place[f0 + index[e]]]
        # Entries of the same cluster stand; those beside them follow.
        for a in range(count):
            for q in range(m):
                work[q, m + a] = 0.0
        m += count
    start = 0
    for g in range(groups):
        f0 = first[g]
        count = 0
        for p in range(kept[g] + free[g]):
            if share[g, p] > 0.0:
                count += 1
        for a in range(start, start + count):
            row = gram[ids[a]]
            for e in range(a, start + count):
                work[a, e] += row[ids[e]]
            for e in range(start + count, m):
                work[a, e] = row[ids[e]]
        start += count
    if m == 0 or not factorize(work, m, m):
        return -1
    best = -1.0
    arg = -1
    for _ in range(candidates):
        top = largest(estimate, m)
        if estimate[top] < 0.0:
            break
        estimate[top] = -1.0
        i = ids[top]
        cost = u[i] * u[i] / inverse_diagonal(work, m, top, y) * max(1.0 - z[top], 1e-3) ** power
        if cost > best:
            best = cost
            arg = int(top)
    if arg < 0:
        return -1
    for p in range(m):
        y[p] = 0.0
    y[arg] = 1.0
    solve(work, m, y)
    for i in range(n):
        column[i] = 0.0
    for p in range(m):
        column[ids[p]] = y[p] / y[arg]
    return ids[arg]
