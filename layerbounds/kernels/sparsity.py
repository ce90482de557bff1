"""Compiled loops of the diagonal perspective dual of best subset selection (docs/pruning-bounds.md).

Arrays over inputs: ``status`` is 1 (kept), −1 (dropped) or 0 (free); ``state`` is the active set of the relaxation: 0
at zero, ±1 fractional with the sign of v, 2 whole (z = 1).
"""

from __future__ import annotations

import numpy as np
from numba import njit

UNIT = 2.0**-53


@njit(nogil=True, cache=True)
def factorize(a, m):
    """Upper Cholesky factor UᵀU of the leading block, in place, four rows at a time; False where it breaks down."""
    for k0 in range(0, m, 4):
        k1 = min(k0 + 4, m)
        for k in range(k0, k1):
            for p in range(k0, k):
                f = a[p, k]
                for j in range(k, m):
                    a[k, j] -= f * a[p, j]
            pivot = a[k, k]
            if not pivot > 0.0:
                return False
            scale = 1.0 / np.sqrt(pivot)
            for j in range(k, m):
                a[k, j] *= scale
        if k1 == k0 + 4:
            r0, r1, r2, r3 = a[k0], a[k0 + 1], a[k0 + 2], a[k0 + 3]
            for i in range(k1, m):
                f0, f1, f2, f3 = r0[i], r1[i], r2[i], r3[i]
                row = a[i]
                for j in range(i, m):
                    row[j] -= f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
    return True


@njit(nogil=True, cache=True)
def back_substitute(a, m, x):
    """Solve UᵀU y = x in place."""
    for i in range(m):
        x[i] /= a[i, i]
        f = x[i]
        for j in range(i + 1, m):
            x[j] -= f * a[i, j]
    for i in range(m - 1, -1, -1):
        t = x[i]
        for j in range(i + 1, m):
            t -= a[i, j] * x[j]
        x[i] = t / a[i, i]


@njit(nogil=True, cache=True)
def inverse_diagonal(a, m, i, y):
    """Entry (i, i) of (UᵀU)⁻¹."""
    total = 0.0
    for j in range(i, m):
        y[j] = 0.0
    y[i] = 1.0
    for k in range(i, m):
        f = y[k] / a[k, k]
        total += f * f
        for j in range(k + 1, m):
            y[j] -= f * a[k, j]
    return total


@njit(nogil=True, cache=True)
def top_sum(values, count, many):
    """Sum of the largest ``many`` of ``values[:count]``, sorted in place; the first one left out, the last one in."""
    if many <= 0:
        best = 0.0
        for i in range(count):
            best = max(best, values[i])
        return 0.0, best, np.inf
    part = values[:count]
    part.sort()
    total = 0.0
    for i in range(max(count - many, 0), count):
        total += part[i]
    after = part[count - many - 1] if count > many else 0.0
    last = part[count - many] if count >= many else 0.0
    return total, after, last


# A division by zero must give a useless bound (NaN compares false), not an exception.
@njit(nogil=True, cache=True, error_model="numpy")
def relax(
    gram, norm, b, energy, reach, d, group, free, status, state, rounds, stop,
    u, save, edge, work, v, index, scores, out,
):  # fmt: skip
    """Relaxation of one node by a primal–dual active-set method; returns the best proven lower bound.

    Parameters
    ----------
    gram, norm, b, energy, reach
        H, the roots of its diagonal, Hw, a lower bound of wᵀHw, and the Σ √h_jj |u_j| that accounts for the error of b.
    d
        A minorant of H on the inputs that are not dropped.
    group, free
        Group of each input and number of free inputs that each group may still keep.
    status, state
        Of the inputs; ``state`` is warm start and result.
    rounds, stop
        Limit of iterations; a bound that ends the work.
    u, save, edge
        Results of the best round: the point, c²/d of each input rounded up, and per group the threshold below and
        above which inputs are dropped and kept.
    work, v, index, scores
        Work space.
    out
        Number of active inputs, whose factor is in ``work``; number of rounds.
    """
    n = len(b)
    groups = len(free)
    gamma = 2.5 * (n + 8) * UNIT
    best = -np.inf
    theta = np.zeros(groups)
    room = np.zeros(groups)
    below = np.zeros(groups)
    above = np.zeros(groups)
    members = np.zeros(groups, np.int64)
    resid = np.empty(n)
    point = np.empty(n)
    out[0] = 0
    out[1] = 0
    for _ in range(rounds):
        out[1] += 1
        m = 0
        for g in range(groups):
            room[g] = free[g]
        for i in range(n):
            if status[i] == 1:
                index[m] = i
                m += 1
            elif status[i] == 0 and state[i] != 0:
                index[m] = i
                m += 1
                if state[i] == 2:
                    room[group[i]] -= 1.0
        for p in range(m):
            i = index[p]
            row = gram[i]
            out_row = work[p]
            for q in range(p, m):
                out_row[q] = row[index[q]]
            if status[i] == 0 and state[i] != 2:
                out_row[p] -= d[i]
                r = max(room[group[i]], 1e-3)
                f = state[i] * np.sqrt(d[i]) / r
                for q in range(p, m):
                    j = index[q]
                    if status[j] == 0 and state[j] != 2 and group[j] == group[i]:
                        out_row[q] += f * state[j] * np.sqrt(d[j])
            v[p] = b[i]
        if not factorize(work, m):
            break
        back_substitute(work, m, v)
        # h = Hu − b, and with it the bound of this point.
        size = reach
        for i in range(n):
            point[i] = 0.0
            resid[i] = -b[i]
        for p in range(m):
            i = index[p]
            point[i] = v[p]
            size += norm[i] * abs(v[p])
            row = gram[i]
            f = v[p]
            for j in range(n):
                resid[j] += f * row[j]
        quad = 0.0
        charge = 0.0
        always = 0.0
        for g in range(groups):
            members[g] = 0
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
            scores[i] = s
            if status[i] == 1:
                always += s
            else:
                members[group[i]] += 1
        kept = always
        if groups == 1:
            t = 0
            for i in range(n):
                if status[i] == 0:
                    resid[t] = scores[i]
                    t += 1
            total, after, last = top_sum(resid, t, free[0])
            kept += total
            below[0] = after
            above[0] = last
        else:
            for g in range(groups):
                if members[g] == 0:
                    continue
                # Selection by repeated maximum: groups are small.
                previous = np.inf
                previous_index = -1
                taken = 0
                below[g] = 0.0
                above[g] = np.inf
                while taken < free[g] + 1:
                    top = -1.0
                    arg = -1
                    for i in range(n):
                        if (
                            group[i] == g
                            and status[i] == 0
                            and scores[i] > top
                            and (scores[i] < previous or (scores[i] == previous and i > previous_index))
                        ):
                            top = scores[i]
                            arg = i
                    if arg < 0:
                        break
                    if taken < free[g]:
                        kept += top
                        above[g] = top
                    else:
                        below[g] = top
                    previous = top
                    previous_index = arg
                    taken += 1
        value = energy - quad - kept - 2.0 * gamma * (energy + size * size + 2.0 * charge + kept)
        out[0] = m
        if value > best:
            best = value
            for i in range(n):
                u[i] = point[i]
                save[i] = scores[i]
            for g in range(groups):
                edge[g, 0] = below[g]
                edge[g, 1] = above[g]
        if value >= stop:
            break
        # New active set: z_i = min(1, β_i/θ) with Σ z = the group's room, β_i = √d_i |v_i|.
        changed = False
        for g in range(groups):
            theta[g] = 0.0
            if members[g] == 0:
                continue
            t = 0
            for p in range(m):
                i = index[p]
                if status[i] == 0 and group[i] == g:
                    if state[i] != 2 and state[i] * point[i] <= 0.0:
                        continue
                    resid[t] = np.sqrt(d[i]) * abs(point[i])
                    t += 1
            if t == 0:
                continue
            beta = resid[:t]
            beta.sort()
            if t > free[g]:
                total = 0.0
                for q in range(t):
                    total += beta[q]
                whole = 0
                while whole < free[g] - 1 and beta[t - 1 - whole] * (free[g] - whole) >= total:
                    total -= beta[t - 1 - whole]
                    whole += 1
                theta[g] = total / (free[g] - whole)
            elif t == free[g]:
                theta[g] = beta[0]
        for i in range(n):
            if status[i] != 0:
                continue
            g = group[i]
            x = point[i]
            if state[i] != 0:
                beta_i = np.sqrt(d[i]) * abs(x)
                if state[i] != 2 and state[i] * x <= 0.0:
                    new = 0
                elif beta_i >= theta[g]:
                    new = 2
                else:
                    new = 1 if x > 0.0 else -1
            else:
                # Here the saving is c²/d with c = −h.
                if scores[i] > theta[g] * theta[g] * (1.0 + 1e-9):
                    f = 0.0
                    row = gram[i]
                    for p in range(m):
                        f += row[index[p]] * v[p]
                    new = 1 if b[i] - f > 0.0 else -1
                else:
                    new = 0
            if new != state[i]:
                changed = True
                state[i] = new
        # A group whose capacity is used up by whole inputs has no room for fractional ones.
        for g in range(groups):
            whole = 0
            fractional = 0
            weakest = -1
            for i in range(n):
                if status[i] == 0 and group[i] == g:
                    if state[i] == 2:
                        whole += 1
                        if weakest < 0 or np.sqrt(d[i]) * abs(point[i]) < np.sqrt(d[weakest]) * abs(point[weakest]):
                            weakest = i
                    elif state[i] != 0:
                        fractional += 1
            if fractional > 0 and whole >= free[g] and weakest >= 0:
                state[weakest] = 1 if point[weakest] > 0.0 else -1
                changed = True
        if not changed:
            break
    return best


@njit(nogil=True, cache=True)
def settle(group, free, status):
    """Apply the capacities: a full group drops its free inputs, a group with room for all keeps them."""
    for g in range(len(free)):
        count = 0
        for i in range(len(group)):
            if group[i] == g and status[i] == 0:
                count += 1
        if count == 0 or (count > free[g] and free[g] > 0):
            continue
        keep = count <= free[g]
        for i in range(len(group)):
            if group[i] == g and status[i] == 0:
                status[i] = 1 if keep else -1
                if keep:
                    free[g] -= 1


@njit(nogil=True, cache=True)
def fix(bound, cut, group, free, status, scores, edge):
    """Fix inputs whose other choice is proven to reach the cut; returns how many.

    Dropping an input that is among the kept ones costs its saving less that of the best one left out; keeping one that
    is left out costs the saving of the worst kept one less its own. The savings are rounded up, so both are proven.
    """
    count = 0
    for i in range(len(group)):
        if status[i] != 0:
            continue
        below, above = edge[group[i], 0], edge[group[i], 1]
        if scores[i] >= above:
            if bound + (scores[i] - below) * (1.0 - 4.0 * UNIT) >= cut:
                status[i] = 1
                free[group[i]] -= 1
                count += 1
        elif bound + (above - scores[i]) * (1.0 - 4.0 * UNIT) >= cut:
            status[i] = -1
            count += 1
    return count


@njit(nogil=True, cache=True)
def refit_value(gram, b, chosen, work, v):
    """Saving bᵀ(H_SS)⁻¹b of a set, −inf where its Gram matrix is singular."""
    m = 0
    index = np.empty(len(b), np.int64)
    for i in range(len(b)):
        if chosen[i]:
            index[m] = i
            m += 1
    for p in range(m):
        for q in range(p, m):
            work[p, q] = gram[index[p], index[q]]
        v[p] = b[index[p]]
    if not factorize(work, m):
        return -np.inf
    back_substitute(work, m, v)
    total = 0.0
    for p in range(m):
        total += v[p] * b[index[p]]
    return total


@njit(nogil=True, cache=True)
def pick(d, group, status, state, u, edge, work, m, index, v, candidates):
    """The free active input whose exclusion is estimated to cost most: u²/(M⁻¹)_ii with M the relaxation's matrix.

    Only the ``candidates`` of largest separable estimate are looked at. −1 where no input is active and free.
    """
    best = -1.0
    arg = -1
    estimate = np.full(m, -1.0)
    for p in range(m):
        i = index[p]
        if status[i] == 0:
            estimate[p] = d[i] * u[i] * u[i]
    for _ in range(candidates):
        if m == 0:
            break
        top = np.argmax(estimate[:m])
        if estimate[top] < 0.0:
            break
        estimate[top] = -1.0
        i = index[top]
        cost = u[i] * u[i] / inverse_diagonal(work, m, top, v)
        if cost > best:
            best = cost
            arg = i
    return arg


@njit(nogil=True, cache=True)
def emphasis(group, free, status, u, d, save, edge, floor, alpha):
    """How much the bound gains from a relative growth of each d_i: the saving times z(1 − z); returns the mean.

    The relaxation is not smooth: inputs at z = 0 or 1 get a small weight that grows as their saving comes near the
    threshold, so that the next relaxation does not find them at zero cost.
    """
    total = 0.0
    count = 0
    for i in range(len(d)):
        alpha[i] = 0.0
        if status[i] != 0:
            continue
        threshold = edge[group[i], 0]
        s = save[i]
        if threshold > 0.0 and s > 0.0:
            z = min(1.0, np.sqrt(d[i] / threshold) * abs(u[i]))
            ratio = threshold / s if s > threshold else s / threshold
            alpha[i] = min(s, threshold) * max(z * (1.0 - z), floor * ratio**4)
        total += alpha[i]
        count += 1
    return total / count if count else 0.0


@njit(nogil=True, cache=True)
def ascend(inverse, alpha, mu, d):
    """One sweep of coordinate ascent on Σ α_i log d_i + μ logdet(M), M = H' − D, given M⁻¹; both are updated.

    Each coordinate is optimal at d_i = s_i α_i/(α_i + μ), where s_i = d_i + 1/(M⁻¹)_ii is the largest feasible value.
    Sixteen coordinates at a time, so that the update of M⁻¹ is a matrix product.
    """
    n = len(d)
    for k0 in range(0, n, 16):
        k1 = min(k0 + 16, n)
        m = k1 - k0
        local = inverse[k0:k1, k0:k1].copy()
        delta = np.zeros(m)
        for p in range(m):
            t = local[p, p]
            most = d[k0 + p] + 1.0 / t
            new = max(most * alpha[k0 + p] / (alpha[k0 + p] + mu), 1e-7 * most)
            delta[p] = new - d[k0 + p]
            d[k0 + p] = new
            f = delta[p] / (1.0 - delta[p] * t)
            row = local[p].copy()
            for q in range(m):
                g = f * row[q]
                for j in range(m):
                    local[q, j] += g * row[j]
        # M⁻¹ + M⁻¹E K EᵀM⁻¹ with K = (I − ΔP)⁻¹Δ and P = (M⁻¹)_EE.
        system = np.empty((m, m))
        right = np.zeros((m, m))
        for p in range(m):
            for q in range(m):
                system[p, q] = -delta[p] * inverse[k0 + p, k0 + q]
            system[p, p] += 1.0
            right[p, p] = delta[p]
        rows = inverse[k0:k1].copy()
        middle = np.linalg.solve(system, right)
        inverse += np.dot(np.ascontiguousarray(rows.T), np.dot(middle, rows))


@njit(nogil=True, cache=True)
def prove(gram, status, d, index, m, inner, work):
    """Prove diag(d) ⪯ H on the inputs ``index[:m]`` by one Cholesky factorization of the shifted difference.

    The first ``inner`` ones are kept, and count with 1e-6·d. See `bounds.diagonal.is_minorant`; the factorization here
    rounds a little more often.
    """
    unit = (m + 6) * UNIT
    shift = 1.0 - 1.5 * (m + 2) * unit / (1.0 - unit)
    for p in range(m):
        i = index[p]
        row = gram[i]
        for q in range(p, m):
            work[p, q] = row[index[q]]
        work[p, p] = (work[p, p] - (1e-6 * d[i] if p < inner else d[i])) * shift
        if not work[p, p] > 0.0:
            return False
    return factorize(work, m)
