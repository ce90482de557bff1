"""Compiled branch and bound with the diagonal perspective dual of best subset selection (docs/pruning-bounds.md).

Arrays over inputs: ``status`` is 1 (kept), −1 (dropped) or 0 (free); ``state`` as in `subset_relaxation`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import (
    copy,
    inverse_diagonal,
    largest,
)
from layerbounds.kernels.pruning.subset_diagonal import climb, emphasis
from layerbounds.kernels.pruning.subset_relaxation import alive, reduce, relax
from layerbounds.kernels.pruning.subset_sets import close_by_sets

UNIT = 2.0**-53
#: Share of the sets that a node may have to be enumerated before its diagonal is improved.
EARLY = 0.3
#: What `run` returns: nothing is left below the cut; a limit; no room for children; sets to look at; a rounded set.
DONE, LIMIT, FULL, FOUND, ROUNDED = 0, 1, 2, 3, 4
#: The barrier weight of a node's improvement of the diagonal, and the least emphasis.
TREE_MU, FLOOR = 0.3, 0.05
#: Rounds of the active-set method at a node; inputs whose exclusion cost is estimated before branching.
ROUNDS, CANDIDATES = 8, 8
#: Nodes between two trials of the rounded set.
TRIALS = 8
#: Open nodes up to which the one of smallest bound comes first.
MOST_OPEN = 400000


@kernel(error_model="numpy")
def settle(group, free, status):
    """Apply the capacities: a full group drops its free inputs, a group with room for all keeps them."""
    for g in range(len(free)):
        count = 0
        for i in range(len(group)):
            if group[i] == g and status[i] == 0:
                count += 1
        if count == 0 or (count > free[g] and free[g] > 0):
            continue
        keep = count <= free[g]
        for i in range(len(group)):
            if group[i] == g and status[i] == 0:
                status[i] = 1 if keep else -1
                if keep:
                    free[g] -= 1


@kernel(error_model="numpy")
def fix(bound, cut, group, free, status, scores, edge):
    """Fix inputs whose other choice is proven to reach the cut; returns how many.

    Dropping an input that is among the kept ones costs its saving less that of the best one left out; keeping one that
    is left out costs the saving of the worst kept one less its own. The savings are rounded up, so both are proven.
    """
    count = 0
    for i in range(len(group)):
        if status[i] != 0:
            continue
        below, above = edge[group[i], 0], edge[group[i], 1]
        if scores[i] >= above:
            if bound + (scores[i] - below) * (1.0 - 4.0 * UNIT) >= cut:
                status[i] = 1
                free[group[i]] -= 1
                count += 1
        elif bound + (above - scores[i]) * (1.0 - 4.0 * UNIT) >= cut:
            status[i] = -1
            count += 1
    return count


@kernel(error_model="numpy")
def pick(d, status, u, work, m, index, v, candidates):
    """The free active input whose exclusion is estimated to cost most: u²/(M⁻¹)_ii with M the relaxation's matrix.

    Only the ``candidates`` of largest separable estimate are looked at. −1 where no input is active and free.
    """
    best = -1.0
    arg = -1
    estimate = np.full(m, -1.0)
    for p in range(m):
        i = index[p]
        if status[i] == 0:
            estimate[p] = d[i] * u[i] * u[i]
    for _ in range(candidates):
        if m == 0:
            break
        top = largest(estimate, m)
        if estimate[top] < 0.0:
            break
        estimate[top] = -1.0
        i = index[top]
        cost = u[i] * u[i] / inverse_diagonal(work, m, top, v)
        if cost > best:
            best = cost
            arg = i
    return arg


@kernel(error_model="numpy", nested=True)
def before(bound, turn, x, y):
    """Whether node x comes before node y: smaller bounds first, then older nodes."""
    return bound[x] < bound[y] or (bound[x] == bound[y] and turn[x] < turn[y])


@kernel(error_model="numpy", nested=True)
def push(heap, size, bound, turn, node):
    """Add a node to the heap of ``size`` nodes."""
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if not before(bound, turn, node, heap[parent]):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = node


@kernel(error_model="numpy", nested=True)
def pop(heap, size, bound, turn):
    """Take the first node off the heap of ``size`` nodes."""
    first = heap[0]
    last = heap[size - 1]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size - 1:
            break
        if child + 1 < size - 1 and before(bound, turn, heap[child + 1], heap[child]):
            child += 1
        if not before(bound, turn, heap[child], last):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    return first


@kernel(error_model="numpy", nested=True)
def error_of(gram, b, chosen, energy):
    """Error of the best weights on a set, as computed."""
    n = len(b)
    kept = np.empty(n, np.int64)
    m = 0
    for i in range(n):
        if chosen[i]:
            kept[m] = i
            m += 1
    return energy - reduce(gram, b, kept, m, m, np.empty((m, m)), np.empty(m))


@kernel(error_model="numpy", nested=True)
def release(node, row, uses, spare, spare_rows, counts):
    """Give a node and its share of a minorant back."""
    spare[counts[1]] = node
    counts[1] += 1
    uses[row[node]] -= 1
    if uses[row[node]] == 0:
        spare_rows[counts[2]] = row[node]
        counts[2] += 1


@kernel(error_model="numpy", inline=True)
def relax_node(layer, d, group, free, status, state, cut, left, results):
    """See `relax`: ``layer``, ``left`` and ``results`` are its arguments from ``gram``, ``inputs`` and ``u`` on."""
    gram, norm, b, energy, reach = layer
    inputs, kept, live, reduced, residual = left
    u, save, edge, work, v, index, scores, out = results
    return relax(
        gram, norm, b, energy, reach, d, group, free, status, state, ROUNDS, cut,
        inputs, kept, live, reduced, residual, u, save, edge, work, v, index, scores, out,
    )  # fmt: skip


@kernel(error_model="numpy", inline=True)
def improve(layer, d, group, free, status, state, now, cut, left, results, tuning):
    """Improve a node's diagonal; its bound, and whether that is the one of the new diagonal, ``tuning[0]``."""
    tuned, trial, alpha, other, inverse, wide = tuning
    inputs, kept, live, reduced, _ = left
    mean = emphasis(group, free, status, results[0], d, results[1], results[2], FLOOR, alpha)
    if not mean > 0.0 or not climb(
        layer[0], d, alpha, TREE_MU * mean, tuned, inputs, kept, live, reduced, other, inverse, wide
    ):
        return now, False
    copy(state, trial)
    better = relax_node(layer, tuned, group, free, status, trial, cut, left, results)
    if better > now:
        copy(trial, state)
        return better, True
    # The work arrays belong to the last relaxation: back to the better one.
    return relax_node(layer, d, group, free, status, state, cut, left, results), False


@kernel(error_model="numpy", nested=True)
def own_row(node, row, uses, spare_rows, counts):
    """Take a row for a minorant of the node's own, and give its share of the present one back; returns the row."""
    old = row[node]
    counts[2] -= 1
    row[node] = spare_rows[counts[2]]
    uses[row[node]] = 1
    uses[old] -= 1
    if uses[old] == 0:
        spare_rows[counts[2]] = old
        counts[2] += 1
    return row[node]


@kernel(error_model="numpy", nested=True)
def round_set(status, save, edge, group, chosen):
    """The kept inputs, and the free ones whose saving is among those that their group has room for."""
    for i in range(len(status)):
        chosen[i] = status[i] == 1 or (status[i] == 0 and save[i] >= edge[group[i], 1])


@kernel(error_model="numpy", nested=True)
def undecided(status, save):
    """How many inputs are free, and the one of largest saving among them; −1 where none is."""
    free = 0
    first = -1
    for i in range(len(status)):
        if status[i] == 0:
            free += 1
            if first < 0 or save[i] > save[first]:
                first = i
    return free, first


@kernel(error_model="numpy", nested=True)
def queue(node, bound, turn, heap, counts):
    """Put a node among the open ones."""
    turn[node] = counts[3]
    counts[3] += 1
    push(heap, counts[0], bound, turn, node)
    counts[0] += 1


@kernel(error_model="numpy", nested=True)
def split(node, branch, group, status, state, room, bound, row, uses, spare, counts):
    """Drop an input at a node; returns a new one that keeps it."""
    child = spare[counts[1] - 1]
    counts[1] -= 1
    copy(status[node], status[child])
    copy(state[node], state[child])
    copy(room[node], room[child])
    bound[child] = bound[node]
    row[child] = row[node]
    uses[row[node]] += 1
    status[node, branch] = -1
    settle(group, room[node], status[node])
    status[child, branch] = 1
    room[child, group[branch]] -= 1
    settle(group, room[child], status[child])
    return child


@kernel(error_model="numpy")
def run(
    gram, norm, b, energy, reach, group, upper, cut, margin, most, budget, last,
    status, state, room, bound, turn, row, spare, d, uses, spare_rows, heap, counts, closed, found, wide,
):  # fmt: skip
    """Best-first branch and bound with the diagonal dual, until something has to be done outside.

    Parameters
    ----------
    gram, norm, b, energy, reach, group
        As in `relax`.
    upper, cut, margin
        Error of the incumbent, the bound that closes a node, and the rounding of a set's computed error.
    most
        Nodes of one group with about so many sets within the gap are enumerated.
    budget, last
        Work of this call, in nodes; number of nodes at which to stop.
    status, state, room, bound, turn, row
        The nodes. ``row`` is the row of their minorant in ``d``, ``uses`` how many nodes share it.
    spare, spare_rows, heap
        Stacks of unused nodes and rows; open nodes, the one of smallest bound first.
    counts
        Open nodes, spare nodes, spare rows, turns so far, nodes expanded, entries of ``found``.
    closed
        ``closed[0]`` is the smallest bound of a closed node, or of what was cut off one.
    found
        Result: flags of sets that have to be evaluated exactly.
    wide
        As in `climb`.

    Returns
    -------
    int
        One of the constants above.
    """
    n = len(b)
    groups = room.shape[1]
    u, save, v, scores = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    edge = np.zeros((groups, 2))
    work, other, inverse, reduced = np.empty((n, n)), np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    index, inputs = np.zeros(n, np.int64), np.zeros(n, np.int64)
    residual, out = np.zeros(n), np.zeros(1)
    alpha, tuned, trial = np.zeros(n), np.zeros(n), np.empty(n, np.int8)
    layer = (gram, norm, b, energy, reach)
    results = (u, save, edge, work, v, index, scores, out)
    tuning = (tuned, trial, alpha, other, inverse, wide)
    chosen = np.empty(n, np.bool_)
    while counts[0] > 0 and bound[heap[0]] < cut:
        if budget <= 0 or counts[4] >= last:
            return LIMIT
        if counts[1] < 1 or counts[2] < 1:
            return FULL
        # With very many open nodes a recent one is worked on, whose subtree is small.
        node = heap[counts[0] - 1] if counts[0] > MOST_OPEN else pop(heap, counts[0], bound, turn)
        counts[0] -= 1
        counts[4] += 1
        budget -= 1
        st, sg, rm = status[node], state[node], room[node]
        kept, live = alive(st, inputs)
        if kept == live:
            round_set(st, save, edge, group, chosen)
            error = error_of(gram, b, chosen, energy)
            if error - margin >= cut:
                closed[0] = min(closed[0], cut)
            else:
                copy(chosen, found[0])
                counts[5] = 1
            release(node, row, uses, spare, spare_rows, counts)
            if counts[5]:
                return FOUND
            continue
        base = reduce(gram, b, inputs, kept, live, reduced, residual)
        left = (inputs, kept, live, reduced, residual)
        now = relax_node(layer, d[row[node]], group, rm, st, sg, cut, left, results)
        count = -1
        if now < cut and groups == 1:
            count = close_by_sets(left, base, st, rm[0], save, edge[0], now, cut, energy, margin, EARLY * most, found)
        if now < cut and count < 0:
            budget -= 1
            now, better = improve(layer, d[row[node]], group, rm, st, sg, now, cut, left, results, tuning)
            if better:
                copy(tuned, d[own_row(node, row, uses, spare_rows, counts)])
            if now < cut and groups == 1:
                count = close_by_sets(left, base, st, rm[0], save, edge[0], now, cut, energy, margin, most, found)
        if count >= 0:
            budget -= 4
            closed[0] = min(closed[0], cut)
            release(node, row, uses, spare, spare_rows, counts)
            counts[5] = count
            if count > 0:
                return FOUND
            continue
        value = max(now, bound[node])
        if value >= cut:
            closed[0] = min(closed[0], value)
            release(node, row, uses, spare, spare_rows, counts)
            continue
        if counts[4] % TRIALS == 1:
            round_set(st, save, edge, group, chosen)
        active = int(out[0])
        rounded = counts[4] % TRIALS == 1 and error_of(gram, b, chosen, energy) < upper * (1.0 - 1e-9)
        branch = pick(d[row[node]], st, u, work, active, index, v, CANDIDATES)
        if fix(now, cut, group, rm, st, save, edge):
            # What was cut off is only known to reach the cut.
            closed[0] = min(closed[0], cut)
            settle(group, rm, st)
        bound[node] = value
        free, first = undecided(st, save)
        if free > 0:
            if branch < 0 or st[branch] != 0:
                branch = first
            child = split(node, branch, group, status, state, room, bound, row, uses, spare, counts)
            queue(node, bound, turn, heap, counts)
            queue(child, bound, turn, heap, counts)
        else:
            queue(node, bound, turn, heap, counts)
        if rounded:
            copy(chosen, found[0])
            counts[5] = 1
            return ROUNDED
    return DONE
