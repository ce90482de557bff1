"""Coordinate descent for the tangent relaxation: minimise f(z) + Σ d_i (z_i − l)(u − z_i) over the hull of the grid.

[l, u] is the cell of neighbouring levels that holds z_i; the sum is the piecewise-linear convexification of the grid
(docs/bounds.md).
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel


@kernel(fastmath=REORDER)
def _shift(n, amount, column, gradient):
    for i in range(n):
        gradient[i] += amount * column[i]


@kernel()
def _minimiser(beta, curvature, d, levels, i, count):
    """Minimiser over one coordinate: where (H_ii − d) x + d·(middle of the cell of x) crosses beta."""
    slope = curvature - d
    for j in range(count):
        v = levels[j, i]
        left = 0.5 * (levels[j - 1, i] + v) if j > 0 else -np.inf
        right = 0.5 * (v + levels[j + 1, i]) if j + 1 < count else np.inf
        if beta < slope * v + d * left:
            # Inside the cell below this level.
            return (beta - d * left) / slope
        if beta <= slope * v + d * right:
            return v
    return levels[count - 1, i]


@kernel()
def descend(gram, levels, count, d, z, gradient, sweeps):
    """Sweeps of exact coordinate descent; ``gradient`` is h = H(z − w), kept up to date. Returns the largest move."""
    n = z.shape[0]
    largest = 0.0
    for _ in range(sweeps):
        largest = 0.0
        for i in range(n):
            g = gram[i, i]
            x = _minimiser(g * z[i] - gradient[i], g, d[i], levels, i, count[i])
            t = x - z[i]
            if t != 0.0:
                z[i] = x
                _shift(n, t, gram[i], gradient)
                largest = max(largest, abs(t))
        if largest == 0.0:
            break
    return largest


@kernel()
def cells(levels, count, z, low, high):
    """The cell [low, high] of neighbouring levels that holds each z_i; both equal z_i where that is a level."""
    for i in range(z.shape[0]):
        j = 0
        while j + 1 < count[i] and levels[j + 1, i] <= z[i]:
            j += 1
        low[i] = levels[j, i]
        high[i] = levels[j, i] if z[i] <= levels[j, i] else levels[min(j + 1, count[i] - 1), i]
