"""Compiled branch and bound of one row with prices: least error plus prices of the inputs that are kept.

Arrays over inputs: ``status`` is 1 (kept), −1 (dropped) or 0 (free). Best-first, as `kernels.pruning.subset_tree`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import copy
from layerbounds.kernels.pruning.subset_diagonal import climb
from layerbounds.kernels.pruning.subset_relaxation import alive, reduce
from layerbounds.kernels.pruning.subset_tree import error_of, own_row, pick, pop, queue, release, undecided
from layerbounds.kernels.tiles.relaxation import relax

UNIT = 2.0**-53
#: What `run` returns: nothing is left below the cut; a limit; no room for children; a set to look at.
DONE, LIMIT, FULL, FOUND = 0, 1, 2, 3
#: Rounds of a node's relaxation, before and after its diagonal is improved; the barrier weight of that.
ROUNDS, MORE, TREE_MU = 8, 4, 0.3
#: Least share of an input's weight in the improvement of the diagonal; candidates for branching.
FLOOR, CANDIDATES = 0.05, 8


@kernel(error_model="numpy")
def settle(group, free, price, status):
    """A full group drops its free inputs; one with room for all keeps those that cost nothing."""
    for g in range(len(free)):
        count = 0
        for i in range(len(group)):
            if group[i] == g and status[i] == 0:
                count += 1
        keep = count <= free[g]
        if count == 0 or (free[g] > 0 and not keep):
            continue
        for i in range(len(group)):
            if group[i] == g and status[i] == 0:
                if free[g] <= 0:
                    status[i] = -1
                elif price[i] == 0.0:
                    status[i] = 1
                    free[g] -= 1


@kernel(error_model="numpy", nested=True)
def fix(bound, cut, group, free, status, scores, edge):
    """Fix inputs whose other choice is proven to reach the cut; returns how many.

    Dropping an input that is among those taken costs its score less that of the best one left out, or 0; keeping one
    that is left out costs the score of the worst one taken, or 0, less its own.
    """
    count = 0
    for i in range(len(group)):
        if status[i] != 0:
            continue
        below, above = edge[group[i], 0], edge[group[i], 1]
        if scores[i] > 0.0 and scores[i] >= above:
            if bound + (scores[i] - below) * (1.0 - 4.0 * UNIT) >= cut:
                status[i] = 1
                free[group[i]] -= 1
                count += 1
        elif bound + (above - scores[i]) * (1.0 - 4.0 * UNIT) >= cut:
            status[i] = -1
            count += 1
    return count


@kernel(error_model="numpy")
def emphasis(status, price, save, z, alpha):
    """How much the bound gains from a relative growth of each d_i, s z(1 − z) with a floor; returns the mean.

    Without a floor entries of inputs at z = 0 or 1 would vanish, and other prices find them at no cost.
    """
    total, count = 0.0, 0
    for i in range(len(alpha)):
        alpha[i] = 0.0
        if status[i] == 0:
            alpha[i] = (save[i] + price[i]) * z[i] * (1.0 - z[i])
            total += alpha[i]
            count += 1
    if count == 0:
        return 0.0
    mean = total / count
    for i in range(len(alpha)):
        if status[i] == 0:
            alpha[i] = max(alpha[i], FLOOR * mean)
    return mean


@kernel(error_model="numpy", nested=True)
def branched(node, branch, group, price, status, z, room, bound, row, uses, spare, counts):
    """Drop an input at a node; returns a new one that keeps it."""
    child = spare[counts[1] - 1]
    counts[1] -= 1
    copy(status[node], status[child])
    copy(z[node], z[child])
    copy(room[node], room[child])
    bound[child] = bound[node]
    row[child] = row[node]
    uses[row[node]] += 1
    status[node, branch] = -1
    settle(group, room[node], price, status[node])
    status[child, branch] = 1
    room[child, group[branch]] -= 1
    settle(group, room[child], price, status[child])
    return child


@kernel(error_model="numpy", nested=True)
def total_price(price, chosen):
    """Of the inputs of a set."""
    total = 0.0
    for i in range(len(price)):
        if chosen[i]:
            total += price[i]
    return total


@kernel(error_model="numpy", nested=True)
def relaxed(layer, d, group, free, price, status, z, cut, left, results, tuning):
    """Bound of a node, its diagonal improved where it is not closed at once; whether ``tuning[0]`` is the new one."""
    tuned, trial, alpha, other, inverse, wide = tuning
    inputs, kept, live, reduced, _ = left
    now = relax(layer, d, group, free, price, status, z, ROUNDS, cut, left, results)
    if not now < cut:
        return now, False
    mean = emphasis(status, price, results[1], z, alpha)
    if not mean > 0.0 or not climb(
        layer[0], d, alpha, TREE_MU * mean, tuned, inputs, kept, live, reduced, other, inverse, wide
    ):
        return now, False
    copy(z, trial)
    better = relax(layer, tuned, group, free, price, status, trial, MORE, cut, left, results)
    if better > now:
        copy(trial, z)
        return better, True
    # The work arrays belong to the last relaxation: back to the better one.
    return relax(layer, d, group, free, price, status, z, 1, cut, left, results), False


@kernel(error_model="numpy")
def run(
    layer, group, price, cut, margin, budget, last, status, z, room, bound, turn, row, spare, d, uses, spare_rows, heap,
    counts, closed, found, wide,
):  # fmt: skip
    """Best-first branch and bound, until something has to be done outside.

    Parameters
    ----------
    layer, group, price
        As in `relax`.
    cut, margin
        The value that closes a node, and the rounding of a set's computed error.
    budget, last
        Nodes of this call; number of nodes at which to stop.
    status, z, room, bound, turn, row, spare, d, uses, spare_rows, heap, counts, closed
        As in `kernels.pruning.subset_tree.run`; ``z`` are weights of the relaxation.
    found
        Result: flags of a set that has to be evaluated exactly.
    wide
        None where there are no more inputs than `kernels.pruning.subset_diagonal.CACHED`.

    Returns
    -------
    int
        One of the constants above.
    """
    gram, _, b, energy, _ = layer
    n = len(b)
    u, save, v, scores = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    edge = np.zeros((room.shape[1], 2))
    work, other, inverse, reduced = np.empty((n, n)), np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    index, inputs = np.zeros(n, np.int64), np.zeros(n, np.int64)
    residual, out = np.zeros(n), np.zeros(1)
    results = (u, save, edge, work, v, index, scores, out)
    tuning = (np.zeros(n), np.zeros(n), np.zeros(n), other, inverse, wide)
    while counts[0] > 0 and bound[heap[0]] < cut:
        if budget <= 0 or counts[4] >= last:
            return LIMIT
        if counts[1] < 1 or counts[2] < 1:
            return FULL
        node = pop(heap, counts[0], bound, turn)
        counts[0] -= 1
        counts[4] += 1
        budget -= 1
        st, zs, rm = status[node], z[node], room[node]
        kept, live = alive(st, inputs)
        if kept == live:
            for i in range(n):
                found[i] = st[i] == 1
            error = error_of(gram, b, found, energy) + total_price(price, found)
            looked_at = not error - margin >= cut
            if not looked_at:
                closed[0] = min(closed[0], cut)
            release(node, row, uses, spare, spare_rows, counts)
            if looked_at:
                return FOUND
            continue
        reduce(gram, b, inputs, kept, live, reduced, residual)
        left = (inputs, kept, live, reduced, residual)
        now, better = relaxed(layer, d[row[node]], group, rm, price, st, zs, cut, left, results, tuning)
        if better:
            copy(tuning[0], d[own_row(node, row, uses, spare_rows, counts)])
        value = max(now, bound[node])
        if value >= cut:
            closed[0] = min(closed[0], value)
            release(node, row, uses, spare, spare_rows, counts)
            continue
        branch = pick(d[row[node]], st, u, work, int(out[0]), index, v, CANDIDATES)
        if fix(now, cut, group, rm, st, save, edge):
            # What was cut off is only known to reach the cut.
            closed[0] = min(closed[0], cut)
            settle(group, rm, price, st)
        bound[node] = value
        free, first = undecided(st, save)
        if free > 0:
            if branch < 0 or st[branch] != 0:
                branch = first
            child = branched(node, branch, group, price, status, z, room, bound, row, uses, spare, counts)
            queue(child, bound, turn, heap, counts)
        queue(node, bound, turn, heap, counts)
    return DONE
