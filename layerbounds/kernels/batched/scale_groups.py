"""Steps of the pairwise Frank–Wolfe method for one group of scales in many rows (docs/batched-scales.md).

A row's point in the group is a combination Σ λ_k v_k of vertices v = s·c, of which it keeps a few. With b = Hw − Mz the
cost of a vertex is v'Dv − 2b'v; Σ λ_k v_k'Dv_k is kept beside the vertices, so that two of them can become one.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel


@kernel(nested=True, error_model="numpy", fastmath=REORDER)
def _sums(d, b, codes, uniform, s):
    """Σ d c² and Σ b c at the codes nearest to b/(ds)."""
    last = len(codes) - 1
    square = 0.0
    along = 0.0
    for i in range(len(d)):
        vertex = b[i] / (d[i] * s)
        if uniform:
            c = codes[0] + min(max(np.rint(vertex - codes[0]), 0.0), float(last))
        else:
            c = codes[0]
            for k in range(1, last + 1):
                if abs(codes[k] - vertex) < abs(c - vertex):
                    c = codes[k]
        square += d[i] * c * c
        along += b[i] * c
    return square, along


@kernel(nested=True, error_model="numpy")
def _lowest(d, b, codes, uniform, base, factors, turns):
    """The least term over some scales, improved in turn with the codes: value, list of codes and scale."""
    best = 0.0
    which = 0
    scale = 0.0
    for k in range(len(codes)):
        for f in factors:
            s = base * f
            square, along = _sums(d, b, codes[k], uniform, s)
            value = s * (s * square - 2.0 * along)
            if value < best:
                best = value
                which = k
                scale = s
    if scale > 0.0:
        for _ in range(turns):
            square, along = _sums(d, b, codes[which], uniform, scale)
            if not (along > 0.0 and square > 0.0):
                break
            scale = along / square
            best = min(best, -along * scale)
    return best, which, scale


@kernel(error_model="numpy")
def lowest_terms(d, b, codes, uniform, base, factors, turns, value):
    """The least terms of rows, in ``value``.

    Parameters
    ----------
    d : ndarray of shape (n,)
    b : ndarray of shape (rows, n)
    codes : ndarray of shape (lists, levels)
    uniform : bool
    base : ndarray of shape (rows,)
        Scales around which others are tried.
    factors : ndarray of shape (scales,)
    turns : int
    value : ndarray of shape (rows,)
    """
    for r in range(len(b)):
        value[r] = _lowest(d, b[r], codes, uniform, base[r], factors, turns)[0]


@kernel(error_model="numpy")
def directions(d, b, codes, uniform, base, factors, turns, vertex, square, share, worst, change, rate, gap):
    """From the costliest vertex of each row towards the cheapest allowed point.

    Parameters
    ----------
    d, b, codes, uniform, base, factors, turns
        As above.
    vertex : ndarray of float32, shape (rows, kept, n)
    square, share : ndarray of shape (rows, kept)
        v'Dv and λ; a vertex without a share is none.
    worst : ndarray of int64, shape (rows,)
    change : ndarray of float32, shape (rows, n)
    rate, gap : ndarray of shape (rows,)
        Return values: how fast the objective changes, and what is left to gain.
    """
    rows, kept, n = vertex.shape
    for r in range(rows):
        value, which, scale = _lowest(d, b[r], codes, uniform, base[r], factors, turns)
        costliest = -np.inf
        mean = 0.0
        for k in range(kept):
            if share[r, k] > 0.0:
                cost = square[r, k]
                for i in range(n):
                    cost -= 2.0 * b[r, i] * vertex[r, k, i]
                mean += share[r, k] * cost
                if cost > costliest:
                    costliest = cost
                    worst[r] = k
        gap[r] = mean - value
        total = 0.0
        own = codes[which]
        for i in range(n):
            new = np.float32(0.0)
            if scale > 0.0:
                x = b[r, i] / (d[i] * scale)
                c = own[0]
                for k in range(1, len(own)):
                    if abs(own[k] - x) < abs(c - x):
                        c = own[k]
                new = np.float32(scale * c)
            change[r, i] = new - vertex[r, worst[r], i]
            total += (d[i] * new - 2.0 * b[r, i]) * new
        rate[r] = total - costliest


@kernel(error_model="numpy")
def transfer(d, step, worst, change, vertex, square, share):
    """Move a share of each row from its costliest vertex to the new one.

    Where all places are taken the two vertices with the smallest shares become one.
    """
    rows, kept, n = vertex.shape
    for r in range(rows):
        if not step[r] > 0.0:
            continue
        old = worst[r]
        free = -1
        for k in range(kept):
            if share[r, k] <= 0.0:
                free = k
                break
        first = -1
        if free < 0 and step[r] < share[r, old]:
            second = -1
            for k in range(kept):
                if k != old and (first < 0 or share[r, k] < share[r, first]):
                    second = first
                    first = k
                elif k != old and (second < 0 or share[r, k] < share[r, second]):
                    second = k
            whole = share[r, first] + share[r, second]
            weight = share[r, first] / whole
            for i in range(n):
                vertex[r, second, i] = weight * vertex[r, first, i] + (1.0 - weight) * vertex[r, second, i]
            square[r, second] = weight * square[r, first] + (1.0 - weight) * square[r, second]
            share[r, second] = whole
            share[r, first] = 0.0
            free = first
        if step[r] >= share[r, old]:
            share[r, old] = 0.0
            free = old if free < 0 else free
        else:
            share[r, old] -= step[r]
        total = 0.0
        for i in range(n):
            new = vertex[r, old, i] + change[r, i]
            vertex[r, free, i] = new
            total += d[i] * new * new
        square[r, free] = total
        share[r, free] = step[r]
