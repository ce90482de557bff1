"""All sets of inputs that fit a pattern, by Schur complements along a path; nearly dependent ones are set apart.

Arrays in, arrays out; `search.independent_sets` says what a set's computed saving proves.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

#: Results: too many sets in ``found``, and too many in ``apart``.
MANY_FOUND, MANY_APART = -1, -2


@kernel(error_model="numpy")
def independent_sets(gram, b, begin, last, fixed, threshold, margin, least, found, apart, lowest):
    """Sets whose saving may exceed a threshold, and begun sets with an input that nearly depends on the others.

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
        Below this D an input is set apart, with all sets that continue the begun one by it.
    found, apart
        Results, shape (sets, inputs), −1 after the last input.
    lowest
        Result: the smallest D of the other sets, begun ones included.

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
                    found[many_found, :q] = chosen[:q]
                    found[many_found, q] = j
                    many_found += 1
                else:
                    if many_apart == len(apart):
                        return MANY_APART, many_found, many_apart
                    apart[many_apart, :q] = chosen[:q]
                    apart[many_apart, q] = j
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
            apart[many_apart, : q + 1] = chosen[: q + 1]
            apart[many_apart, q + 1 :] = -1
            many_apart += 1
            continue
        lowest[0] = min(lowest[0], following)
        top = matrix[q, t]
        inverse = 1.0 / pivot
        f = v[t] * inverse
        value = saved[q] + v[t] * f
        if value > threshold - margin / following:
            if many_found == len(found):
                return MANY_FOUND, many_found, many_apart
            found[many_found, : q + 1] = chosen[: q + 1]
            found[many_found, q + 1 :] = -1
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
