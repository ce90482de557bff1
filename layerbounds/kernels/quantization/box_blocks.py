"""A node of the best-first tree with blocks of inputs: alternating directions on a box of codes, and the bound there.

What `box_tree` does with single inputs, done with blocks beside the integer forms. Codes are 0, 1, 2, …, so that a
level of the box is a code less the box's first; corrals hold codes.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.quantization.block_relaxation import least_costs, proximal_sweep
from layerbounds.kernels.quantization.box_tree import absolute_dot, dot, kink, term


@kernel()
def _lay_out(low, high):
    """The levels of a box in rows, and how many there are of each input."""
    n = low.shape[0]
    widest = 1
    count = np.empty(n, np.int64)
    for i in range(n):
        count[i] = int(high[i] - low[i]) + 1
        widest = max(widest, count[i])
    levels = np.empty((n, widest))
    for i in range(n):
        for j in range(widest):
            levels[i, j] = min(low[i] + j, high[i])
    return levels, count


@kernel()
def iterate(
    first, member, block, factor, start, index, entry, weights, inverse, pull, origin, at_origin, low, high, penalty,
    penalty_forms, relaxation, y, u, y_forms, u_forms, corral, alpha, size, z, count, every, most,
):  # fmt: skip
    """So many iterations on a box; the state (y, u of the inputs and the forms, the corrals) and z change.

    Parameters
    ----------
    first, member, block, factor
        Blocks, as in `block_relaxation`.
    start, index, entry, weights
        Forms by columns, and their weights.
    inverse, pull
        Of rest + κB + κ_f V diag(weights) Vᵀ, rest = H − B − V diag(weights) Vᵀ, and rest @ origin.
    origin, at_origin
        w and Vᵀw.
    every : int
        One in so many iterations lets a point enter each corral; between, points are taken from it alone.
    most : int
        Nodes that one search of a block may take.
    """
    n, m, groups = low.shape[0], weights.shape[0], size.shape[0]
    levels, number = _lay_out(low, high)
    for g in range(groups):
        for c in range(size[g]):
            for p in range(first[g + 1] - first[g]):
                i = member[first[g] + p]
                corral[g, c, p] = min(max(corral[g, c, p] - int(low[i]), 0), number[i] - 1)
    kappa = np.full(groups, penalty)
    right = np.empty(n)
    for g in range(groups):
        inputs = member[first[g] : first[g + 1]]
        for p in range(inputs.shape[0]):
            s = 0.0
            for q in range(inputs.shape[0]):
                s += block[g, p, q] * (y[inputs[q]] - u[inputs[q]])
            right[inputs[p]] = penalty * s
    for step in range(1, count + 1):
        for j in range(m):
            t = penalty_forms * weights[j] * (y_forms[j] - u_forms[j])
            for p in range(start[j], start[j + 1]):
                right[index[p]] += t * entry[p]
        for i in range(n):
            right[i] += pull[i]
        for i in range(n):
            z[i] = dot(inverse[i], right)
        proximal_sweep(
            first, member, block, factor, levels, number, origin, kappa, relaxation, z, y, u, corral, alpha, size,
            right, most, 1 if step % every == 0 else 0,
        )  # fmt: skip
        for j in range(m):
            t = 0.0
            for p in range(start[j], start[j + 1]):
                t += entry[p] * z[index[p]]
            v = relaxation * t + (1.0 - relaxation) * y_forms[j] + u_forms[j]
            # The interpolation is that of (t − vᵀw)².
            y_forms[j] = kink(v + at_origin[j] / penalty_forms, penalty_forms)
            u_forms[j] = v - y_forms[j]
    for g in range(groups):
        for c in range(size[g]):
            for p in range(first[g + 1] - first[g]):
                corral[g, c, p] += int(low[member[first[g] + p]])


@kernel()
def bound(
    gram, first, member, block, factor, start, index, entry, weights, origin, low, high, multipliers, z, most, budget,
    unit_roundoff,
):  # fmt: skip
    """The tangent bound of a box, its own rounding deducted; −inf where a block takes too many nodes to search."""
    n, m, groups = low.shape[0], weights.shape[0], factor.shape[0]
    levels, number = _lay_out(low, high)
    deviation = z - origin
    h, slope, size = np.empty(n), np.empty(n), np.empty(n)
    total, magnitude = 0.0, 0.0
    for i in range(n):
        h[i] = dot(gram[i], deviation)
        size[i] = absolute_dot(gram[i], deviation)
        slope[i] = h[i]
        total += deviation[i] * h[i]
        magnitude += abs(deviation[i]) * size[i]
    for j in range(m):
        at, least, greatest, spread = 0.0, 0.0, 0.0, 0.0
        for p in range(start[j], start[j + 1]):
            i, c = index[p], entry[p]
            at += c * z[i]
            spread += abs(c) * (abs(z[i]) + max(abs(low[i]), abs(high[i])))
            least += c * (low[i] if c > 0.0 else high[i])
            greatest += c * (high[i] if c > 0.0 else low[i])
            slope[i] -= c * multipliers[j]
            size[i] += abs(c * multipliers[j])
        total += term(multipliers[j], weights[j], at, least, greatest)
        farthest = max(abs(least - at), abs(greatest - at))
        magnitude += 2.0 * (abs(multipliers[j]) + weights[j] * farthest) * (farthest + spread)
    centre, tilt, least_of = np.empty(n), np.empty(n), np.empty(groups)
    least_costs(
        first, member, block, factor, levels, number, z, slope, most, budget, centre, tilt, least_of,
    )  # fmt: skip
    for g in range(groups):
        if np.isnan(least_of[g]):
            return -np.inf
        total += least_of[g]
        inputs = member[first[g] : first[g + 1]]
        for p in range(inputs.shape[0]):
            partial = 0.0
            for q in range(p, inputs.shape[0]):
                i = inputs[q]
                partial += abs(factor[g, p, q]) * (max(high[i] - centre[i], centre[i] - low[i]) + abs(centre[i]))
            magnitude += partial * partial
    for i in range(n):
        shift = centre[i] - z[i]
        reach = max(high[i] - centre[i], centre[i] - low[i])
        ends = min(tilt[i] * (low[i] - centre[i]), tilt[i] * (high[i] - centre[i]))
        total += shift * (tilt[i] + slope[i]) + 2.0 * ends
        magnitude += 2.0 * (size[i] + abs(tilt[i])) * (reach + abs(shift))
    return total - 4.0 * (n + m + 16) * unit_roundoff * magnitude
