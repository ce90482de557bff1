"""Lower bounds of free codebooks, derived from a point and a diagonal (docs/free-codebooks.md).

For any z and any diagonal 0 ⪯ D ⪯ H, with h = H(z − w) and x_i = z_i − h_i/d_i,

    f(v) ≥ f(z) − Σ h_i²/d_i + Σ d_i (v_i − x_i)²,

and the least last sum over all v of at most K values is one-dimensional k-means. Extended precision; every rounding
error is charged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant
from layerbounds.kernels.free_codebook.segments import least_segments

#: Extended precision, which type checkers have no name for.
Wide = npt.NDArray[Any]

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def codebook_bound(gram: Float, target: Float, count: int, z: Float, d: Float) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over the v of at most ``count`` different values.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    count : int
    z, d : ndarray of shape (n,)
        Negative entries of d count as zero.

    Returns
    -------
    float
        0 where nothing can be proven.
    """
    d = certified_minorant(gram, np.maximum(d, 0.0))
    with np.errstate(over="ignore", invalid="ignore"):
        # What overflows is not finite, and proves nothing.
        bound = _bound(gram, target, count, z, d)
    return float(np.nextafter(float(bound), -np.inf)) if np.isfinite(bound) else 0.0


def _bound(gram: Float, target: Float, count: int, z: Float, d: Float) -> Any:
    """The same for a diagonal that is proven, before it is rounded to float64."""
    n = len(target)
    wide = gram.astype(_LONG)
    deviation = z.astype(_LONG) - target.astype(_LONG)
    h_all = wide @ deviation
    # Rounded up: in float64 this is many times faster.
    spread = 1.01 * (np.abs(gram) @ np.abs(deviation).astype(np.float64))
    spread += np.finfo(np.float64).tiny * np.any(deviation)
    spread = spread.astype(_LONG)
    h_error = 2 * (n + 4) * _UNIT_LONG * spread
    curved = d > 0
    if not curved.any() or np.any(spread[~curved] > 0):
        # Over the reals nothing bounds a slope without curvature.
        return _LONG(0)
    d, h, h_error, z = d[curved].astype(_LONG), h_all[curved], h_error[curved], z[curved].astype(_LONG)
    size = np.abs(h) + h_error
    points = z - h / d
    # How far the points lie from the exact ones, in the norm of D.
    off = h_error / d + 4 * _UNIT_LONG * (np.abs(z) + size / d)
    moved = np.sqrt(np.sum(d * off**2))
    distance = least_distance(points, d, count) - moved * (1 + 2 * n * _UNIT_LONG)
    squared = np.maximum(distance, 0) ** 2
    value = deviation @ h_all
    steep = np.sum(size**2 / d)
    magnitude = np.abs(deviation) @ spread + steep + squared
    return value - steep + squared - 4 * (n + 8) * _UNIT_LONG * magnitude


def least_distance(points: Wide, weights: Wide, count: int) -> Any:
    """Lower bound on √(Σ weights·(v − points)²) over the v of at most ``count`` different values.

    Parameters
    ----------
    points, weights : ndarray of shape (n,)
        In extended precision; weights are positive.
    count : int

    Returns
    -------
    numpy.longdouble
        At least 0; the rounding of the dynamic program is charged.
    """
    n = len(points)
    if count >= n:
        return _LONG(0)
    order = np.argsort(points, kind="stable")
    middle = points[order[n // 2]]
    # Centring moves each point by a rounding of at most the farthest.
    x, d = points[order] - middle, weights[order]
    reach = np.max(np.abs(x)) * (1 + 2 * _UNIT_LONG)
    least = _least_cost(x, d, count)
    root = np.sqrt(least) * (1 - (3 * n + count + 16) * _UNIT_LONG)
    charge = 4 * (n + 12) * _UNIT_LONG * reach * np.sqrt(np.sum(d)) * (1 + 2 * n * _UNIT_LONG)
    return np.maximum(root - charge, 0)


def _least_cost(x: Wide, d: Wide, count: int) -> Any:
    """Weighted k-means of sorted points by dynamic programming, as computed.

    Segments grow by one point at a time, from all first points at once. Those that cost more than a whole clustering
    found in float64 are dropped: where the result needs them it is larger than that clustering's, which is returned.
    """
    n = len(x)
    enough = _LONG(least_segments(x.astype(np.float64), d.astype(np.float64), count, np.empty(count))[0]) * (1 + 1e-6)
    total, mean, cost = np.zeros(n, dtype=_LONG), np.zeros(n, dtype=_LONG), np.zeros(n, dtype=_LONG)
    # best[k, j]: the first j points in at most k + 1 segments; infinite where those were dropped.
    best = np.full((count, n + 1), np.inf, dtype=_LONG)
    best[:, 0] = 0
    first = 0
    for j in range(n):
        grown = slice(first, j + 1)
        after = total[grown] + d[j]
        step, share = x[j] - mean[grown], d[j] / after
        cost[grown] += total[grown] * share * step * step
        mean[grown] += step * share
        total[grown] = after
        while cost[first] > enough:
            first += 1
        grown = slice(first, j + 1)
        if first == 0:
            best[0, j + 1] = cost[0]
        best[1:, j + 1] = np.min(best[:-1, grown] + cost[grown], axis=1)
    return np.minimum(best[-1, n], enough)
