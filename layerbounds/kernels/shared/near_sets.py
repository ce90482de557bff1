"""The sets of units of a node whose bound stays below the cut, one by one (docs/shared-engine.md).

A separable bound gives every set the value of the best one plus what its choice costs for each unit; sets whose costs
exceed the gap are never looked at. What a set saves is ⟨A_SS⁻¹, M_SS⟩ with M = BBᵀ, whatever the number of right-hand
sides (`elimination`).
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.shared.elimination import all_count, eliminate_rows, update_row

#: Results: no room for the sets found, and too much work.
MANY, WORK = -1, -2


@kernel(error_model="numpy", nested=True)
def take_rows(a, m, begin, end, panel, second):
    """Copy the rows of a unit's inputs, from the diagonal on."""
    for i in range(begin, end):
        for k in range(i, a.shape[1]):
            panel[i - begin, k] = a[i, k]
            second[i - begin, k] = m[i, k]


@kernel(error_model="numpy")
def near_sets(a, m, edge, room, saving, gap, threshold, most, found):
    """Sets of exactly ``room`` units within a gap whose saving exceeds a threshold.

    Parameters
    ----------
    a, m
        A and M of the inputs, unit after unit; upper triangles.
    edge
        First input of each unit, and the number of inputs, shape (units + 1,).
    room
        How many units a set has, from 1 to all.
    saving, gap
        What each unit costs if it is chosen and should not be, or the reverse: a unit of ``saving`` x costs −x if it is
        chosen and x if it is not, where that is positive. All together may cost the gap.
    threshold
        Least saving.
    most
        Limit of work, in multiplications.
    found
        Result: the units of each set, shape (sets, room).

    Returns
    -------
    int
        How many there are, or `MANY` or `WORK`.
    """
    n, units = a.shape[1], len(saving)
    widest = 0
    for g in range(units):
        widest = max(widest, edge[g + 1] - edge[g])
    levels = max(room - 1, 1)
    matrices, moments = np.empty((levels, n, n)), np.empty((levels, n, n))
    # Rows of a unit of A and M, and what becomes of them: of the last unit beside those of the unit before it.
    source_rows, scaled, x, y = np.empty((4, widest, n))
    leaf, own, leaf_x, own_y = np.empty((4, widest, n))
    floor, peak, state = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
    saved, cost = np.zeros(room + 1), np.zeros(room + 1)
    position, chosen = np.zeros(room, np.int64), np.zeros(room, np.int64)
    # What units from t on cost if none of them is chosen any more.
    left_out = np.zeros(units + 1)
    for g in range(units - 1, -1, -1):
        left_out[g] = left_out[g + 1] + max(saving[g], 0.0)
    for i in range(n):
        for k in range(i, n):
            matrices[0, i, k] = a[i, k]
            moments[0, i, k] = m[i, k]
    count, work = 0, 0
    q = 0
    while q >= 0:
        t = position[q]
        if t + room - q > units or cost[q] > gap:
            q -= 1
            continue
        position[q] = t + 1
        with_it = cost[q] + max(-saving[t], 0.0)
        # From here on the unit is left out.
        cost[q] += max(saving[t], 0.0)
        last = q == room - 1
        if with_it > gap or (last and with_it + left_out[t + 1] > gap):
            continue
        low, high = edge[t], edge[t + 1]
        level = min(q, max(room - 2, 0))
        source, moment = matrices[level], moments[level]
        if last:
            # What is left of the last unit alone, after the unit before it.
            before = edge[chosen[q - 1] + 1] - edge[chosen[q - 1]] if q else 0
            for j in range(low, high):
                for k in range(j, high):
                    leaf[j - low, k] = source[j, k]
                    leaf_x[j - low, k] = moment[j, k]
                update_row(j, high, before, scaled, y, x, leaf[j - low], leaf_x[j - low])
            value = saved[q] + eliminate_rows(low, high - low, high, floor, leaf, leaf_x, own, own_y, state, peak)
            work += (high - low) * (high - low) * (before + high - low)
            if not all_count(low, high, state):
                return WORK
            if value <= threshold:
                continue
            if not value > threshold:
                return WORK
            if count == len(found):
                return MANY
            for p in range(q):
                found[count, p] = chosen[p]
            found[count, q] = t
            count += 1
            continue
        take_rows(source, moment, low, high, source_rows, x)
        value = saved[q] + eliminate_rows(low, high - low, n, floor, source_rows, x, scaled, y, state, peak)
        work += 2 * (high - low) * (high - low) * (n - low)
        if not all_count(low, high, state) or not value < np.inf:
            return WORK
        chosen[q] = t
        q += 1
        saved[q] = value
        cost[q] = with_it
        position[q] = t + 1
        if q < room - 1:
            after, moment_after = matrices[q], moments[q]
            for j in range(high, n):
                for k in range(j, n):
                    after[j, k] = source[j, k]
                    moment_after[j, k] = moment[j, k]
                update_row(j, n, high - low, scaled, y, x, after[j], moment_after[j])
            work += 3 * (high - low) * (n - high) * (n - high) // 2
        if work > most:
            return WORK
    return count
