"""Compiled local search for best subset selection on the full sweep tableau.

The tableau of a kept set S is [−(H_SS)⁻¹, H_SS⁻¹H_SO; ·, Schur complement]; beside it stands a vector with the refitted
weights on S and the residual b − H_OS v_S elsewhere. Adding, removing and exchanging inputs cost O(1) to judge and
O(n²) to carry out (Beale, Kendall & Mann, Biometrika 1967; Garside, 1971).
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import copy

#: A pivot below this fraction of the diagonal entry is taken for linear dependence.
DEPENDENT = 1e-9
#: Kicks of one kind in a row, and how far the error may rise in a walk, relative to the best one.
STEPS, WALK = 32, 0.03


@kernel(nested=True)
def sweep(a, r, kept, k):
    """Add input k to the kept set, or remove it; returns the change of the objective."""
    n = len(r)
    pivot = a[k, k]
    sign = -1.0 if kept[k] else 1.0
    rk = r[k]
    row = a[k].copy()
    for i in range(n):
        f = row[i] / pivot
        if i == k or f == 0.0:
            continue
        target = a[i]
        for j in range(n):
            target[j] -= f * row[j]
        r[i] -= f * rk
        target[k] = sign * f
    for j in range(n):
        a[k, j] = sign * row[j] / pivot
    a[k, k] = -1.0 / pivot
    r[k] = sign * rk / pivot
    kept[k] = not kept[k]
    return -rk * rk / pivot


@kernel(nested=True)
def start(gram, b, chosen, a, r, kept, slack, group, capacity):
    """Fill the tableau for a given set; dependent inputs are left out. Returns the (negative) saving."""
    n = len(b)
    value = 0.0
    for i in range(n):
        r[i] = b[i]
        kept[i] = False
        for j in range(n):
            a[i, j] = gram[i, j]
    for g in range(len(capacity)):
        slack[g] = capacity[g]
    for i in range(n):
        if chosen[i] and a[i, i] > DEPENDENT * gram[i, i] and slack[group[i]] > 0:
            value += sweep(a, r, kept, i)
            slack[group[i]] -= 1
    return value


@kernel(nested=True)
def fill(gram, a, r, kept, slack, group):
    """Add the input of largest saving while a group has room; returns the change of the objective."""
    n = len(r)
    value = 0.0
    while True:
        best = 0.0
        arg = -1
        for i in range(n):
            if not kept[i] and slack[group[i]] > 0 and a[i, i] > DEPENDENT * gram[i, i]:
                gain = r[i] * r[i] / a[i, i]
                if gain > best:
                    best = gain
                    arg = i
        if arg < 0:
            return value
        value += sweep(a, r, kept, arg)
        slack[group[arg]] -= 1


@kernel()
def eliminate(gram, b, group, capacity, a, r, kept, slack):
    """Backward greedy: start from all inputs and remove the one of least loss (OBS, OBC) until the pattern holds."""
    n = len(b)
    everything = np.ones(n, np.bool_)
    large = np.full(len(capacity), n, np.int64)
    start(gram, b, everything, a, r, kept, slack, group, large)
    for i in range(n):
        slack[group[i]] = 0
    for g in range(len(capacity)):
        slack[g] = capacity[g]
    for i in range(n):
        if kept[i]:
            slack[group[i]] -= 1
    while True:
        best = np.inf
        arg = -1
        for i in range(n):
            if kept[i] and slack[group[i]] < 0:
                loss = -r[i] * r[i] / a[i, i]
                if loss < best:
                    best = loss
                    arg = i
        if arg < 0:
            break
        sweep(a, r, kept, arg)
        slack[group[arg]] += 1
    fill(gram, a, r, kept, slack, group)


@kernel()
def descend(gram, a, r, kept, slack, group, floor, most):
    """Best exchange until none improves by more than ``floor``; returns the change of the objective."""
    n = len(r)
    value = fill(gram, a, r, kept, slack, group)
    for _ in range(most):
        best = floor
        out = -1
        add = -1
        for i in range(n):
            if not kept[i]:
                continue
            p = -a[i, i]
            if p <= 0.0:
                continue
            f = r[i] / p
            loss = r[i] * f
            row = a[i]
            inverse = 1.0 / p
            for j in range(n):
                if kept[j] or (group[j] != group[i] and slack[group[j]] <= 0):
                    continue
                q = a[j, j] + row[j] * row[j] * inverse
                if q <= DEPENDENT * gram[j, j]:
                    continue
                c = r[j] + row[j] * f
                gain = c * c - (loss + best) * q
                if gain > 0.0:
                    best = c * c / q - loss
                    out = i
                    add = j
        if out < 0:
            break
        value += sweep(a, r, kept, out)
        slack[group[out]] += 1
        value += sweep(a, r, kept, add)
        slack[group[add]] -= 1
        value += fill(gram, a, r, kept, slack, group)
    return value


@kernel()
def random_below(state, bound):
    """Next number in [0, bound) of a xorshift generator."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return np.int64((x >> np.uint64(11)) % np.uint64(bound))


@kernel()
def kick(gram, a, r, kept, slack, group, many, near, wide, state):
    """Exchange some kept inputs for dropped ones of the same group; returns the change.

    They are any inputs where ``wide`` is set, else ``near[i]`` for a random i, as far as these suffice.
    """
    n = len(r)
    value = 0.0
    width = n if wide else near.shape[1]
    centre = random_below(state, n)
    for _ in range(many):
        first = random_below(state, width)
        out = -1
        for t in range(width):
            p = (first + t) % width
            i = p if wide else near[centre, p]
            if kept[i]:
                out = i
                break
        if out < 0:
            break
        first = random_below(state, width)
        for t in range(width + n):
            p = (first + t) % width
            j = t - width if t >= width else p if wide else near[centre, p]
            if not kept[j] and group[j] == group[out]:
                value += sweep(a, r, kept, out)
                if a[j, j] > DEPENDENT * gram[j, j]:
                    value += sweep(a, r, kept, j)
                else:
                    slack[group[out]] += 1
                break
    return value


@kernel(nested=True)
def put(a, r, kept, slack, to_a, to_r, to_kept, to_slack):
    """Copy the state of a search."""
    for i in range(len(r)):
        copy(a[i], to_a[i])
    copy(r, to_r)
    copy(kept, to_kept)
    copy(slack, to_slack)


@kernel()
def improve(gram, b, energy, group, capacity, chosen, kicks, near, state):
    """Local search from a set, then kicks that are undone where they do not help.

    Kicks of any inputs, undone at once, take turns with walks: kicks of correlated inputs, from sets whose error may
    exceed that of the best one by ``WALK`` of it, to which the walk returns at its end. Neither does as well alone.

    Parameters
    ----------
    gram, b, energy
        H, Hw and wᵀHw.
    group, capacity
        Group of each input, and how many inputs each group may keep.
    chosen
        Flags of the inputs; becomes the best set.
    kicks
        Number of them.
    near
        For each input those that depend on it most, shape (n, width).
    state
        Of the random generator.

    Returns
    -------
    float
        The saving wᵀHw − f.
    """
    n = len(b)
    floor = 1e-12 * energy
    a = np.empty((n, n))
    r = np.empty(n)
    kept = np.empty(n, np.bool_)
    slack = np.empty(len(capacity), np.int64)
    value = start(gram, b, chosen, a, r, kept, slack, group, capacity)
    value += descend(gram, a, r, kept, slack, group, floor, 10 * n)
    best = last = value
    best_kept = kept.copy()
    last_a, last_r, last_kept, last_slack = a.copy(), r.copy(), kept.copy(), slack.copy()
    for count in range(kicks):
        wide = count // STEPS % 2 == 0
        value += kick(gram, a, r, kept, slack, group, 2 + random_below(state, 3), near, wide, state)
        value += descend(gram, a, r, kept, slack, group, floor, 10 * n)
        better = value < best - floor
        if better:
            best = value
            copy(kept, best_kept)
        if count % STEPS == STEPS - 1:
            # Sweeps add up their rounding: back to the best set from its beginning.
            value = best = start(gram, b, best_kept, a, r, kept, slack, group, capacity)
            better = True
        if better or (not wide and value < last + WALK * (energy + best)):
            last = value
            put(a, r, kept, slack, last_a, last_r, last_kept, last_slack)
        else:
            value = last
            put(last_a, last_r, last_kept, last_slack, a, r, kept, slack)
    copy(best_kept, chosen)
    return -best
