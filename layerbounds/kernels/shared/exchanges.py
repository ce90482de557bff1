"""Greedy and local search for units that several rows share, on two matrices (docs/shared-sets.md).

With X = HWᵀ, A = H and M = XXᵀ, sweeping a unit g into the kept ones turns A_gg into −A_gg⁻¹, A_gj into A_gg⁻¹A_gj,
A_ij into A_ij − A_ig A_gg⁻¹A_gj, and X likewise: X holds the refitted weights of kept inputs and the residuals of the
others. A second sweep takes it out again. Only upper triangles are stored.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import solve_system
from layerbounds.kernels.shared.drop_levels import single_costs, take_rows
from layerbounds.kernels.shared.elimination import eliminate_rows, update_row


@kernel(error_model="numpy", nested=True)
def work_space(widest, n):
    """Arrays for `single_costs` and for the rows of a unit."""
    work = (
        np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)), np.zeros(n),
        np.zeros(n, np.int8), np.zeros(n),
    )  # fmt: skip
    panel = (np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)))
    return work, panel, np.empty((widest, n))


@kernel(error_model="numpy", nested=True)
def widest_unit(edge):
    """Inputs of the largest unit."""
    widest = 1
    for g in range(len(edge) - 1):
        widest = max(widest, edge[g + 1] - edge[g])
    return widest


@kernel(error_model="numpy", nested=True)
def is_independent(a, low, size, floor, block):
    """Whether the inputs of a unit are far from dependent on the kept ones and each other."""
    for i in range(size):
        for j in range(i, size):
            block[i, j] = a[low + i, low + j]
    for k in range(size):
        if not block[k, k] > floor[low + k]:
            return False
        for i in range(k + 1, size):
            f = block[k, i] / block[k, k]
            for j in range(i, size):
                block[i, j] -= f * block[k, j]
    return True


@kernel(error_model="numpy", nested=True)
def put_unit(a, m, edge, unit, rest, count, size, panel, moved, right, sign):
    """The other rows after a sweep, then the unit's own."""
    scaled, y, x = panel
    low, n = edge[unit], len(a)
    # Columns of the panel as they are in the matrix, with zeros for the unit itself.
    for i in range(size):
        for array in (scaled, y, x, moved):
            row = array[i]
            for k in range(size, size + low):
                row[k - size] = row[k]
            for k in range(low, low + size):
                row[k] = 0.0
    for u in range(count):
        for j in range(edge[rest[u]], edge[rest[u] + 1]):
            update_row(j, n, size, scaled, y, x, a[j], m[j])
    for i in range(size):
        for j in range(n):
            first, second = min(low + i, j), max(low + i, j)
            if low <= j < low + size:
                if j >= low + i:
                    a[first, second] = -right[i, j - low]
                    value = 0.0
                    for p in range(size):
                        value += right[i, size + p] * right[p, j - low]
                    m[first, second] = value
            else:
                a[first, second] = sign * y[i, j]
                m[first, second] = sign * moved[i, j]


@kernel(error_model="numpy")
def sweep_unit(a, m, edge, kept, unit, floor):
    """Take a unit into the kept ones, or out of them; returns what that saves.

    NaN where a unit to be kept has an input whose pivot is not above its floor: then nothing is changed.
    """
    size = edge[unit + 1] - edge[unit]
    work, panel, _ = work_space(size, len(a))
    scaled, y, x = panel
    block, right, rest = np.empty((size, size)), np.empty((size, 2 * size)), np.empty(len(kept), np.int64)
    if not kept[unit] and not is_independent(a, edge[unit], size, floor, block):
        return np.nan
    n, count = len(a), 0
    for g in range(len(edge) - 1):
        if g != unit:
            rest[count] = g
            count += 1
    take_rows(a, edge, unit, rest, count, scaled)
    take_rows(m, edge, unit, rest, count, x)
    # The inverse D⁻¹ of the unit's block, and D⁻¹M_gg.
    for i in range(size):
        for j in range(size):
            block[i, j] = scaled[min(i, j), max(i, j)]
            right[i, j] = 1.0 if i == j else 0.0
            right[i, size + j] = x[min(i, j), max(i, j)]
    solve_system(block, right)
    sign = -1.0 if kept[unit] else 1.0
    moved = work[0]
    for i in range(size):
        row, other = y[i], moved[i]
        for k in range(size, n):
            row[k] = 0.0
            other[k] = 0.0
        for p in range(size):
            f = right[i, p]
            for k in range(size, n):
                row[k] += f * scaled[p, k]
                other[k] += f * x[p, k]
    # Rows of M become sign·D⁻¹(M_gj − M_gg D⁻¹A_gj), and X those of M_gj − ½ M_gg D⁻¹A_gj.
    for i in range(size):
        other = moved[i]
        for p in range(size):
            f = right[i, size + p]
            for k in range(size, n):
                other[k] -= f * y[p, k]
    for i in range(size):
        for p in range(size):
            block[i, p] = x[min(i, p), max(i, p)]
    for i in range(size):
        target = x[i]
        for p in range(size):
            f = 0.5 * block[i, p]
            for k in range(size, n):
                target[k] -= f * y[p, k]
    put_unit(a, m, edge, unit, rest, count, size, panel, moved, right, sign)
    kept[unit] = not kept[unit]
    saved = 0.0
    for i in range(size):
        saved += right[i, size + i]
    return saved


@kernel(error_model="numpy")
def best_move(a, m, edge, group, kept, slack, floor, least, pair):
    """The unit to be dropped or added, or the exchange of a kept unit for another one, that is best.

    Units are dropped while some group keeps too many, then added while one has room.

    Parameters
    ----------
    a, m
        Swept for the kept units; upper triangles.
    edge, group
        First input of each unit and the number of inputs; the group of each unit.
    kept, slack
        Flags of the units, and how many more each group may keep.
    floor
        Inputs whose pivots are not above this save nothing.
    least
        What an addition or exchange has to save.
    pair
        Result: the unit to be dropped and the one to be added, −1 for none.
    """
    n, units = len(a), len(group)
    work, panel, source = work_space(widest_unit(edge), n)
    scaled, y, x = panel
    none = np.full(n, -np.inf)
    rest, cost = np.empty(units, np.int64), np.empty(units)
    pair[0] = pair[1] = -1
    excess = False
    for g in range(len(slack)):
        excess = excess or slack[g] < 0
    best = -np.inf if excess else least
    for i in range(-1, units):
        if i >= 0 and not kept[i]:
            continue
        size = edge[i + 1] - edge[i] if i >= 0 else 0
        many, stop = 0, size
        for j in range(units):
            if not excess and not kept[j] and (slack[group[j]] > 0 or (i >= 0 and group[j] == group[i])):
                rest[many] = j
                many += 1
                stop += edge[j + 1] - edge[j]
        if many == 0 and not (excess and i >= 0 and slack[group[i]] < 0):
            continue
        loss = 0.0
        if i >= 0:
            take_rows(a, edge, i, rest, many, source)
            take_rows(m, edge, i, rest, many, x)
            loss = eliminate_rows(0, size, stop, none, source, x, scaled, y, work[5], work[6])
        if excess and loss > best:
            best = loss
            pair[0] = i
        single_costs(a, m, edge, rest, many, size, panel, work, floor, loss, np.inf, cost)
        for u in range(many):
            if cost[u] > best:
                best = cost[u]
                pair[0], pair[1] = i, rest[u]
        if i < 0 and pair[1] >= 0:
            # Room is filled first.
            return
