"""A node of the best-first tree: alternating directions on a smaller box, and the tangent bound with split cuts there.

The method of layerbounds.bounds.minorants.alternating on integer levels: only the box differs between nodes, so that
they share one inverse.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel


@kernel(fastmath=REORDER)
def dot(row, vector):
    """The inner product, summed in any order."""
    total = 0.0
    for i in range(vector.shape[0]):
        total += row[i] * vector[i]
    return total


@kernel(fastmath=REORDER)
def absolute_dot(row, vector):
    """The same of absolute values."""
    total = 0.0
    for i in range(vector.shape[0]):
        total += abs(row[i]) * abs(vector[i])
    return total


@kernel()
def kink(v, penalty):
    """The proximal point of the interpolation of t² at the integers."""
    below = np.floor((v + 0.5 / penalty) / (1.0 + 1.0 / penalty))
    return min(max(v - (below + 0.5) / penalty, below), below + 1.0)


@kernel()
def iterate(inverse, pull, units, weights, start, index, entry, low, high, penalty, relaxation, state, z, count):
    """So many iterations; ``state`` holds y and u of the units, then of the forms, and z the last smooth step."""
    n, m = units.shape[0], weights.shape[0]
    y, u = state[:n], state[n : 2 * n]
    y_forms, u_forms = state[2 * n : 2 * n + m], state[2 * n + m :]
    right = np.empty(n)
    for _ in range(count):
        for i in range(n):
            right[i] = units[i] * (y[i] - u[i])
        for j in range(m):
            t = weights[j] * (y_forms[j] - u_forms[j])
            for p in range(start[j], start[j + 1]):
                right[index[p]] += t * entry[p]
        for i in range(n):
            right[i] = pull[i] + penalty * right[i]
        for i in range(n):
            z[i] = dot(inverse[i], right)
            v = relaxation * z[i] + (1.0 - relaxation) * y[i] + u[i]
            y[i] = min(max(kink(v, penalty), low[i]), high[i])
            u[i] = v - y[i]
        for j in range(m):
            t = 0.0
            for p in range(start[j], start[j + 1]):
                t += entry[p] * z[index[p]]
            v = relaxation * t + (1.0 - relaxation) * y_forms[j] + u_forms[j]
            y_forms[j] = kink(v, penalty)
            u_forms[j] = v - y_forms[j]


@kernel()
def term(slope, weight, at, low, high):
    """Minimum of 2·slope·(t − at) + weight·(t − at)² over the integers from low to high."""
    vertex = at - slope / weight if weight > 0.0 else at
    best = np.inf
    for t in (low, high, np.floor(vertex), np.ceil(vertex)):
        step = min(max(t, low), high) - at
        best = min(best, 2.0 * slope * step + weight * step * step)
    return best


@kernel()
def bound(gram, origin, units, weights, start, index, entry, low, high, penalty, unit_roundoff, state, z, cut):
    """The tangent bound at the state, its own rounding deducted; end levels at which it reaches the cut are dropped."""
    n, m = units.shape[0], weights.shape[0]
    u_forms = state[2 * n + m :]
    deviation = z - origin
    slope, size = np.empty(n), np.empty(n)
    total, magnitude = 0.0, 0.0
    for i in range(n):
        slope[i] = dot(gram[i], deviation)
        size[i] = absolute_dot(gram[i], deviation)
        total += deviation[i] * slope[i]
        magnitude += abs(deviation[i]) * size[i]
    for j in range(m):
        at, least, most, spread = 0.0, 0.0, 0.0, 0.0
        for p in range(start[j], start[j + 1]):
            i, c = index[p], entry[p]
            at += c * z[i]
            spread += abs(c) * (abs(z[i]) + max(abs(low[i]), abs(high[i])))
            least += c * (low[i] if c > 0.0 else high[i])
            most += c * (high[i] if c > 0.0 else low[i])
        multiplier = weights[j] * (at - penalty * u_forms[j])
        for p in range(start[j], start[j + 1]):
            slope[index[p]] -= entry[p] * multiplier
            size[index[p]] += abs(entry[p] * multiplier)
        total += term(multiplier, weights[j], at, least, most)
        farthest = max(abs(least - at), abs(most - at))
        magnitude += 2.0 * (abs(multiplier) + weights[j] * farthest) * (farthest + spread)
    for i in range(n):
        reach = max(abs(low[i] - z[i]), abs(high[i] - z[i]))
        total += term(slope[i], units[i], z[i], low[i], high[i])
        magnitude += 2.0 * size[i] * reach + units[i] * reach * reach
    total -= 4.0 * (n + m + 8) * unit_roundoff * magnitude
    for i in range(n):
        least = term(slope[i], units[i], z[i], low[i], high[i])
        while low[i] < high[i]:
            step = low[i] - z[i]
            if total + (2.0 * slope[i] * step + units[i] * step * step - least) < cut:
                break
            low[i] += 1.0
        while low[i] < high[i]:
            step = high[i] - z[i]
            if total + (2.0 * slope[i] * step + units[i] * step * step - least) < cut:
                break
            high[i] -= 1.0
    return total
