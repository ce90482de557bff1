"""Weighted one-dimensional k-means by dynamic programming: the least cost of dividing sorted points into segments.

Some best clustering of points on a line consists of segments, and the cost of a segment that grows by one point changes
by a nonnegative number: no differences of sums of squares are formed (docs/free-codebooks.md).
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel


@kernel(error_model="numpy")
def least_segments(points, weights, most, means):
    """The least Σ weights·(points − mean of the segment)² over at most ``most`` segments; the means go to ``means``.

    Points are sorted, weights are not negative. Returns the cost and the number of segments.
    """
    n = points.shape[0]
    # best[j, k]: the first j points in at most k + 1 segments.
    best = np.full((n + 1, most), np.inf)
    best[0, :] = 0.0
    total, mean, cost = 0.0, 0.0, 0.0
    for j in range(n):
        total, mean, cost = _grow(points[j], weights[j], total, mean, cost)
        best[j + 1, :] = cost
        _last_segment(points, weights, j, best)
    ends = np.empty(most, np.int64)
    count, j, k = 0, n, most - 1
    while j > 0:
        while k > 0 and best[j, k - 1] == best[j, k]:
            k -= 1
        ends[count] = j
        j = _first_point(points, weights, j, k, best)
        count += 1
        k -= 1
    for s in range(count):
        first = ends[s + 1] if s + 1 < count else 0
        total, mean = 0.0, 0.0
        for i in range(first, ends[s]):
            total += weights[i]
            mean += (points[i] - mean) * (weights[i] / total if total > 0.0 else 1.0 / (i - first + 1))
        means[count - 1 - s] = mean
    return best[n, most - 1], count


@kernel(error_model="numpy", inline=True)
def _grow(point, weight, total, mean, cost):
    """Weight, mean and cost of a segment with one more point."""
    after = total + weight
    if after > 0.0:
        step = point - mean
        cost += total * (weight / after) * step * step
        mean += step * (weight / after)
    return after, mean, cost


@kernel(error_model="numpy", inline=True)
def _last_segment(points, weights, j, best):
    """Lower ``best[j + 1]`` by last segments that begin after the first point."""
    most = best.shape[1]
    total, mean, cost = 0.0, 0.0, 0.0
    for i in range(j, 0, -1):
        total, mean, cost = _grow(points[i], weights[i], total, mean, cost)
        # Costs grow with the segment, and more segments never cost more.
        if most == 1 or cost > best[j + 1, 1]:
            break
        for k in range(1, most):
            best[j + 1, k] = min(best[j + 1, k], best[i, k - 1] + cost)


@kernel(error_model="numpy", inline=True)
def _first_point(points, weights, j, k, best):
    """Where the last of k + 1 segments of the first j points begins."""
    if k == 0:
        return 0
    total, mean, cost = 0.0, 0.0, 0.0
    least, first = np.inf, 0
    for i in range(j - 1, 0, -1):
        total, mean, cost = _grow(points[i], weights[i], total, mean, cost)
        if best[i, k - 1] + cost < least:
            least, first = best[i, k - 1] + cost, i
    return first
