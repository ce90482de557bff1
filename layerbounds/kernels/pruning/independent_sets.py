"""All sets of inputs that fit a pattern, by Schur complements along a path; nearly dependent inputs are passed over.

Arrays in, arrays out; `search.independent_sets` says what a set's computed saving proves.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

#: Results: too many sets in ``found``, and too many in ``apart``.
MANY_FOUND, MANY_APART = -1, -2


@kernel(nested=True)
def note(chosen, counts, many, other, row):
    """Write down the first inputs of a set that count, and one that does not."""
    at = 0
    for q in range(many):
        if counts[q]:
            row[at] = chosen[q]
            at += 1
    row[at] = other
    for q in range(at + 1, len(row)):
        row[q] = -1


@kernel(nested=True)
def keep(chosen, many, row):
    """Write down the first inputs of a set."""
    for q in range(len(row)):
        row[q] = chosen[q] if q < many else -1


@kernel(error_model="numpy")
def independent_sets(gram, b, begin, last, fixed, threshold, margin, least, found, apart, lowest):
    """Sets whose saving may exceed a threshold, and begun sets with an input that nearly depends on them.

    Parameters
    ----------
    gram, b
        Gram matrix and right-hand side, groups one after the other.
    begin, last
        For the q-th input of a set, the first and the last position that it may have; positions ascend.
    fixed
        Positions of the first inputs.
    threshold, margin
        A set whose pivots, relative to the diagonal, have the product D is found where its saving exceeds
        threshold − margin/D.
    least
        Where an input would make D smaller than this it takes its place in the set, but counts as saving nothing.
    found, apart
        Results, shape (sets, inputs), −1 after the last input. ``apart`` has the inputs that count, then the one that
        does not.
    lowest
        Result: the smallest D, of begun sets, too.

    Returns
    -------
    visited, found, apart : int
        Numbers of sets; ``visited`` is `MANY_FOUND` or `MANY_APART` where there is no room for them.
    """
    m, size = len(b), len(begin)
    matrix = np.empty((max(size - 1, 1), m, m))
    vector, diagonal = np.empty((size, m)), np.empty((size, m))
    saved, product = np.zeros(size), np.ones(size)
    position, chosen = np.zeros(size, np.int64), np.zeros(size, np.int64)
    counts = np.zeros(size, np.bool_)
    weight = np.empty(m)
    for i in range(m):
        vector[0, i], diagonal[0, i] = b[i], gram[i, i]
        weight[i] = 1.0 / gram[i, i]
        for j in range(i, m):
            matrix[0, i, j] = gram[i, j]
    many_found, many_apart, visited = 0, 0, 0
    q = 0
    position[0] = fixed[0] if len(fixed) else begin[0]
    while q >= 0:
        t = position[q]
        final = fixed[q] if q < len(fixed) else last[q]
        if t > final:
            q -= 1
            continue
        v, d = vector[q], diagonal[q]
        if q == size - 1:
            need, allowed = threshold - saved[q], margin / product[q]
            small = least / product[q]
            visited += final - t + 1
            for j in range(t, final + 1):
                if d[j] * weight[j] > small:
                    lowest[0] = min(lowest[0], product[q] * d[j] * weight[j])
                    if v[j] * v[j] <= need * d[j] - allowed * gram[j, j]:
                        continue
                    if many_found == len(found):
                        return MANY_FOUND, many_found, many_apart
                    chosen[q] = j
                    keep(chosen, size, found[many_found])
                    many_found += 1
                else:
                    if many_apart == len(apart):
                        return MANY_APART, many_found, many_apart
                    note(chosen, counts, q, j, apart[many_apart])
                    many_apart += 1
            q -= 1
            continue
        position[q] = t + 1
        pivot = d[t]
        following = product[q] * pivot * weight[t]
        chosen[q] = t
        if not following > least:
            if many_apart == len(apart):
                return MANY_APART, many_found, many_apart
            note(chosen, counts, q, t, apart[many_apart])
            many_apart += 1
            counts[q] = False
            q += 1
            saved[q], product[q] = saved[q - 1], product[q - 1]
            start = max(t + 1, begin[q])
            position[q] = fixed[q] if q < len(fixed) else start
            above, below = vector[q], diagonal[q]
            for j in range(start, m):
                above[j], below[j] = v[j], d[j]
            if q < size - 1:
                for i in range(start, m):
                    old, row = matrix[q - 1, i], matrix[q, i]
                    for j in range(i, m):
                        row[j] = old[j]
            continue
        counts[q] = True
        lowest[0] = min(lowest[0], following)
        top = matrix[q, t]
        inverse = 1.0 / pivot
        f = v[t] * inverse
        value = saved[q] + v[t] * f
        if value > threshold - margin / following:
            if many_found == len(found):
                return MANY_FOUND, many_found, many_apart
            keep(chosen, q + 1, found[many_found])
            many_found += 1
        q += 1
        saved[q], product[q] = value, following
        start = max(t + 1, begin[q])
        position[q] = fixed[q] if q < len(fixed) else start
        above, below = vector[q], diagonal[q]
        for j in range(start, m):
            above[j] = v[j] - top[j] * f
            below[j] = d[j] - top[j] * top[j] * inverse
        if q < size - 1:
            for i in range(start, m):
                ratio = top[i] * inverse
                old, row = matrix[q - 1, i], matrix[q, i]
                for j in range(i, m):
                    row[j] = old[j] - ratio * top[j]
    return visited, many_found, many_apart
