"""Least costs of single weights, for many rows."""

from __future__ import annotations

from layerbounds.kernels.compilation import kernel


@kernel()
def separable_minima(levels, z, h, d, error, shift, total, magnitude, charge):
    """Per row Σ_i min over levels v of 2h_i(v − z_i) + d_i(v − z_i)², the terms' size, and by how much they may be off.

    Parameters
    ----------
    levels : ndarray of shape (rows, n, levels)
    z, h : ndarray of shape (rows, n)
    d : ndarray of shape (n,)
    error : ndarray of shape (rows, n)
        By how much h_i may be off.
    shift : ndarray of shape (n,)
        Costs shift_i·max (v − z_i)².
    total, magnitude, charge : ndarray of shape (rows,)
        Return values.
    """
    rows, n, count = levels.shape
    for r in range(rows):
        value = 0.0
        size = 0.0
        off = 0.0
        for i in range(n):
            slope = 2.0 * h[r, i]
            curvature = d[i]
            point = z[r, i]
            least = 1e308
            farthest = 0.0
            for k in range(count):
                step = levels[r, i, k] - point
                least = min(least, (slope + curvature * step) * step)
                farthest = max(farthest, abs(step))
            value += least
            size += (abs(slope) + abs(curvature) * farthest) * farthest
            off += 2.0 * error[r, i] * farthest + shift[i] * farthest * farthest
        total[r] = value
        magnitude[r] = size
        charge[r] = off
