"""Compiled loops of the rounding heuristics: successive rounding, K-best beam, coordinate descent with pairs.

All work on a Gram matrix H, real targets w and sorted level tables of shape (n, levels), padded with the last level;
``count`` holds the true numbers of levels. Choices are indices into the tables.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel
from layerbounds.kernels.linear_algebra import select


@kernel()
def nearest(levels, count, x):
    """Index of the level nearest to x; the lower one of equals."""
    low, high = 0, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if levels[middle] <= x:
            low = middle
        else:
            high = middle
    if high > low and levels[high] - x < x - levels[low]:
        return high
    return low


@kernel()
def successive_rounding(shifts, target, levels, count, choice):
    """Fix variables from the last to the first at the level nearest to their conditional centre.

    ``shifts[k, :k]`` moves the centre of the variables below k for a unit move of variable k. Without clipping this is
    Babai's nearest plane, and GPTQ in the reverse order (arXiv 2507.18553).
    """
    n = target.shape[0]
    centre = target.copy()
    for k in range(n - 1, -1, -1):
        j = nearest(levels[k], count[k], centre[k])
        choice[k] = j
        delta = levels[k, j] - centre[k]
        for i in range(k):
            centre[i] += shifts[k, i] * delta


@kernel()
def beam(width, pivots, shifts, target, levels, count, choice):
    """K-best beam search: per variable keep the ``width`` partial assignments of smallest cost; returns the cost."""
    n = target.shape[0]
    most = 0
    for k in range(n):
        most = max(most, count[k])
    capacity = width * most
    centre = np.zeros((width, n))
    following = np.zeros((width, n))
    cost = np.zeros(width)
    picked = np.zeros((n, width), np.int16)
    parent = np.zeros((n, width), np.int32)
    child_cost, ordered = np.empty(capacity), np.empty(capacity)
    child_parent = np.empty(capacity, np.int32)
    child_level = np.empty(capacity, np.int16)
    for i in range(n):
        centre[0, i] = target[i]
    alive = 1
    for k in range(n - 1, -1, -1):
        m = 0
        for p in range(alive):
            c = centre[p, k]
            for j in range(count[k]):
                d = levels[k, j] - c
                child_cost[m] = cost[p] + pivots[k] * d * d
                child_parent[m] = p
                child_level[m] = j
                m += 1
        kept = min(width, m)
        if m > kept:
            for q in range(m):
                ordered[q] = child_cost[q]
            select(ordered, m, kept - 1)
            threshold = ordered[kept - 1]
        else:
            threshold = np.inf
        slot = 0
        for q in range(m):
            if child_cost[q] < threshold:
                child_cost[slot] = child_cost[q]
                child_parent[slot] = child_parent[q]
                child_level[slot] = child_level[q]
                slot += 1
            elif child_cost[q] == threshold or threshold == np.inf:
                if slot < kept:
                    child_cost[slot] = child_cost[q]
                    child_parent[slot] = child_parent[q]
                    child_level[slot] = child_level[q]
                    slot += 1
        alive = min(slot, kept)
        for q in range(alive):
            p = child_parent[q]
            delta = levels[k, child_level[q]] - centre[p, k]
            for i in range(k):
                following[q, i] = centre[p, i] + shifts[k, i] * delta
            parent[k, q] = p
            picked[k, q] = child_level[q]
        for q in range(alive):
            cost[q] = child_cost[q]
        centre, following = following, centre
    q = 0
    for p in range(1, alive):
        if cost[p] < cost[q]:
            q = p
    total = cost[q]
    for k in range(n):
        choice[k] = picked[k, q]
        q = parent[k, q]
    return total


@kernel(fastmath=REORDER)
def _shift_gradient(n, amount, column, gradient):
    for i in range(n):
        gradient[i] += amount * column[i]


@kernel()
def coordinate_descent(gram, target, levels, count, choice, pairs, max_moves):
    """Best single moves, then best pair moves to neighbouring levels, until neither improves.

    Returns the objective (q − w)ᵀH(q − w) of the final choice and the number of moves.
    """
    n = target.shape[0]
    deviation = np.empty(n)
    for i in range(n):
        deviation[i] = levels[i, choice[i]] - target[i]
    gradient = gram @ deviation
    moves = 0
    threshold = 1e-14 * max(np.dot(gradient, deviation), 0.0)
    down = np.empty(n)
    up = np.empty(n)
    while moves < max_moves:
        best = -threshold
        pick, level = -1, -1
        for i in range(n):
            now = levels[i, choice[i]]
            ideal = now - gradient[i] / gram[i, i]
            j = nearest(levels[i], count[i], ideal)
            if j == choice[i]:
                continue
            t = levels[i, j] - now
            change = t * (2.0 * gradient[i] + gram[i, i] * t)
            if change < best:
                best, pick, level = change, i, j
        if pick >= 0:
            t = levels[pick, level] - levels[pick, choice[pick]]
            choice[pick] = level
            _shift_gradient(n, t, gram[pick], gradient)
            moves += 1
            continue
        if not pairs:
            break
        first, second = -1, -1
        first_level, second_level = -1, -1
        for i in range(n):
            j = choice[i]
            down[i] = levels[i, j - 1] - levels[i, j] if j > 0 else 0.0
            up[i] = levels[i, j + 1] - levels[i, j] if j + 1 < count[i] else 0.0
        for i in range(n):
            for side in range(2):
                s = up[i] if side else down[i]
                if s == 0.0:
                    continue
                single = s * (2.0 * gradient[i] + gram[i, i] * s)
                for j in range(i):
                    cross = gradient[j] + gram[i, j] * s
                    t = up[j] if cross < 0.0 else down[j]
                    if t == 0.0:
                        continue
                    change = single + t * (2.0 * cross + gram[j, j] * t)
                    if change < best:
                        best, first, second = change, i, j
                        first_level = choice[i] + (1 if side else -1)
                        second_level = choice[j] + (1 if cross < 0.0 else -1)
        if first < 0:
            break
        for i, j in ((first, first_level), (second, second_level)):
            t = levels[i, j] - levels[i, choice[i]]
            choice[i] = j
            _shift_gradient(n, t, gram[i], gradient)
        moves += 1
    value = 0.0
    for i in range(n):
        deviation[i] = levels[i, choice[i]] - target[i]
    gradient = gram @ deviation
    for i in range(n):
        value += gradient[i] * deviation[i]
    return value, moves
