"""Compiled enumeration of the sets whose bound stays below the cut (docs/pruning-bounds.md).

A separable bound gives every set of a node the value of the best one plus what its choice costs in each cluster; sets
whose costs exceed the gap are never looked at. This serves the diagonal dual, with clusters of one input, and the
block dual.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import (
    rank,
)
from layerbounds.kernels.pruning.subset_relaxation import reduce

#: Levels of the enumeration, from the last one, below which no Schur complement is kept.
LAZY = 4
#: Multiplications that the enumeration of a node may take.
MOST_WORK = 3000000


@kernel(error_model="numpy")
def eliminate(gram, b, kept, free, a, r):
    """Schur complement (upper triangle) and residual of the free inputs after the kept ones; returns their saving.

    NaN where the kept inputs are dependent: then comparisons are false.
    """
    count = len(kept)
    m = count + len(free)
    work, right = np.empty((m, m)), np.empty(m)
    index = np.empty(m, np.int64)
    for p in range(m):
        index[p] = kept[p] if p < count else free[p - count]
    saving = reduce(gram, b, index, count, m, work, right)
    for p in range(len(free)):
        r[p] = right[count + p]
        for q in range(p, len(free)):
            a[p, q] = work[count + p, count + q]
    return saving


@kernel(error_model="numpy")
def make_tries(base, free, code, number, s, price, gap, child, value, root, order):
    """A binary tree for the codes of each cluster within a gap, with the best value s − price of its continuations.

    Parameters
    ----------
    base, free, code, number, s
        As in `kernels.clusters`.
    child, value
        Results: the nodes after a 0 and a 1, −1 where there is no code, and the best value of the codes below.
    root
        Result: the root of each cluster's tree.
    order
        Result: the clusters, those of fewest codes within the gap first, so that the enumeration branches late.

    Returns
    -------
    float
        The sum of the best values.
    """
    groups = len(free)
    total = 0.0
    choices = np.zeros(groups)
    count = 0
    for g in range(groups):
        best = -np.inf
        for at in range(base[g], base[g + 1]):
            best = max(best, s[at] - price * number[at])
        total += best
        root[g] = count
        child[count] = -1
        value[count] = best
        count += 1
        for at in range(base[g], base[g + 1]):
            x = s[at] - price * number[at]
            if best - x > gap:
                continue
            choices[g] += 1.0
            node = root[g]
            for d in range(free[g] - 1, -1, -1):
                bit = (code[at] >> d) & 1
                if child[node, bit] < 0:
                    child[node, bit] = count
                    child[count] = -1
                    value[count] = x
                    count += 1
                node = child[node, bit]
                value[node] = max(value[node], x)
        choices[g] /= 1.0 + free[g]
    rank(choices, order)
    return total


@kernel(error_model="numpy")
def free_tries(savings, child, value, root):
    """The same for inputs that are clusters of their own, kept for a value and dropped for nothing."""
    for p in range(len(savings)):
        root[p] = 3 * p
        child[3 * p, 0] = 3 * p + 1
        child[3 * p, 1] = 3 * p + 2
        value[3 * p] = max(savings[p], 0.0)
        value[3 * p + 1] = 0.0
        value[3 * p + 2] = savings[p]


@kernel(error_model="numpy", inline=True)
def single_sets(a, r, threshold, found):
    """Single inputs whose saving exceeds a threshold; how many, −1 if there is no room for them."""
    count = 0
    for j in range(len(r)):
        if r[j] * r[j] > threshold * a[j, j]:
            if count == len(found):
                return -1
            found[count, 0] = j
            count += 1
    return count


@kernel(error_model="numpy", inline=True)
def complement_row(source, rows, pivots, begin, end, t, top):
    """Row t of the Schur complement, right of its diagonal, after the pivots of the levels from ``begin`` to ``end``.

    ``source`` is the row before them.
    """
    m = len(top)
    for j in range(t + 1, m):
        top[j] = source[j]
    for p in range(begin, end):
        other = rows[p]
        ratio = other[t] / pivots[p]
        for j in range(t + 1, m):
            top[j] -= ratio * other[j]


@kernel(error_model="numpy", inline=True)
def last_inputs(t, f, inverse, need, v, dg, top, chosen, found, count):
    """Write down the sets that a last input after t completes and whose saving suffices; −1 if there is no room.

    The saving of the last input is v²/d after the input t is in; its own cost is not looked at.
    """
    m = len(v)
    peak = -np.inf
    for j in range(t + 1, m):
        x = v[j] - top[j] * f
        peak = max(peak, x * x - need * (dg[j] - top[j] * top[j] * inverse))
    if peak <= 0.0:
        return count
    for j in range(t + 1, m):
        x = v[j] - top[j] * f
        if not x * x - need * (dg[j] - top[j] * top[j] * inverse) <= 0.0:
            if count == len(found):
                return -1
            last = found.shape[1] - 1
            for p in range(last):
                found[count, p] = chosen[p]
            found[count, last] = j
            count += 1
    return count


@kernel(error_model="numpy")
def near_sets(a, r, room, child, best, root, order, free, gap, threshold, most, found):
    """Sets of exactly ``room`` free inputs within a gap whose saving exceeds a threshold.

    Parameters
    ----------
    a, r
        Schur complement (upper triangle) and residual of the free inputs, clusters in ``order``.
    child, best, root, order, free
        See `make_tries`; ``best`` are the values.
    gap
        How much the costs of a set, the differences of values to those of the best codes, may add up to.
    threshold
        Least saving.
    most
        Limit of work, in multiplications.
    found
        Result: positions of the inputs of each set, shape (sets, room).

    Returns
    -------
    int
        How many there are; −1 if there is no room for them in ``found``; −2 where the work is too much.
    """
    m = len(r)
    if room == 0:
        return 1 if threshold < 0.0 else 0
    if room > m:
        return 0
    if room == 1:
        return single_sets(a, r, threshold, found)
    cluster = np.empty(m, np.int64)
    depth = np.empty(m, np.int64)
    t = 0
    for x in range(len(order)):
        for d in range(free[order[x]]):
            cluster[t] = order[x]
            depth[t] = d
            t += 1
    levels = room - 1
    # The Schur complement is kept up to this level; below, its rows are computed where they are needed.
    eager = max(levels - LAZY, 0)
    matrix = np.empty((eager + 1, m, m))
    rows = np.empty((levels, m))
    pivots = np.empty(levels)
    vector = np.empty((levels, m))
    diagonal = np.empty((levels, m))
    saved = np.zeros(levels)
    position = np.zeros(levels, np.int64)
    begun = np.zeros(levels, np.int64)
    cost = np.zeros(levels)
    chosen = np.empty(room, np.int64)
    for i in range(m):
        vector[0, i] = r[i]
        diagonal[0, i] = a[i, i]
        for j in range(i, m):
            matrix[0, i, j] = a[i, j]
    begun[0] = root[cluster[0]]
    count = 0
    work = 0
    q = 0
    while q >= 0:
        t = position[q]
        if t + room - q > m:
            q -= 1
            continue
        g = cluster[t]
        top_value = best[root[g]]
        out, into = child[begun[q], 0], child[begun[q], 1]
        with_it = cost[q] + top_value - best[into] if into >= 0 else np.inf
        without = cost[q] + top_value - best[out] if out >= 0 else np.inf
        # The state of this level: the input is left out.
        position[q] = t + 1 if without <= gap else m
        closes = depth[t] + 1 == free[g]
        following_root = root[cluster[t + 1]] if t + 1 < m else 0
        begun[q] = following_root if closes else out
        if closes:
            cost[q] = without
        if with_it > gap:
            continue
        pivot = diagonal[q, t]
        if not pivot > 0.0:
            return -2
        chosen[q] = t
        f = vector[q, t] / pivot
        value = saved[q] + vector[q, t] * f
        top = rows[q]
        complement_row(matrix[min(q, eager), t], rows, pivots, eager, q, t, top)
        work += (m - t) * (2 + max(q - eager, 0))
        v, dg = vector[q], diagonal[q]
        inverse = 1.0 / pivot
        if q == levels - 1:
            count = last_inputs(t, f, inverse, threshold - value, v, dg, top, chosen, found, count)
            if count < 0:
                return -1
            continue
        pivots[q] = pivot
        q += 1
        saved[q] = value
        position[q] = t + 1
        begun[q] = following_root if closes else into
        cost[q] = with_it if closes else cost[q - 1]
        following, remaining = vector[q], diagonal[q]
        for j in range(t + 1, m):
            following[j] = v[j] - top[j] * f
            remaining[j] = dg[j] - top[j] * top[j] * inverse
        if q <= eager:
            work += (m - t) * (m - t) // 2
            for i in range(t + 1, m):
                ratio = top[i] * inverse
                above = matrix[q - 1, i]
                row = matrix[q, i]
                for j in range(i, m):
                    row[j] = above[j] - ratio * top[j]
        if work > most:
            return -2
    return count


@kernel(error_model="numpy")
def estimate(base, number, s, price, gap):
    """About how many sets, of any size, lie within a gap: their costs are added up in steps of the gap's 64th part."""
    steps = 64
    sets = np.zeros(steps + 1)
    sets[0] = 1.0
    costs = np.empty(steps + 1)
    for g in range(len(base) - 1):
        top = -np.inf
        for at in range(base[g], base[g + 1]):
            top = max(top, s[at] - price * number[at])
        for x in range(len(costs)):
            costs[x] = 0.0
        for at in range(base[g], base[g + 1]):
            x = (top - (s[at] - price * number[at])) / gap * steps
            if x < steps + 0.5:
                costs[int(x + 0.5)] += 1.0
        following = np.zeros(steps + 1)
        for x in range(steps + 1):
            if costs[x] > 0.0:
                for y in range(steps + 1 - x):
                    following[x + y] += costs[x] * sets[y]
        sets = following
    return sets.sum()


@kernel(error_model="numpy")
def near_count(cost, room, gap, most):
    """About how many sets of ``room`` inputs or units cost no more than a gap, by steps of the gap's 24th part.

    One costs its cost where it is left out, and the negative of it where it is in; one of the two is none.
    """
    steps = 24
    m = len(cost)
    raw = 1.0
    for j in range(room):
        raw *= (m - j) / (j + 1.0)
    if raw <= most:
        return raw
    number = np.zeros((room + 1, steps + 1))
    number[0, 0] = 1.0
    for p in range(m):
        x = cost[p] / gap * steps
        drop = int(min(max(x, 0.0), steps + 1.0) + 0.5)
        keep = int(min(max(-x, 0.0), steps + 1.0) + 0.5)
        for j in range(min(room, p + 1), -1, -1):
            line = number[j]
            if drop > 0:
                for y in range(steps, -1, -1):
                    line[y] = line[y - drop] if y >= drop else 0.0
            if j > 0:
                previous = number[j - 1]
                for y in range(keep, steps + 1):
                    line[y] += previous[y - keep]
    return min(number[room].sum(), raw)


@kernel(error_model="numpy", nested=True)
def close_by_sets(left, base, status, room, save, edge, value, cut, energy, margin, most, found):
    """Enumerate the sets of a node of one group whose bound stays below the cut.

    ``left`` is the inputs that are not dropped, the kept ones first, how many are kept and how many there are, and what
    `reduce` left of them; ``base`` is what it returned; ``value`` is the bound that belongs to the savings ``save``.
    Returns the number of sets in ``found`` (rows of flags) that have to be evaluated exactly, or a negative number
    where the node cannot be closed so.
    """
    inputs, kept, total, reduced, residual = left
    n = len(status)
    index = inputs[kept:total]
    m = total - kept
    price = 0.5 * (edge[0] + edge[1])
    gap = (cut - value) * (1.0 + 1e-12)
    cost, key = np.empty(m), np.empty(m)
    for p in range(m):
        cost[p] = save[index[p]] - price
        key[p] = -abs(cost[p])
    # A NaN would find no set to be better than the cut.
    if not base < np.inf or not near_count(cost, room, gap, most) <= most:
        return -2
    order = np.empty(m, np.int64)
    rank(key, order)
    child, best = np.empty((3 * m, 2), np.int64), np.empty(3 * m)
    root = np.empty(m, np.int64)
    a, r, savings = np.empty((m, m)), np.empty(m), np.empty(m)
    for p in range(m):
        savings[p] = cost[order[p]]
        r[p] = residual[kept + order[p]]
        for q in range(p, m):
            low, high = min(order[p], order[q]), max(order[p], order[q])
            a[p, q] = reduced[kept + low, kept + high]
    free_tries(savings, child, best, root)
    sets = np.empty((len(found), room), np.int64)
    count = near_sets(
        a, r, room, child, best, root, np.arange(m), np.ones(m, np.int64), gap, energy - base - cut - margin,
        MOST_WORK, sets,
    )  # fmt: skip
    for x in range(count):
        for i in range(n):
            found[x, i] = status[i] == 1
        for p in range(room):
            found[x, index[order[sets[x, p]]]] = True
    return count
