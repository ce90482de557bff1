"""All choices of units that a pattern allows, by Schur complements along a path (docs/shared-sets.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.shared.elimination import COUNTS, PASSED, eliminate_rows, update_row

#: Results: too many sets in ``found``, and too many in ``apart``.
MANY_FOUND, MANY_APART = -1, -2


@kernel(error_model="numpy", nested=True)
def take_unit(a, m, begin, end, panel, second):
    """Copy the rows of a unit's inputs, from the diagonal on."""
    n = a.shape[1]
    for i in range(begin, end):
        row, other = panel[i - begin], second[i - begin]
        source, moment = a[i], m[i]
        for k in range(i, n):
            row[k] = source[k]
            other[k] = moment[k]


@kernel(error_model="numpy", nested=True)
def after_panel(a, m, low, high, stop, size, scaled, y, x, to_a, to_m, shift):
    """Rows ``low`` to ``high`` of A and M after the inputs of a unit, columns up to ``stop``."""
    for j in range(low, high):
        row, other, source, moment = to_a[j - shift], to_m[j - shift], a[j], m[j]
        for k in range(j, stop):
            row[k] = source[k]
            other[k] = moment[k]
        update_row(j, stop, size, scaled, y, x, row, other)


@kernel(nested=True)
def note_passed(state, begin, end, apart, many):
    """Write down each input of a unit that is passed over, with those before it that count; −1 if there is no room."""
    for i in range(begin, end):
        if state[i] != PASSED:
            continue
        if many == len(apart):
            return -1
        row = apart[many]
        for j in range(len(state)):
            row[j] = COUNTS if j < i and state[j] == COUNTS else 0
        row[i] = PASSED
        many += 1
    return many


@kernel(error_model="numpy", nested=True)
def unit_rows(widest, n):
    """Work space for the rows of a unit."""
    return np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n)), np.empty((widest, n))


@kernel(error_model="numpy", nested=True)
def pivots(a, rows, low, high, state):
    """The product of the pivots of a unit's inputs that count, relative to their diagonal entries."""
    result = 1.0
    for i in range(low, high):
        if state[i] == COUNTS:
            result *= rows[i - low, i] / a[i, i]
    return result


@kernel(error_model="numpy")
def every_set(a, m, edge, begin, last, fixed, floor, threshold, found, apart, peak, lowest):
    """Sets of units whose saving may exceed a threshold.

    Parameters
    ----------
    a, m
        A and M of the inputs, unit after unit; upper triangles.
    edge
        First input of each unit, and the number of inputs, shape (units + 1,).
    begin, last
        For the q-th unit of a set the first and the last one that it may be; units ascend.
    fixed
        The first units of the sets that are tried.
    floor
        Inputs whose pivots are not above this take their place, but count as saving nothing.
    threshold
        Sets are found where their saving exceeds it.
    found
        Result: the units of sets, shape (sets, units of a set).
    apart
        Result, shape (circuits, n): `COUNTS` for inputs that count, `PASSED` for one that was passed over after them.
    peak
        Result: the largest diagonal entries of M that were met, shape (n,).
    lowest
        Result: the smallest product of the pivots of inputs that count, each relative to its diagonal entry.

    Returns
    -------
    visited, found, apart : int
        Numbers of sets; ``visited`` is `MANY_FOUND` or `MANY_APART` where there is no room for them.
    """
    n, units, size = a.shape[1], len(edge) - 1, len(begin)
    widest = 0
    for g in range(units):
        widest = max(widest, edge[g + 1] - edge[g])
    matrices, moments = np.empty((max(size - 1, 1), n, n)), np.empty((max(size - 1, 1), n, n))
    panel, x, scaled, y = unit_rows(widest, n)
    leaf, leaf_moment, own, own_y = unit_rows(widest, n)
    state = np.zeros(n, np.int8)
    saved, product = np.zeros(size + 1), np.ones(size + 1)
    position, chosen = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for i in range(n):
        for k in range(i, n):
            matrices[0, i, k] = a[i, k]
            moments[0, i, k] = m[i, k]
    many_found, many_apart, visited = 0, 0, 0
    q = 0
    position[0] = fixed[0] if len(fixed) else begin[0]
    while q >= 0:
        final = fixed[q] if q < len(fixed) else last[q]
        t = position[q]
        if t > final:
            q -= 1
            if q >= 0:
                for i in range(edge[chosen[q]], edge[chosen[q] + 1]):
                    state[i] = 0
            continue
        position[q] = t + 1
        low, high = edge[t], edge[t + 1]
        level = min(q, max(size - 2, 0))
        source, moment = matrices[level], moments[level]
        if q == size - 1:
            # What is left of the last unit alone, after the unit before it.
            before = edge[chosen[q - 1] + 1] - edge[chosen[q - 1]] if q else 0
            after_panel(source, moment, low, high, high, before, scaled, y, x, leaf, leaf_moment, low)
            value = saved[q] + eliminate_rows(low, high - low, high, floor, leaf, leaf_moment, own, own_y, state, peak)
            share = product[q] * pivots(a, own, low, high, state)
            visited += 1
        else:
            take_unit(source, moment, low, high, panel, x)
            value = saved[q] + eliminate_rows(low, high - low, n, floor, panel, x, scaled, y, state, peak)
            share = product[q] * pivots(a, scaled, low, high, state)
        lowest[0] = min(lowest[0], share)
        many = note_passed(state, low, high, apart, many_apart)
        if many < 0:
            return MANY_APART, many_found, many_apart
        many_apart = many
        chosen[q] = t
        if q == size - 1:
            for i in range(low, high):
                state[i] = 0
            if not value <= threshold:
                if many_found == len(found):
                    return MANY_FOUND, many_found, many_apart
                for p in range(size):
                    found[many_found, p] = chosen[p]
                many_found += 1
            continue
        q += 1
        saved[q], product[q] = value, share
        position[q] = fixed[q] if q < len(fixed) else max(t + 1, begin[q])
        if q < size - 1:
            # What is left for the last unit is made unit by unit.
            after, moment_after = matrices[q], moments[q]
            after_panel(source, moment, edge[position[q]], n, n, high - low, scaled, y, x, after, moment_after, 0)
            for j in range(edge[position[q]], n):
                peak[j] = max(peak[j], moment_after[j, j])
    return visited, many_found, many_apart
