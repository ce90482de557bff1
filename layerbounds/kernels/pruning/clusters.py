"""Compiled block dual of best subset selection, its blocks minimised by enumeration (docs/pruning-bounds.md).

Inputs are partitioned into clusters. Cluster g holds the inputs ``member[first[g]:first[g + 1]]`` and the block
``block[g]`` of the minorant, in that order. At a node, ``place[first[g] + p]`` is the position within the cluster of
its p-th input that is not dropped, kept ones first; a *code* is a bit mask over the free ones, the first one the
highest bit. The codes of cluster g that a node may still use are ``code[base[g]:base[g + 1]]``, ascending.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

UNIT = 2.0**-53
# In all of these a division by zero must give a useless bound (NaN compares false), not an exception.
#: Weights below exp(−CUTOFF) of the largest one are left out of the smoothed maximum's derivatives.
CUTOFF = 10.0


@kernel(error_model="numpy", nested=True)
def arrange(first, member, status, place, kept, free):
    """Order the inputs of each cluster: kept ones, then free ones."""
    for g in range(len(first) - 1):
        p = first[g]
        for sign in (1, 0):
            for a in range(first[g + 1] - first[g]):
                if status[member[first[g] + a]] == sign:
                    place[p] = a
                    p += 1
            if sign == 1:
                kept[g] = p - first[g]
        free[g] = p - first[g] - kept[g]


@kernel(error_model="numpy", nested=True)
def enumerate_savings(b, place, kept, free, c, codes, s, matrix, vector, depth_of):
    """Savings c_Sᵀ(B_SS)⁻¹c_S of the kept inputs with each set of free ones, by Schur complements.

    ``matrix`` and ``vector`` are stacks: entry q after q eliminations on the path.
    """
    m = kept + free
    for i in range(m):
        vector[0, i] = c[i]
        for j in range(i, m):
            matrix[0, i, j] = b[place[i], place[j]]
    total = 0.0
    for d in range(kept):
        f = vector[0, d]
        pivot = matrix[0, d, d]
        total += f * f / pivot
        for i in range(d + 1, m):
            ratio = matrix[0, d, i] / pivot
            vector[0, i] -= ratio * f
            for j in range(i, m):
                matrix[0, i, j] -= ratio * matrix[0, d, j]
    # depth_of[d]: eliminations before the decision on the free input d; sums of savings stand in vector's last column.
    last = vector.shape[1] - 1
    vector[0, last] = total
    depth_of[0] = 0
    previous = -1
    for at in range(len(codes)):
        code = codes[at]
        d = 0
        if previous >= 0:
            change = code ^ previous
            d = free
            while change:
                change >>= 1
                d -= 1
        previous = code
        while d < free:
            q = depth_of[d]
            if (code >> (free - 1 - d)) & 1:
                k = kept + d
                pivot = matrix[q, k, k]
                f = vector[q, k] / pivot
                vector[q + 1, last] = vector[q, last] + vector[q, k] * f
                for i in range(k + 1, m):
                    ratio = matrix[q, k, i]
                    vector[q + 1, i] = vector[q, i] - ratio * f
                    ratio /= pivot
                    for j in range(i, m):
                        matrix[q + 1, i, j] = matrix[q, i, j] - ratio * matrix[q, k, j]
                depth_of[d + 1] = q + 1
            else:
                depth_of[d + 1] = q
            d += 1
        s[at] = vector[depth_of[free], last]


@kernel(error_model="numpy", nested=True)
def knapsack(top, free, room, best, following):
    """Largest Σ top[g, j_g] with Σ j_g ≤ room."""
    for r in range(room + 1):
        best[r] = 0.0
    for g in range(len(free)):
        for r in range(room + 1):
            most = best[r] + top[g, 0]
            for j in range(1, min(free[g], r) + 1):
                value = best[r - j] + top[g, j]
                if value > most:
                    most = value
            following[r] = most
        for r in range(room + 1):
            best[r] = following[r]
    return best[room]


@kernel(error_model="numpy", nested=True)
def mean_count(lse, free, tau, price):
    """Σ of the mean numbers of kept inputs of the clusters at a price, and its derivative with respect to −price/τ."""
    total = 0.0
    variance = 0.0
    for g in range(len(free)):
        top = -np.inf
        for j in range(free[g] + 1):
            top = max(top, lse[g, j] - price * j / tau)
        weight = 0.0
        first = 0.0
        second = 0.0
        for j in range(free[g] + 1):
            x = lse[g, j] - price * j / tau - top
            if x > -40.0:
                w = np.exp(x)
                weight += w
                first += w * j
                second += w * j * j
        first /= weight
        total += first
        variance += second / weight - first * first
    return total, variance


@kernel(error_model="numpy", nested=True)
def find_price(lse, free, tau, room, price):
    """The price at which the clusters together keep ``room`` inputs; 0 if they want no more than that."""
    total, _ = mean_count(lse, free, tau, 0.0)
    if total <= room:
        return 0.0
    low = 0.0
    high = np.inf
    if not price > 0.0:
        price = tau
    for _ in range(100):
        total, variance = mean_count(lse, free, tau, price)
        if abs(total - room) < 1e-6:
            break
        if total > room:
            low = price
        else:
            high = price
        step = price + tau * (total - room) / variance if variance > 1e-9 else np.inf
        if low < step < high and step < 10.0 * price:
            price = step
        elif high < np.inf:
            price = 0.5 * (low + high)
        else:
            price = 3.0 * price
    return price


@kernel(error_model="numpy", nested=True)
def evaluate(
    gram, norm, b, energy, reach, block, loss, smallest, first, member, place, kept, free, base, code, number, u, c,
    s, top, matrix, vector, depth_of, resid, out,
):  # fmt: skip
    """Savings of all codes at a point u.

    Parameters
    ----------
    gram, norm, b, energy, reach
        H, the roots of its diagonal, Hw, a lower bound of wᵀHw, and the Σ √h_jj |u_j| that accounts for the error of b.
    block, loss, smallest
        The minorant, the relative error of a saving, and lower bounds of the blocks' smallest eigenvalues.
    kept, free
        The numbers of kept and of free inputs of each cluster.
    base, code, number
        The codes, and how many inputs each one takes off a number that all clusters share; 0 where there is none.
    c, s
        Results: Hw − (H − B)u in the order of ``place``, and the savings.
    top
        Result: the largest saving of each cluster by number of kept inputs.
    matrix, vector, depth_of, resid
        Work space.
    out
        ``out[5]`` becomes wᵀHw − uᵀ(H − B)u and ``out[6]`` what rounding may hide, but for 2γ times the
        sum of the savings.
    """
    n = len(b)
    gamma = 4.0 * (n + 16) * UNIT
    size = reach
    for i in range(n):
        resid[i] = b[i]
    for i in range(n):
        x = u[i]
        if x != 0.0:
            size += norm[i] * abs(x)
            row = gram[i]
            for j in range(n):
                resid[j] -= x * row[j]
    quad = 0.0
    charge = 0.0
    extra = 0.0
    for i in range(n):
        quad += u[i] * (b[i] - resid[i])
    for g in range(len(free)):
        m = kept[g] + free[g]
        f0 = first[g]
        error = 0.0
        for p in range(m):
            i = member[f0 + place[f0 + p]]
            pull = 0.0
            heavy = 0.0
            for q in range(m):
                x = block[g, place[f0 + p], place[f0 + q]] * u[member[f0 + place[f0 + q]]]
                pull += x
                heavy += abs(x)
            c[f0 + p] = resid[i] + pull
            quad -= u[i] * pull
            charge += abs(u[i]) * heavy
            e = gamma * (norm[i] * size + abs(b[i]) + heavy)
            error += e * e
        enumerate_savings(
            block[g], place[f0 : f0 + m], kept[g], free[g], c[f0:], code[base[g] : base[g + 1]],
            s[base[g] : base[g + 1]], matrix, vector, depth_of,
        )  # fmt: skip
        for j in range(free[g] + 1):
            top[g, j] = -np.inf
        most = 0.0
        for at in range(base[g], base[g + 1]):
            j = number[at]
            if s[at] > top[g, j]:
                top[g, j] = s[at]
        for j in range(free[g] + 1):
            most = max(most, top[g, j])
        # (√s + η)² with η² the largest saving of the error of c, and the rounding of the savings themselves.
        error /= smallest[g]
        extra += loss[g] * most + 2.0 * np.sqrt(most * error) + error
    out[5] = energy - quad
    out[6] = extra + 2.0 * gamma * (energy + size * size + 2.0 * charge)


@kernel(error_model="numpy", nested=True)
def bounds(free, base, number, s, top, budget, room, tau, n, lse, best, following, out):
    """Bounds from the savings.

    ``out[:4]`` become the proven bound, the smoothed value, the price, and the proven bound for this price; on entry
    ``out[2]`` is where the search of the price starts.
    """
    gamma = 4.0 * (n + 16) * UNIT
    for g in range(len(free)):
        for j in range(free[g] + 1):
            lse[g, j] = 0.0
        for at in range(base[g], base[g + 1]):
            j = number[at]
            x = (s[at] - top[g, j]) / tau
            if x > -CUTOFF:
                lse[g, j] += np.exp(x)
        for j in range(free[g] + 1):
            lse[g, j] = np.log(lse[g, j]) + top[g, j] / tau if lse[g, j] > 0.0 else -np.inf
    price = 0.0
    total = 0.0
    if budget:
        total = knapsack(top, free, room, best, following)
        if total == -np.inf:
            # All codes that are left keep too many inputs.
            out[0] = out[1] = out[3] = np.inf
            return
        price = find_price(lse, free, tau, room, out[2])
    else:
        for g in range(len(free)):
            total += top[g, 0]
    smooth = out[5] - price * room
    split = price * room
    for g in range(len(free)):
        peak = -np.inf
        hard = -np.inf
        for j in range(free[g] + 1):
            peak = max(peak, lse[g, j] - price * j / tau)
            hard = max(hard, top[g, j] - price * j)
        weight = 0.0
        for j in range(free[g] + 1):
            weight += np.exp(lse[g, j] - price * j / tau - peak)
        smooth -= tau * (peak + np.log(weight))
        split += hard
    out[0] = out[5] - total - out[6] - 2.0 * gamma * abs(total)
    out[1] = smooth
    out[2] = price
    out[3] = out[5] - split - out[6] - 2.0 * gamma * abs(split)


@kernel(error_model="numpy", nested=True)
def assess(problem, minorant, order, codes, sharing, u, tau, price, c, s, top, lse, space, out):
    """Savings at a point, and their bounds: `evaluate` and `bounds`, whose search of the price starts at ``price``.

    ``problem``, ``minorant``, ``order`` and ``codes`` are the arguments of `evaluate` up to ``number``, ``space`` its
    work space; ``sharing`` is whether all clusters share one number of kept inputs, how many may still be kept, and
    work space.
    """
    gram, norm, b, energy, reach = problem
    block, loss, smallest, first, member = minorant
    place, kept, free = order
    base, code, number = codes
    matrix, vector, depth_of, resid = space
    budget, room, best, following = sharing
    evaluate(
        gram, norm, b, energy, reach, block, loss, smallest, first, member, place, kept, free, base, code, number, u, c,
        s, top, matrix, vector, depth_of, resid, out,
    )  # fmt: skip
    out[2] = price
    bounds(free, base, number, s, top, budget, room, tau, len(u), lse, best, following, out)
