"""Blocks of levels for many rows: what one iteration of alternating directions does beside its matrix product.

All numbers are deviations from the rows' targets; see `layerbounds.kernels.quantization.block_relaxation` for a row.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.quantization.block_relaxation import MOST_STEPS, least_costs, proximal_sweep


@kernel(nested=True)
def _deviations(origin, scale, codes, which, levels):
    """Levels of a row less its target."""
    for i in range(len(origin)):
        s = scale[i if len(scale) > 1 else 0]
        for k in range(codes.shape[1]):
            levels[i, k] = s * (codes[which[i], k] - origin[i])


@kernel()
def sweep_rows(
    first, member, block, factor, kappa, over, most, origin, scale, codes, which, point, y, u, corral, alpha, size, pull
):
    """`proximal_sweep` of every row.

    Parameters
    ----------
    first, member, block, factor, kappa, over, most
        See there; shared by all rows.
    origin, scale, codes, which
        See `layerbounds.kernels.batched.points`.
    point : ndarray of float32, shape (rows, n)
    y, u : ndarray of shape (rows, n)
    corral : ndarray of int64, shape (rows, groups, m + 2, m); alpha : (rows, groups, m + 2); size : (rows, groups)
    pull : ndarray of float32, shape (rows, n)
        Returns κB(y − u).

    Returns
    -------
    nodes : int
    """
    rows, n = point.shape
    levels = np.empty((n, codes.shape[1]))
    count = np.full(n, codes.shape[1], dtype=np.int64)
    zero = np.zeros(n)
    z = np.empty(n)
    right = np.empty(n)
    total = 0
    for r in range(rows):
        _deviations(origin[r], scale[r], codes, which[r if len(which) > 1 else 0], levels)
        for i in range(n):
            z[i] = point[r, i]
        _, nodes = proximal_sweep(
            first, member, block, factor, levels, count, zero, kappa, over, z, y[r], u[r], corral[r], alpha[r], size[r],
            right, most, MOST_STEPS,
        )  # fmt: skip
        total += nodes
        for i in range(n):
            pull[r, i] = right[i]
    return total


@kernel()
def block_values(first, member, block, factor, kappa, origin, scale, codes, which, point, right, most, value):
    """The bound of each row at its point: −eᵀπ + Σ min of 2πᵀt + tᵀBt over the level points, π = right − κBe.

    −inf where a block's points are too many to search. Returned in ``value``, float64, shape (rows,).
    """
    rows, n = point.shape
    levels = np.empty((n, codes.shape[1]))
    count = np.full(n, codes.shape[1], dtype=np.int64)
    zero = np.zeros(n)
    slope = np.empty(n)
    centre = np.empty(n)
    tilt = np.empty(n)
    least = np.empty(len(first) - 1)
    for r in range(rows):
        _deviations(origin[r], scale[r], codes, which[r if len(which) > 1 else 0], levels)
        total = 0.0
        for g in range(len(first) - 1):
            f0 = first[g]
            m = first[g + 1] - f0
            for p in range(m):
                i = member[f0 + p]
                s = 0.0
                for q in range(m):
                    s += block[g, p, q] * point[r, member[f0 + q]]
                slope[i] = right[r, i] - kappa[g] * s
                total -= point[r, i] * slope[i]
        least_costs(
            first, member, block, factor, levels, count, zero, slope, most, most * len(first), centre, tilt, least
        )
        for g in range(len(first) - 1):
            total += least[g] if least[g] == least[g] else -np.inf
        for i in range(n):
            ends = min(tilt[i] * (levels[i, 0] - centre[i]), tilt[i] * (levels[i, -1] - centre[i]))
            total += centre[i] * (tilt[i] + slope[i]) + 2.0 * ends
        value[r] = total


@kernel()
def block_spreads(first, member, origin, scale, codes, which, point, corral, alpha, size, share, total):
    """Σ over the rows of share·Σ α (p − e)(p − e)ᵀ over each block's corral: what the bound gains from a unit of B.

    Added to ``total``, float64, shape (groups, m, m).
    """
    rows, n = point.shape
    levels = np.empty((n, codes.shape[1]))
    step = np.empty(corral.shape[3])
    for r in range(rows):
        _deviations(origin[r], scale[r], codes, which[r if len(which) > 1 else 0], levels)
        for g in range(len(first) - 1):
            f0 = first[g]
            m = first[g + 1] - f0
            for c in range(size[r, g]):
                for p in range(m):
                    i = member[f0 + p]
                    step[p] = levels[i, corral[r, g, c, p]] - point[r, i]
                for p in range(m):
                    for q in range(m):
                        total[g, p, q] += share[r] * alpha[r, g, c] * step[p] * step[q]
