"""Compiled dual of best subset selection with a price on each kept input (docs/tiles.md).

What `kernels.pruning.subset_relaxation` is without prices. There the best weights z of the inputs follow from linear
equations; prices make them another function of the multipliers, and they are approached by rounds.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import back_substitute, backward, factorize

UNIT = 2.0**-53
#: Inputs of less weight than this are taken out of a relaxation; those that come back begin with this weight.
LEAST, FIRST = 1e-4, 0.05
#: Halvings of the interval of a group's multiplier.
HALVINGS = 14
#: A round that gains less than this share of what is missing ends a relaxation of few rounds; so many a longer one.
STALL, FEW, PATIENCE = 0.01, 8, 6


@kernel(error_model="numpy")
def best_of_groups(group, free, status, scores, edge):
    """Largest total of positive scores of free inputs that the groups have room for.

    ``edge`` becomes the largest score left out and the smallest one in, at least 0 each.
    """
    total = 0.0
    for g in range(len(free)):
        previous, before = np.inf, -1
        edge[g, 0] = 0.0
        edge[g, 1] = 0.0
        for taken in range(free[g] + 1):
            top, arg = 0.0, -1
            for i in range(len(group)):
                if group[i] != g or status[i] != 0 or not scores[i] > top:
                    continue
                if scores[i] < previous or (scores[i] == previous and i > before):
                    top, arg = scores[i], i
            edge[g, 1 if taken < free[g] else 0] = top
            if arg < 0:
                break
            if taken < free[g]:
                total += top
            previous, before = top, arg
    return total


# A division by zero must give a useless bound (NaN compares false), not an exception.
@kernel(error_model="numpy", nested=True)
def bound_at(layer, d, group, free, price, status, point, resid, scores, edge):
    """Proven lower bound of a node at a point: the least error plus prices of what is kept.

    Parameters
    ----------
    layer
        H, the roots of its diagonal, Hw, a lower bound of wᵀHw, and what accounts for the error of Hw.
    d, group, free, price, status, point
        As in `relax`; the point is zero on dropped inputs.
    resid, scores, edge
        Results: h = Hu − b; c²/d − price of each input, rounded up; see `best_of_groups`.
    """
    gram, norm, b, energy, reach = layer
    n = len(b)
    gamma = 2.5 * (n + 8) * UNIT
    size = reach
    for i in range(n):
        resid[i] = -b[i]
    for i in range(n):
        f = point[i]
        if f != 0.0:
            size += norm[i] * abs(f)
            row = gram[i]
            for j in range(n):
                resid[j] += f * row[j]
    quad, charge, kept, spread = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        if status[i] < 0:
            continue
        x = point[i]
        di = d[i] if status[i] == 0 else 1e-6 * d[i]
        quad += x * (resid[i] + b[i]) - di * x * x
        charge += abs(x * b[i]) + di * x * x
        error = gamma * (norm[i] * size + abs(b[i]) + di * abs(x))
        c = abs(di * x - resid[i])
        s = (c + error) * (c + error) / di * (1.0 + 8.0 * UNIT)
        if not s < np.inf:
            # Neither the selection below nor a comparison would see a NaN.
            return -np.inf
        scores[i] = s - price[i] * (1.0 - 2.0 * UNIT) + UNIT * s
        spread += s + price[i]
        if status[i] == 1:
            kept += scores[i]
    kept += best_of_groups(group, free, status, scores, edge)
    return energy - quad - kept - 2.0 * gamma * (energy + size * size + 2.0 * charge + spread)


@kernel(error_model="numpy", nested=True)
def weight_of(z, s, threshold):
    """The next weight of an input: it grows where the saving s exceeds price and multiplier, its threshold."""
    if not threshold > 0.0:
        return 1.0
    ratio = s / threshold
    return min(1.0, z * np.sqrt(ratio * np.sqrt(ratio)))


@kernel(error_model="numpy")
def next_weights(group, free, price, status, scores, z):
    """New weights z of the free inputs, at most ``free[g]`` in each group."""
    n = len(group)
    members = np.empty(n, np.int64)
    for g in range(len(free)):
        count = 0
        high = 0.0
        for i in range(n):
            if group[i] == g and status[i] == 0:
                members[count] = i
                count += 1
                high = max(high, scores[i] + price[i])
        if count == 0:
            continue
        low, theta = 0.0, 0.0
        high *= 4.0
        for step in range(HALVINGS):
            total = 0.0
            for p in range(count):
                i = members[p]
                if z[i] > 0.0:
                    total += weight_of(z[i], scores[i] + price[i], price[i] + theta)
            if total <= free[g] * (1.0 + 1e-9):
                if step == 0:
                    break
                high = theta
            else:
                low = theta
            theta = 0.5 * (low + high)
        for p in range(count):
            i = members[p]
            s = scores[i] + price[i]
            if z[i] > 0.0:
                new = weight_of(z[i], s, price[i] + theta)
                z[i] = new if new > LEAST else 0.0
            elif s > (price[i] + theta) * (1.0 + 1e-9):
                z[i] = FIRST


@kernel(error_model="numpy")
def relax(layer, d, group, free, price, status, z, rounds, stop, left, results):
    """Relaxation of one node by rounds of points and weights; returns the best proven lower bound.

    Parameters
    ----------
    layer
        See `bound_at`.
    d
        A minorant of H on the inputs that are not dropped.
    group, free
        Group of each input and number of free inputs that each group may still keep.
    price
        Of keeping each input, not negative.
    status
        1 (kept), −1 (dropped) or 0 (free).
    z
        Weights of the free inputs: start and result.
    rounds, stop
        Limit of iterations; a bound that ends the work.
    left
        The inputs that are not dropped, the kept ones first, how many are kept and how many there are, and what
        `kernels.pruning.subset_relaxation.reduce` leaves of them.
    results
        Of the best round: the point, c²/d − price rounded up, and the edges. Of the last one: the factor of its matrix,
        the solution, its inputs, scores, and how many they are.
    """
    inputs, kept, count, a, r = left
    u, save, edge, work, v, index, scores, out = results
    n = len(group)
    best = -np.inf
    resid, point, x = np.empty(n), np.empty(n), np.empty(n)
    limits = np.zeros((len(free), 2))
    place = np.empty(n, np.int64)
    weights = z.copy()
    calm, patience = 0, 1 if rounds <= FEW else PATIENCE
    for step in range(rounds):
        m = 0
        for p in range(kept, count):
            i = inputs[p]
            if weights[i] > 0.0:
                index[m] = i
                place[m] = p
                v[m] = r[p]
                m += 1
        for p in range(m):
            i = index[p]
            row, line = a[place[p]], work[p]
            for q in range(p, m):
                line[q] = row[place[q]]
            line[p] += d[i] * (1.0 / weights[i] - 1.0)
        if not factorize(work, m, m):
            break
        back_substitute(work, m, v)
        for i in range(n):
            point[i] = 0.0
        for p in range(count):
            x[p] = r[p] if p < kept else 0.0
        for p in range(m):
            point[index[p]] = v[p]
            x[place[p]] = v[p]
        backward(a, count, kept, x)
        for p in range(kept):
            point[inputs[p]] = x[p]
        value = bound_at(layer, d, group, free, price, status, point, resid, scores, limits)
        out[0] = m
        gain = value - best
        if value > best:
            best = value
            for i in range(n):
                u[i] = point[i]
                save[i] = scores[i]
                z[i] = weights[i]
            for g in range(len(free)):
                edge[g, 0] = limits[g, 0]
                edge[g, 1] = limits[g, 1]
        # Rounds do not rise steadily.
        calm = calm + 1 if step > 0 and gain < STALL * (stop - value) and gain < 1e-4 * abs(value) else 0
        if value >= stop or calm == patience:
            break
        if step + 1 < rounds:
            next_weights(group, free, price, status, scores, weights)
    return best
