"""Compiled relaxation with the block dual of best subset selection: Newton's method on its smoothed form.

At a point, every cluster has a mixture of its sets, with the smoothed maximum's weights w_S; t_S = (B_SS)⁻¹c_S. Arrays
and the tuples of them are those of `clusters`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import factorize, invert_by_sweeps, solve
from layerbounds.kernels.pruning.clusters import CUTOFF, arrange, assess, bounds


@kernel(error_model="numpy", nested=True)
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


@kernel(error_model="numpy", nested=True)
def mix(minorant, order, codes, c, s, lse, tau, price, mixture, space):
    """The moments of all clusters into ``mixture``, see `moments`; the variance of the number of kept inputs."""
    block, first = minorant[0], minorant[3]
    place, kept, free = order
    base, code, number = codes
    curve, covariance, mean, tilt, share = mixture
    inverses, solutions, index = space
    variance = 0.0
    for g in range(len(free)):
        f0 = first[g]
        size = kept[g] + free[g]
        part = slice(base[g], base[g + 1])
        variance += moments(
            block[g], place[f0 : f0 + size], kept[g], free[g], c[f0:], code[part], number[part], s[part], lse[g],
            tau, price, curve[g], covariance[g], mean[g], tilt[g], share[g], inverses, solutions, index,
        )  # fmt: skip
    return variance


@kernel(error_model="numpy", inline=True)
def occurring(gram, minorant, order, u, mean, share, position, deviation, shift):
    """Number the inputs that occur in the mixture, in ``position``, −1 for the others; returns how many there are.

    ``deviation`` becomes their means less the point, ``shift`` what the residual gains when the others go to zero.
    """
    block, first, member = minorant[0], minorant[3], minorant[4]
    place, kept, free = order
    n = len(u)
    for i in range(n):
        position[i] = -1
        shift[i] = 0.0
    m = 0
    for g in range(len(free)):
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
    return m


@kernel(error_model="numpy", inline=True)
def newton_system(gram, minorant, order, width, mixture, position, deviation, work, right, price_right):
    """The matrix A⁻¹ + H − B of a Newton step (upper triangle), and A⁻¹ times the deviation and times the tilt.

    A = K + (2/τ) cov on the inputs that occur; False where it is not positive definite.
    """
    block, first, member = minorant[0], minorant[3], minorant[4]
    place, kept, free = order
    curve, covariance, _, tilt, share = mixture
    widest = block.shape[1]
    x, index = np.empty((widest, widest)), np.empty(widest, np.int64)
    start = 0
    for g in range(len(free)):
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
            return False
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
            for later in range(g + 1, len(free)):
                l0 = first[later]
                for p in range(kept[later] + free[later]):
                    if share[later, p] > 0.0:
                        j = member[l0 + place[l0 + p]]
                        out_row[position[j]] = row[j]
        start += count
    return True


@kernel(error_model="numpy", inline=True)
def follow_price(m, order, factor, tilt, share, deviation, price_right, moved, resid):
    """Correct a Newton step for the price, which moves with the point: a matrix of rank one is taken off.

    ``resid`` is the step at a fixed price, ``moved`` the one that a change of the price asks for.
    """
    kept, free = order[1], order[2]
    a0 = 0.0
    a1 = 0.0
    q = 0
    for g in range(len(free)):
        for p in range(kept[g] + free[g]):
            if share[g, p] > 0.0:
                a0 += price_right[q] * (deviation[q] - resid[q])
                a1 += price_right[q] * (tilt[g, p] - moved[q])
                q += 1
    if abs(1.0 - factor * a1) > 1e-9:
        f = factor * a0 / (1.0 - factor * a1)
        for p in range(m):
            resid[p] += f * moved[p]


@kernel(error_model="numpy", inline=True)
def newton_step(gram, minorant, order, u, width, variance, priced, mixture, work, step):
    """The move (A⁻¹ + H − B)⁻¹A⁻¹(v − u) of the inputs that occur, the others to zero; False where it breaks down.

    ``priced`` says whether a price counts the kept inputs, ``variance`` is that of their number.
    """
    member, first = minorant[4], minorant[3]
    place, kept, free = order
    _, _, mean, tilt, share = mixture
    n = len(u)
    position = np.empty(n, np.int64)
    deviation, shift, right, price_right = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    resid, moved = np.empty(n), np.empty(n)
    m = occurring(gram, minorant, order, u, mean, share, position, deviation, shift)
    if not newton_system(gram, minorant, order, width, mixture, position, deviation, work, right, price_right):
        return False
    if not factorize(work, m, m):
        return False
    for g in range(len(free)):
        f0 = first[g]
        for p in range(kept[g] + free[g]):
            i = member[f0 + place[f0 + p]]
            if position[i] >= 0:
                resid[position[i]] = right[position[i]] - shift[i]
                moved[position[i]] = price_right[position[i]]
    solve(work, m, resid)
    if priced and variance > 1e-12:
        solve(work, m, moved)
        follow_price(m, order, 2.0 / (width * variance), tilt, share, deviation, price_right, moved, resid)
    for i in range(n):
        step[i] = resid[position[i]] if position[i] >= 0 else -u[i]
    return True


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
    groups, widest = block.shape[0], block.shape[1]
    arrange(first, member, status, place, kept, free)
    problem, minorant = (gram, norm, b, energy, reach), (block, loss, smallest, first, member)
    order, codes = (place, kept, free), (base, code, number)
    best_fit, following = np.empty(room + 1), np.empty(room + 1)
    sharing = (budget, room, best_fit, following)
    top, lse = np.empty((groups, widest + 1)), np.empty((groups, widest + 1))
    space = (
        np.empty((widest + 1, widest, widest)), np.empty((widest + 1, widest + 1)), np.empty(widest + 1, np.int64),
        np.empty(n),
    )  # fmt: skip
    mixture = (curve, covariance, np.empty((groups, widest)), np.empty((groups, widest)), share)
    stacks = (np.empty((widest + 1, widest, widest)), np.empty((widest + 1, widest)), np.empty(widest, np.int64))
    move, trial, best_u = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        if status[i] < 0:
            u[i] = 0.0
        best_u[i] = u[i]
    assess(problem, minorant, order, codes, sharing, u, tau, out[2], c, s, top, lse, space, out)
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
        variance = mix(minorant, order, codes, c, s, lse, width, out[2], mixture, stacks)
        priced = budget and out[2] > 0.0
        if not newton_step(gram, minorant, order, u, width, variance, priced, mixture, work, move):
            break
        step = 1.0
        accepted = False
        price = out[2]
        while step > 0.1:
            for i in range(n):
                trial[i] = u[i] + step * move[i]
            out[4] += 1
            assess(problem, minorant, order, codes, sharing, trial, width, price, c, s, top, lse, space, out)
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
            assess(problem, minorant, order, codes, sharing, u, width, out[2], c, s, top, lse, space, out)
            smooth = out[1]
            at_best = False
    if not at_best or width > tau:
        assess(problem, minorant, order, codes, sharing, best_u, tau, best_price, c, s, top, lse, space, out)
    for i in range(n):
        u[i] = best_u[i]
    if not best >= stop:
        mix(minorant, order, codes, c, s, lse, tau, out[2], mixture, stacks)
    return best
