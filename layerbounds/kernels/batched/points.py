"""The steps of alternating directions that are no matrix products, for many rows (docs/batched.md).

Row r's weight i has the levels ``scale·(codes − zero point)``; ``origin`` is its target in units of the codes,
w/scale + zero point. ``scale`` has one column where a row has one scale. Row ``which[·, i]`` of ``codes`` is input i's.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel


@kernel(nested=True)
def _place(position, last):
    """An index from 0 to ``last``, whatever number the position is."""
    if not position > 0:
        return 0
    return int(position) if position < last else last


@kernel(nested=True)
def _cell(codes, uniform, x, v, kappa):
    """Index of the level below the cell in which the minimiser of env(y) + κ(y − v)² lies, y and v less the origin x.

    env is the interpolation of the squares at the levels, whose slope in the cell from a to b is a + b.
    """
    last = len(codes) - 2
    if uniform:
        half = np.float32(0.5)
        one = np.float32(1.0)
        return _place(np.ceil(x + (v - one - half / kappa) / (one + one / kappa) - codes[0]), last)
    k = 0
    while k < last:
        b = codes[k + 1] - x
        if v <= b + (codes[k] - x + b) / (np.float32(2.0) * kappa):
            break
        k += 1
    return k


@kernel()
def advance(point, y, u, origin, scale, codes, which, uniform, kappa, weight, over, right):
    """One step: y ← argmin env(y) + κ(y − v)², v = over·point + (1 − over)·y + u, u ← v − y, right ← weight·(y − u).

    Parameters
    ----------
    point, y, u, origin, right : ndarray of float32, shape (rows, n)
        Deviations from the target.
    scale : ndarray of float32, shape (rows, 1) or (rows, n)
    codes : ndarray of float32, shape (lists, levels)
    which : ndarray of int8, shape (1, n) or (rows, n)
    uniform : bool
    kappa, weight : ndarray of float32, shape (n,)
    over : float32
    """
    rows, n = point.shape
    several = scale.shape[1] > 1
    own = which.shape[0] > 1
    rest = np.float32(1.0) - over
    for r in range(rows):
        for i in range(n):
            s = scale[r, i if several else 0]
            v = (over * point[r, i] + rest * y[r, i] + u[r, i]) / s
            x = origin[r, i]
            levels = codes[which[r if own else 0, i]]
            if len(levels) == 1:
                new = levels[0] - x
            else:
                k = _cell(levels, uniform, x, v, kappa[i])
                a = levels[k] - x
                b = levels[k + 1] - x
                new = min(max(v - (a + b) / (np.float32(2.0) * kappa[i]), a), b)
            y[r, i] = s * new
            u[r, i] = s * (v - new)
            right[r, i] = weight[i] * s * (new - (v - new))


@kernel()
def values(point, right, origin, scale, codes, which, uniform, d, weight, value):
    """The bound of each row at its point: −eᵀπ + Σ min over levels of 2π_i t + d_i t², π = right − weight·e.

    ``right`` is that from which the point was computed. Returned in ``value``, float64, shape (rows,).
    """
    rows, n = point.shape
    several = scale.shape[1] > 1
    own = which.shape[0] > 1
    for r in range(rows):
        total = 0.0
        for i in range(n):
            s = scale[r, i if several else 0]
            slope = right[r, i] - weight[i] * point[r, i]
            levels = codes[which[r if own else 0, i]]
            x = origin[r, i]
            # The level that is nearest to the vertex.
            vertex = x - slope / (d[i] * s)
            if uniform:
                t = s * (levels[_place(np.rint(vertex - levels[0]), len(levels) - 1)] - x)
            else:
                best = levels[0]
                for k in range(1, len(levels)):
                    if abs(levels[k] - vertex) < abs(best - vertex):
                        best = levels[k]
                t = s * (best - x)
            total += (2.0 * slope + d[i] * t) * t - point[r, i] * slope
        value[r] = total


@kernel()
def spreads(y, origin, scale, codes, which, uniform, share, total):
    """Σ over the rows of share·(y − a)(b − y), a and b the levels around y: what the bound gains from a unit of d_i.

    ``share`` is float64 of shape (rows,). Added to ``total``, float64, shape (n,).
    """
    rows, n = y.shape
    several = scale.shape[1] > 1
    own = which.shape[0] > 1
    for r in range(rows):
        for i in range(n):
            levels = codes[which[r if own else 0, i]]
            if len(levels) == 1:
                continue
            s = scale[r, i if several else 0]
            x = y[r, i] / s + origin[r, i]
            k = 0
            if uniform:
                k = _place(np.floor(x - levels[0]), len(levels) - 2)
            else:
                while k < len(levels) - 2 and x > levels[k + 1]:
                    k += 1
            total[i] += max((x - levels[k]) * (levels[k + 1] - x), np.float32(0.0)) * s * s * share[r]
