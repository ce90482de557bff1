"""Nodes of joint problems as their relaxation sees them: what is undecided, and what lists, units and capacities imply.

Arguments that are passed on together (docs/joint-engine.md):

``layer``
    gram, norm, shift, target, values, zero, unit, group, members, start: the Gram matrix, |H_ij| ≤ norm_i norm_j, what
    is added to the diagonal before a minorant lies below it, the target, the sorted values of each input, the position
    of zero, the unit of each input, the group of each unit, the units by group, and where each group starts there.
``node``
    first, last, zero_ok, status, room: the values between two positions without zero; whether zero is allowed; of each
    unit 1 (kept), −1 (dropped) or 0 (free); how many free units of each group may still be kept.
``costs``
    e, h, drop, own, best, save, edge: x − w, H(x − w); of each undecided input what zero and what its best value beside
    the others costs, and that value; of each unit what keeping it saves; the best saving left out and the last one in
    of each group.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel


@kernel(error_model="numpy", nested=True)
def undecided(zero, first, last, zero_ok, i):
    """Whether an input may still take several values."""
    many = last[i] - first[i] + 1
    if first[i] < zero[i] and zero[i] < last[i]:
        many -= 1
    return many + zero_ok[i] >= 2


@kernel(error_model="numpy", nested=True)
def count_undecided(layer, node):
    """How many inputs are undecided."""
    first, last, zero_ok, _, _ = node
    count = 0
    for i in range(len(first)):
        if undecided(layer[5], first, last, zero_ok, i):
            count += 1
    return count


@kernel(error_model="numpy")
def settle(layer, node, x):
    """Apply what lists, units and capacities say about each other; False where nothing is left.

    Decided inputs of the point ``x`` are set to their values.
    """
    _, _, _, _, values, zero, unit, group, _, _ = layer
    first, last, zero_ok, status, room = node
    n, units = len(unit), len(group)
    single = n == units
    some = np.zeros(units, np.bool_)
    again = True
    while again:
        again = False
        for u in range(units):
            some[u] = False
        for i in range(n):
            u = unit[i]
            if status[u] < 0:
                if not zero_ok[i]:
                    return False
                first[i], last[i] = 1, 0
                continue
            if first[i] == zero[i]:
                first[i] += 1
            if last[i] == zero[i]:
                last[i] -= 1
            if single and status[u] == 1:
                zero_ok[i] = 0
            if first[i] <= last[i]:
                some[u] = True
            elif not zero_ok[i]:
                return False
            if not zero_ok[i] and status[u] == 0:
                status[u] = 1
                room[group[u]] -= 1
                if room[group[u]] < 0:
                    return False
                again = True
        for u in range(units):
            if status[u] == 0 and (not some[u] or room[group[u]] <= 0):
                status[u] = -1
                again = True
    for i in range(n):
        if not undecided(zero, first, last, zero_ok, i):
            x[i] = 0.0 if zero_ok[i] else values[i, first[i]]
    return True


@kernel(error_model="numpy")
def make_costs(n, units, groups):
    """Work space for the costs of a node."""
    return (
        np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n, np.int64), np.empty(units),
        np.zeros((groups, 2)),
    )  # fmt: skip


@kernel(error_model="numpy", nested=True)
def residual(gram, target, x, e, h):
    """The deviation e = x − w, and h = He."""
    n = len(x)
    for i in range(n):
        e[i] = x[i] - target[i]
    multiply_vector(gram, e, h)


@kernel(error_model="numpy", nested=True)
def multiply_vector(gram, e, h):
    """The product h = He, four rows at a time."""
    n = len(e)
    for j in range(n):
        h[j] = 0.0
    for p in range(0, n - 3, 4):
        f0, f1, f2, f3 = e[p], e[p + 1], e[p + 2], e[p + 3]
        r0, r1, r2, r3 = gram[p], gram[p + 1], gram[p + 2], gram[p + 3]
        for j in range(n):
            h[j] += f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
    for p in range(n // 4 * 4, n):
        f, row = e[p], gram[p]
        for j in range(n):
            h[j] += f * row[j]
