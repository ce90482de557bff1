"""Compiled block dual of best subset selection, its blocks minimised by enumeration (docs/pruning-bounds.md).

Inputs are partitioned into clusters. Cluster g holds the inputs ``member[first[g]:first[g + 1]]`` and the block
``block[g]`` of the minorant, in that order. At a node, ``place[first[g] + p]`` is the position within the cluster of
its p-th input that is not dropped, kept ones first; a *code* is a bit mask over the free ones, the first one the
highest bit. The codes of cluster g that a node may still use are ``code[base[g]:base[g + 1]]``, ascending.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import factorize, invert_by_sweeps, solve

UNIT = 2.0**-53
# In all of these a division by zero must give a useless bound (NaN compares false), not an exception.
#: Weights below exp(−CUTOFF) of the largest one are left out of the smoothed maximum's derivatives.
CUTOFF = 10.0


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
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
    base, code, number
        The codes, and how many inputs each one takes off a number that all clusters share; 0 where there is none.
    top
        Result: the largest saving of each cluster by number of kept inputs.
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


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
def moments(b, place, kept, free, c, codes, number, s, lse, tau, price, k, cov, mean, tilt, share, x, t, index):
    """Moments of a cluster's choices under the smoothed maximum's weights.

    Fills ``k`` = Σ w_S (B_SS)⁻¹, ``cov`` the covariance of t_S = (B_SS)⁻¹c_S, its ``mean``, its covariance ``tilt``
    with the number of kept inputs, and each input's ``share`` Σ_{S ∋ i} w_S; returns the variance of that number.
    ``x[q]`` and ``t[q]`` are stacks of the inverse and of t for the first q inputs of a set: the next set shares most.
    """
    m = kept + free
    for i in range(m):
        mean[i] = 0.0
        tilt[i] = 0.0
        share[i] = 0.0
        for j in range(m):
            k[i, j] = 0.0
            cov[i, j] = 0.0
    peak = -np.inf
    for j in range(free + 1):
        peak = max(peak, lse[j] - price * j / tau)
    total = 0.0
    for j in range(free + 1):
        total += np.exp(lse[j] - price * j / tau - peak)
    y, entry = np.empty(m), np.empty(m)
    mean_number = 0.0
    square_number = 0.0
    ready = 0
    for at in range(len(codes)):
        code = codes[at]
        many = number[at]
        w = s[at] / tau - price * many / tau - peak
        if w < -CUTOFF:
            continue
        w = np.exp(w) / total
        mean_number += w * many
        square_number += w * many * many
        q = 0
        same = True
        for d in range(m):
            if d >= kept and not (code >> (m - 1 - d)) & 1:
                continue
            if same and q < ready and index[q] == d:
                q += 1
                continue
            same = False
            # One more row and column: with y = X b_d and σ = b_dd − b_dᵀy, X + yyᵀ/σ beside −y/σ and 1/σ.
            old, new, before, after = x[q], x[q + 1], t[q], t[q + 1]
            line = b[place[d]]
            pivot = line[place[d]]
            right = c[d]
            for a in range(q):
                y[a] = 0.0
            for e in range(q):
                f = line[place[index[e]]]
                entry[e] = f
                right -= f * before[e]
                other = old[e]
                for a in range(q):
                    y[a] += f * other[a]
            for a in range(q):
                pivot -= entry[a] * y[a]
            right /= pivot
            last = new[q]
            for a in range(q):
                g = y[a] / pivot
                other, row = old[a], new[a]
                for e in range(q):
                    row[e] = other[e] + g * y[e]
                row[q] = -g
                last[a] = -g
                after[a] = before[a] - y[a] * right
            last[q] = 1.0 / pivot
            after[q] = right
            index[q] = d
            q += 1
        ready = q
        solved, inverse = t[q], x[q]
        for a in range(q):
            i = index[a]
            f = w * solved[a]
            share[i] += w
            mean[i] += f
            tilt[i] += many * f
            sum_row, square_row, row = k[i], cov[i], inverse[a]
            for e in range(a, q):
                sum_row[index[e]] += w * row[e]
                square_row[index[e]] += f * solved[e]
    for i in range(m):
        tilt[i] -= mean_number * mean[i]
        for j in range(i, m):
            cov[i, j] -= mean[i] * mean[j]
            cov[j, i] = cov[i, j]
            k[j, i] = k[i, j]
    return square_number - mean_number * mean_number


@kernel(error_model="numpy")
def relax(
    gram, norm, b, energy, reach, block, loss, smallest, first, member, budget, room, status, tau, widen, expected,
    rounds, stop, tolerance, base, code, number, u, place, kept, free, s, c, work, covariance, curve, share, out,
):  # fmt: skip
    """Maximise the block dual of a node by Newton's method on its smoothed form; returns the best proven bound.

    Parameters
    ----------
    budget, room
        Whether all clusters share one number of kept inputs, and how many may still be kept.
    tau, widen, expected
        Width of the smoothing; where the start is far below the ``expected`` bound, it begins with up to ``widen``.
    rounds, stop, tolerance
        Limit of Newton steps; a bound that ends the work; least gain of a step.
    base, code, number
        The codes of each cluster, and how many inputs each one takes off the shared number; 0 where there is none.
    u
        Warm start and result: the point.
    place, kept, free, s
        Results: the order of the inputs, and the codes' savings at the point.
    work, curve
        Work space; ``curve`` holds on return Σ w_S (B_SS)⁻¹ of each cluster.
    covariance
        Result: the covariance of t_S in each cluster, in the order of ``place``.
    out
        See `bounds`; ``out[4]`` counts the points that were evaluated.
    """
    n = len(b)
    groups = len(first) - 1
    arrange(first, member, status, place, kept, free)
    widest = block.shape[1]
    top = np.empty((groups, widest + 1))
    lse = np.empty((groups, widest + 1))
    matrix = np.empty((widest + 1, widest, widest))
    vector = np.empty((widest + 1, widest + 1))
    depth_of = np.empty(widest + 1, np.int64)
    best_fit = np.empty(room + 1)
    following = np.empty(room + 1)
    resid = np.empty(n)
    tilt = np.empty((groups, widest))
    mean = np.empty((groups, widest))
    x, index = np.empty((widest, widest)), np.empty(widest, np.int64)
    inverses, solutions = np.empty((widest + 1, widest, widest)), np.empty((widest + 1, widest))
    position = np.empty(n, np.int64)
    right, price_right, deviation, shift = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    trial, best_u = np.empty(n), np.empty(n)
    for i in range(n):
        if status[i] < 0:
            u[i] = 0.0
        best_u[i] = u[i]
    evaluate(
        gram, norm, b, energy, reach, block, loss, smallest, first, member, place, kept, free, base, code, number, u,
        c, s, top, matrix, vector, depth_of, resid, out,
    )  # fmt: skip
    bounds(free, base, number, s, top, budget, room, tau, n, lse, best_fit, following, out)
    best = out[0]
    best_price = out[2]
    width = tau
    if widen > 0.0 and expected - best > 8.0 * tau:
        width = min((expected - best) / 8.0, widen)
        bounds(free, base, number, s, top, budget, room, width, n, lse, best_fit, following, out)
    smooth = out[1]
    at_best = True
    out[4] = 0
    failures = 0
    for _ in range(rounds):
        if best >= stop:
            break
        variance = 0.0
        m = 0
        for g in range(groups):
            f0 = first[g]
            size = kept[g] + free[g]
            codes = slice(base[g], base[g + 1])
            variance += moments(
                block[g], place[f0 : f0 + size], kept[g], free[g], c[f0:], code[codes], number[codes], s[codes], lse[g],
                width, out[2], curve[g], covariance[g], mean[g], tilt[g], share[g], inverses, solutions, index,
            )  # fmt: skip
        # (A⁻¹ + H − B) δ = A⁻¹(v − u) on the inputs that occur, A = K + (2/τ) cov; the others go to zero.
        for i in range(n):
            position[i] = -1
            shift[i] = 0.0
        for g in range(groups):
            f0 = first[g]
            for p in range(kept[g] + free[g]):
                i = member[f0 + place[f0 + p]]
                if share[g, p] > 0.0:
                    position[i] = m
                    deviation[m] = mean[g, p] - u[i]
                    m += 1
                elif u[i] != 0.0:
                    row = gram[i]
                    for j in range(n):
                        shift[j] -= u[i] * row[j]
                    for q in range(kept[g] + free[g]):
                        shift[member[f0 + place[f0 + q]]] += u[i] * block[g, place[f0 + p], place[f0 + q]]
        start = 0
        for g in range(groups):
            f0 = first[g]
            count = 0
            for p in range(kept[g] + free[g]):
                if share[g, p] > 0.0:
                    index[count] = p
                    count += 1
            for a in range(count):
                for e in range(count):
                    x[a, e] = curve[g, index[a], index[e]] + 2.0 / width * covariance[g, index[a], index[e]]
                x[a, a] *= 1.0 + 1e-10
            if not invert_by_sweeps(x, count):
                m = -1
                break
            for a in range(count):
                i = member[f0 + place[f0 + index[a]]]
                f = 0.0
                h = 0.0
                for e in range(count):
                    f += x[a, e] * deviation[start + e]
                    h += x[a, e] * tilt[g, index[e]]
                right[start + a] = f
                price_right[start + a] = h
                row = gram[i]
                out_row = work[start + a]
                for e in range(a, count):
                    out_row[start + e] = (
                        row[member[f0 + place[f0 + index[e]]]]
                        - block[g, place[f0 + index[a]], place[f0 + index[e]]]
                        + x[a, e]
                    )
                for later in range(g + 1, groups):
                    l0 = first[later]
                    for p in range(kept[later] + free[later]):
                        if share[later, p] > 0.0:
                            j = member[l0 + place[l0 + p]]
                            out_row[position[j]] = row[j]
            start += count
        if m < 0 or not factorize(work, m, m):
            break
        for g in range(groups):
            f0 = first[g]
            for p in range(kept[g] + free[g]):
                i = member[f0 + place[f0 + p]]
                if position[i] >= 0:
                    resid[position[i]] = right[position[i]] - shift[i]
                    trial[position[i]] = price_right[position[i]]
        solve(work, m, resid)
        if budget and out[2] > 0.0 and variance > 1e-12:
            solve(work, m, trial)
            factor = 2.0 / (width * variance)
            a0 = 0.0
            a1 = 0.0
            q = 0
            for g in range(groups):
                for p in range(kept[g] + free[g]):
                    if share[g, p] > 0.0:
                        a0 += price_right[q] * (deviation[q] - resid[q])
                        a1 += price_right[q] * (tilt[g, p] - trial[q])
                        q += 1
            if abs(1.0 - factor * a1) > 1e-9:
                f = factor * a0 / (1.0 - factor * a1)
                for p in range(m):
                    resid[p] += f * trial[p]
        for i in range(n):
            deviation[i] = resid[position[i]] if position[i] >= 0 else -u[i]
        step = 1.0
        accepted = False
        price = out[2]
        while step > 0.1:
            for i in range(n):
                trial[i] = u[i] + step * deviation[i]
            out[4] += 1
            evaluate(
                gram, norm, b, energy, reach, block, loss, smallest, first, member, place, kept, free, base, code,
                number, trial, c, s, top, matrix, vector, depth_of, resid, out,
            )  # fmt: skip
            out[2] = price
            bounds(free, base, number, s, top, budget, room, width, n, lse, best_fit, following, out)
            at_best = out[0] > best
            if at_best:
                best = out[0]
                best_price = out[2]
                for i in range(n):
                    best_u[i] = trial[i]
            if out[1] > smooth:
                accepted = True
                break
            step *= 0.4
        if accepted:
            gain = out[1] - smooth
            smooth = out[1]
            for i in range(n):
                u[i] = trial[i]
            if width > tau:
                width = max(0.3 * width, tau)
                bounds(free, base, number, s, top, budget, room, width, n, lse, best_fit, following, out)
                smooth = out[1]
            elif gain < tolerance:
                break
        else:
            # A wider smoothing has a larger region where Newton's method converges.
            failures += 1
            if failures > 1 or widen <= 0.0 or expected - best < 2.0 * tau:
                break
            width = min(8.0 * width, widen)
            evaluate(
                gram, norm, b, energy, reach, block, loss, smallest, first, member, place, kept, free, base, code,
                number, u, c, s, top, matrix, vector, depth_of, resid, out,
            )  # fmt: skip
            bounds(free, base, number, s, top, budget, room, width, n, lse, best_fit, following, out)
            smooth = out[1]
            at_best = False
    if not at_best or width > tau:
        evaluate(
            gram, norm, b, energy, reach, block, loss, smallest, first, member, place, kept, free, base, code,
            number, best_u, c, s, top, matrix, vector, depth_of, resid, out,
        )  # fmt: skip
        out[2] = best_price
        bounds(free, base, number, s, top, budget, room, tau, n, lse, best_fit, following, out)
    for i in range(n):
        u[i] = best_u[i]
    if best >= stop:
        return best
    for g in range(groups):
        f0 = first[g]
        size = kept[g] + free[g]
        codes = slice(base[g], base[g + 1])
        moments(
            block[g], place[f0 : f0 + size], kept[g], free[g], c[f0:], code[codes], number[codes], s[codes], lse[g],
            tau, out[2], curve[g], covariance[g], mean[g], tilt[g], share[g], inverses, solutions, index,
        )  # fmt: skip
    return best
