"""The sets of units of a node whose bound stays below the cut, one by one (docs/shared-engine.md).

A separable bound gives every set the value of the best one plus what its choice costs for each unit; sets whose costs
exceed the gap are never looked at. What a set saves is ⟨A_SS⁻¹, M_SS⟩ with M = BBᵀ, whatever the number of right-hand
sides: eliminating an input of pivot d from A and M, with its rows a and m, leaves A − yaᵀ and M − yxᵀ − xyᵀ, where
y = a/d and x = m − ½m_ii y, and saves m_ii/d.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel

#: Results: no room for the sets found, and too much work.
MANY, WORK = -1, -2


@kernel(error_model="numpy", fastmath=REORDER, nested=True)
def eliminate_unit(begin, size, stop, panel, second, y):
    """Eliminate the inputs of a unit from their own rows, columns up to ``stop``; returns what they save.

    ``panel`` are the rows of A, upper triangle; ``second`` those of M, and become x. NaN where a pivot is not positive.
    """
    saving = 0.0
    for i in range(size):
        row, quotient, moment = panel[i], y[i], second[i]
        pivot = row[begin + i]
        if not pivot > 0.0:
            return np.nan
        inverse = 1.0 / pivot
        saving += moment[begin + i] * inverse
        half = 0.5 * moment[begin + i]
        for k in range(begin + i, stop):
            quotient[k] = row[k] * inverse
            moment[k] -= half * quotient[k]
        for j in range(i + 1, size):
            f, g, h = row[begin + j], quotient[begin + j], moment[begin + j]
            target, other = panel[j], second[j]
            for k in range(begin + j, stop):
                target[k] -= f * quotient[k]
                other[k] -= g * moment[k] + h * quotient[k]
    return saving


@kernel(error_model="numpy", fastmath=REORDER, nested=True)
def take_off(j, stop, size, panel, second, y, row, other):
    """Take the inputs of a unit off row j of A and M, from the diagonal to ``stop``, in place."""
    i = 0
    while i + 3 <= size:
        f0, f1, f2 = panel[i, j], panel[i + 1, j], panel[i + 2, j]
        g0, g1, g2 = y[i, j], y[i + 1, j], y[i + 2, j]
        h0, h1, h2 = second[i, j], second[i + 1, j], second[i + 2, j]
        y0, y1, y2 = y[i], y[i + 1], y[i + 2]
        x0, x1, x2 = second[i], second[i + 1], second[i + 2]
        for k in range(j, stop):
            row[k] -= f0 * y0[k] + f1 * y1[k] + f2 * y2[k]
            other[k] -= g0 * x0[k] + h0 * y0[k] + g1 * x1[k] + h1 * y1[k] + g2 * x2[k] + h2 * y2[k]
        i += 3
    while i < size:
        f, g, h = panel[i, j], y[i, j], second[i, j]
        y0, x0 = y[i], second[i]
        for k in range(j, stop):
            row[k] -= f * y0[k]
            other[k] -= g * x0[k] + h * y0[k]
        i += 1


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
    panel, second, y = np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n))
    leaf, leaf_moment, leaf_y = np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n))
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
                    leaf_moment[j - low, k] = moment[j, k]
                take_off(j, high, before, panel, second, y, leaf[j - low], leaf_moment[j - low])
            value = saved[q] + eliminate_unit(low, high - low, high, leaf, leaf_moment, leaf_y)
            work += (high - low) * (high - low) * (before + high - low)
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
        take_rows(source, moment, low, high, panel, second)
        value = saved[q] + eliminate_unit(low, high - low, n, panel, second, y)
        work += 2 * (high - low) * (high - low) * (n - low)
        if not value < np.inf:
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
                take_off(j, n, high - low, panel, second, y, after[j], moment_after[j])
            work += 3 * (high - low) * (n - high) * (n - high) // 2
        if work > most:
            return WORK
    return count


@kernel(error_model="numpy")
def near_count(saving, room, gap, most):
    """About how many sets of ``room`` units cost no more than a gap, by steps of the gap's 24th part."""
    steps = 24
    units = len(saving)
    raw = 1.0
    for j in range(room):
        raw *= (units - j) / (j + 1.0)
    if raw <= most:
        return raw
    number = np.zeros((room + 1, steps + 1))
    number[0, 0] = 1.0
    for p in range(units):
        x = saving[p] / gap * steps
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
