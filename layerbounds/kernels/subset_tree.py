"""Compiled branch and bound with the diagonal perspective dual of best subset selection (docs/pruning-bounds.md).

The relaxation and the improvement of its diagonal, the enumeration of the sets whose bound stays below the cut, and the
tree. The enumeration serves the block dual, too: a separable bound gives every set of a node the value of the best one
plus what its choice costs in each cluster; sets whose costs exceed the gap are never looked at.

Arrays over inputs: ``status`` is 1 (kept), −1 (dropped) or 0 (free); ``state`` is the active set of the relaxation: 0
at zero, ±1 fractional with the sign of v, 2 whole (z = 1).
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import (
    back_substitute,
    backward,
    copy,
    factorize,
    forward,
    inverse_diagonal,
    invert_factor,
    largest,
    rank,
    select,
    solve_system,
    sort,
)

UNIT = 2.0**-53
#: Share of the sets that a node may have to be enumerated before its diagonal is improved.
EARLY = 0.3
#: Levels of the enumeration, from the last one, below which no Schur complement is kept.
LAZY = 4
#: What `run` returns: nothing is left below the cut; a limit; no room for children; sets to look at; a rounded set.
DONE, LIMIT, FULL, FOUND, ROUNDED = 0, 1, 2, 3, 4
#: The barrier weight of a node's improvement of the diagonal, and the least emphasis.
TREE_MU, FLOOR = 0.3, 0.05
#: Least share of an entry that is left by a sweep: the relaxation finds inputs of very small entries at no cost.
SHRINK = 0.7
#: Order of the largest matrix whose inverse is updated one coordinate at a time.
CACHED = 128
#: Rounds of the active-set method at a node; inputs whose exclusion cost is estimated before branching.
ROUNDS, CANDIDATES = 8, 8
#: Nodes between two trials of the rounded set.
TRIALS = 8
#: Multiplications that the enumeration of a node may take.
MOST_WORK = 3000000
#: Open nodes up to which the one of smallest bound comes first.
MOST_OPEN = 400000


@kernel(error_model="numpy")
def reduce(gram, b, index, kept, m, a, r):
    """Eliminate the first ``kept`` of the inputs ``index[:m]``; returns their saving, NaN where they are dependent.

    ``a`` and ``r`` are the rows of the Cholesky factor and the Schur complement (upper triangles), and the residuals.
    """
    for p in range(m):
        row = gram[index[p]]
        line = a[p]
        r[p] = b[index[p]]
        for q in range(p, m):
            line[q] = row[index[q]]
    if not factorize(a, m, kept):
        return np.nan
    return forward(a, m, kept, r)


@kernel(error_model="numpy")
def alive(status, index):
    """The kept inputs and then the free ones; returns how many are kept, and how many there are in all."""
    kept = 0
    for i in range(len(status)):
        if status[i] == 1:
            index[kept] = i
            kept += 1
    m = kept
    for i in range(len(status)):
        if status[i] == 0:
            index[m] = i
            m += 1
    return kept, m


@kernel(error_model="numpy")
def top_sum(values, count, many):
    """Sum of the largest ``many`` of ``values[:count]``, reordered; the first one left out, the last one in."""
    first = max(count - many, 0)
    if 0 < first < count:
        select(values, count, first)
    after = 0.0
    for i in range(first):
        after = max(after, values[i])
    total, last = 0.0, np.inf
    for i in range(first, count):
        total += values[i]
        last = min(last, values[i])
    return total, after, last if count >= many else 0.0


# A division by zero must give a useless bound (NaN compares false), not an exception.
@kernel(error_model="numpy")
def bound_at(gram, norm, b, energy, reach, d, group, free, status, point, resid, scores, scratch, support, edge):
    """Proven lower bound of a node at a point.

    Parameters
    ----------
    gram, norm, b, energy, reach, d, group, free, status, point
        As in `relax`; the point is zero on dropped inputs.
    resid, scores, edge
        Results: h = Hu − b, c²/d of each input rounded up, and per group the threshold below and above which inputs are
        dropped and kept.
    scratch, support
        Work space.
    """
    n = len(b)
    gamma = 2.5 * (n + 8) * UNIT
    size = reach
    for i in range(n):
        resid[i] = -b[i]
    m = 0
    for i in range(n):
        if point[i] != 0.0:
            size += norm[i] * abs(point[i])
            support[m] = i
            m += 1
    for p in range(0, m - 3, 4):
        i0, i1, i2, i3 = support[p], support[p + 1], support[p + 2], support[p + 3]
        f0, f1, f2, f3 = point[i0], point[i1], point[i2], point[i3]
        r0, r1, r2, r3 = gram[i0], gram[i1], gram[i2], gram[i3]
        for j in range(n):
            resid[j] += f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
    for p in range(m // 4 * 4, m):
        f = point[support[p]]
        row = gram[support[p]]
        for j in range(n):
            resid[j] += f * row[j]
    quad = 0.0
    charge = 0.0
    kept = 0.0
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
        scores[i] = s
        if status[i] == 1:
            kept += s
    if len(free) == 1:
        t = 0
        for i in range(n):
            if status[i] == 0:
                scratch[t] = scores[i]
                t += 1
        total, after, last = top_sum(scratch, t, free[0])
        kept += total
        edge[0, 0] = after
        edge[0, 1] = last
    else:
        for g in range(len(free)):
            # Selection by repeated maximum: groups are small.
            previous = np.inf
            previous_index = -1
            taken = 0
            edge[g, 0] = 0.0
            edge[g, 1] = np.inf
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
                    edge[g, 1] = top
                else:
                    edge[g, 0] = top
                previous = top
                previous_index = arg
                taken += 1
    return energy - quad - kept - 2.0 * gamma * (energy + size * size + 2.0 * charge + kept)


@kernel(error_model="numpy")
def next_state(root, group, free, status, point, resid, scores, scratch, state):
    """New active set: z_i = min(1, β_i/θ) with Σ z = the group's room, β_i = √d_i |v_i|; whether it is another one.

    ``root`` is √d.
    """
    n = len(root)
    groups = len(free)
    theta = np.zeros(groups)
    for g in range(groups):
        t = 0
        for i in range(n):
            if status[i] == 0 and state[i] != 0 and group[i] == g:
                if state[i] != 2 and state[i] * point[i] <= 0.0:
                    continue
                scratch[t] = root[i] * abs(point[i])
                t += 1
        if t == 0:
            continue
        beta = scratch[:t]
        sort(beta)
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
    changed = False
    for i in range(n):
        if status[i] != 0:
            continue
        bar = theta[group[i]]
        x = point[i]
        if state[i] != 0:
            if state[i] != 2 and state[i] * x <= 0.0:
                new = 0
            elif root[i] * abs(x) >= bar:
                new = 2
            else:
                new = 1 if x > 0.0 else -1
        elif scores[i] > bar * bar * (1.0 + 1e-9):
            # Here the saving is c²/d with c = −h.
            new = 1 if resid[i] < 0.0 else -1
        else:
            new = 0
        if new != state[i]:
            changed = True
            state[i] = new
    # A group whose capacity is used up by whole inputs has no room for fractional ones.
    whole_inputs, fractional = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    weakest = np.full(groups, -1)
    for i in range(n):
        if status[i] != 0 or state[i] == 0:
            continue
        g = group[i]
        if state[i] != 2:
            fractional[g] += 1
            continue
        whole_inputs[g] += 1
        if weakest[g] < 0 or root[i] * abs(point[i]) < root[weakest[g]] * abs(point[weakest[g]]):
            weakest[g] = i
    for g in range(groups):
        if fractional[g] > 0 and weakest[g] >= 0 and whole_inputs[g] >= free[g]:
            state[weakest[g]] = 1 if point[weakest[g]] > 0.0 else -1
            changed = True
    return changed


@kernel(error_model="numpy")
def relax(
    gram, norm, b, energy, reach, d, group, free, status, state, rounds, stop,
    inputs, kept, count, a, r, u, save, edge, work, v, index, scores, out,
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
    inputs, kept, count, a, r
        The inputs that are not dropped, the kept ones first, and what `reduce` leaves of them.
    u, save, edge
        Results of the best round: the point, c²/d of each input rounded up, and per group the threshold below and
        above which inputs are dropped and kept.
    work, v, index, scores
        Work space.
    out
        Number of free active inputs, which are ``index``, and whose factor is in ``work``.
    """
    n = len(b)
    groups = len(free)
    best = -np.inf
    room = np.zeros(groups)
    resid = np.empty(n)
    point = np.empty(n)
    scratch = np.empty(n)
    limits = np.zeros((groups, 2))
    root = np.sqrt(d)
    place, support = np.empty(n, np.int64), np.empty(n, np.int64)
    signed, x = np.empty(n), np.empty(n)
    out[0] = 0
    for _ in range(rounds):
        m = 0
        for g in range(groups):
            room[g] = free[g]
        for p in range(kept, count):
            i = inputs[p]
            if state[i] != 0:
                index[m] = i
                place[m] = p
                v[m] = r[p]
                signed[m] = 0.0
                if state[i] == 2:
                    room[group[i]] -= 1.0
                else:
                    signed[m] = state[i] * root[i]
                m += 1
        for p in range(m):
            i = index[p]
            row = a[place[p]]
            line = work[p]
            for q in range(p, m):
                line[q] = row[place[q]]
            if signed[p] == 0.0:
                continue
            line[p] -= d[i]
            f = signed[p] / max(room[group[i]], 1e-3)
            if groups == 1:
                for q in range(p, m):
                    line[q] += f * signed[q]
            else:
                for q in range(p, m):
                    if group[index[q]] == group[i]:
                        line[q] += f * signed[q]
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
        value = bound_at(
            gram, norm, b, energy, reach, d, group, free, status, point, resid, scores, scratch, support, limits
        )  # fmt: skip
        out[0] = m
        if value > best:
            best = value
            for i in range(n):
                u[i] = point[i]
                save[i] = scores[i]
            for g in range(groups):
                edge[g, 0] = limits[g, 0]
                edge[g, 1] = limits[g, 1]
        if value >= stop or not next_state(root, group, free, status, point, resid, scores, scratch, state):
            break
    return best


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
def pick(d, status, u, work, m, index, v, candidates):
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
        top = largest(estimate, m)
        if estimate[top] < 0.0:
            break
        estimate[top] = -1.0
        i = index[top]
        cost = u[i] * u[i] / inverse_diagonal(work, m, top, v)
        if cost > best:
            best = cost
            arg = i
    return arg


@kernel(error_model="numpy")
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


@kernel(error_model="numpy")
def update_rest(inverse, k0, k1, delta):
    """Change the rows of M⁻¹ from ``k1`` on as a change of M's diagonal by −``delta`` between ``k0`` and ``k1`` does.

    M⁻¹ + M⁻¹E K EᵀM⁻¹ with K = (I − ΔP)⁻¹Δ and P = (M⁻¹)_EE.
    """
    n, m = len(inverse), k1 - k0
    system, middle, rows = np.empty((m, m)), np.empty((m, m)), np.empty((m, n - k1))
    for p in range(m):
        for q in range(m):
            system[p, q] = -delta[p] * inverse[k0 + p, k0 + q]
            middle[p, q] = 0.0
        system[p, p] += 1.0
        middle[p, p] = delta[p]
    solve_system(system, middle)
    for p in range(m):
        row = rows[p]
        for j in range(n - k1):
            row[j] = 0.0
        for q in range(m):
            f, other = middle[p, q], inverse[k0 + q]
            for j in range(n - k1):
                row[j] += f * other[k1 + j]
    for i in range(n - k1):
        target = inverse[k1 + i]
        for p in range(0, m, 4):
            if p + 4 <= m:
                r0, r1, r2, r3 = rows[p], rows[p + 1], rows[p + 2], rows[p + 3]
                f0, f1 = inverse[k0 + p, k1 + i], inverse[k0 + p + 1, k1 + i]
                f2, f3 = inverse[k0 + p + 2, k1 + i], inverse[k0 + p + 3, k1 + i]
                for j in range(n - k1):
                    target[k1 + j] += f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
            else:
                for o in range(p, m):
                    f, other = inverse[k0 + o, k1 + i], rows[o]
                    for j in range(n - k1):
                        target[k1 + j] += f * other[j]


@kernel(error_model="numpy")
def ascend(inverse, alpha, mu, d):
    """One sweep of coordinate ascent on Σ α_i log d_i + μ logdet(M), M = H' − D, given M⁻¹, which is overwritten.

    Each coordinate is optimal at d_i = s_i α_i/(α_i + μ), where s_i = d_i + 1/(M⁻¹)_ii is the largest feasible value;
    it falls to no less than ``SHRINK`` times its value. Later coordinates need M⁻¹ after this change: a rank-one update
    of what is left of its upper triangle where it fits into the cache; else sixteen coordinates at a time, so that the
    update is a matrix product.
    """
    n = len(d)
    width = n if n <= CACHED else 16
    for k0 in range(0, n, width):
        k1 = min(k0 + width, n)
        m = k1 - k0
        local = inverse if m == n else inverse[k0:k1, k0:k1].copy()
        delta, factor = np.zeros(m), np.zeros(4)
        for p0 in range(0, m, 4):
            p1 = min(p0 + 4, m)
            for p in range(p0, p1):
                row = local[p]
                for o in range(p0, p):
                    other = local[o]
                    g = factor[o - p0] * other[p]
                    for j in range(p, m):
                        row[j] += g * other[j]
                t = row[p]
                most = d[k0 + p] + 1.0 / t
                new = max(most * alpha[k0 + p] / (alpha[k0 + p] + mu), SHRINK * d[k0 + p])
                delta[p] = new - d[k0 + p]
                d[k0 + p] = new
                factor[p - p0] = delta[p] / (1.0 - delta[p] * t)
            if p1 == m:
                break
            r0, r1, r2, r3 = local[p0], local[p0 + 1], local[p0 + 2], local[p0 + 3]
            for q in range(p1, m):
                f0, f1, f2, f3 = factor[0] * r0[q], factor[1] * r1[q], factor[2] * r2[q], factor[3] * r3[q]
                row = local[q]
                for j in range(q, m):
                    row[j] += f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
        if k1 == n:
            return
        update_rest(inverse, k0, k1, delta)


@kernel(error_model="numpy")
def prove(gram, d, index, m, inner, work):
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
    return factorize(work, m, m)


@kernel(error_model="numpy")
def eliminate(gram, b, kept, free, a, r):
    """Schur complement (upper triangle) and residual of the free inputs after the kept ones; returns their saving.

    NaN where the kept inputs are dependent: then comparisons are false.
    """
    count = len(kept)
    m = count + len(free)
    work, right = np.empty((m, m)), np.empty(m)
    index = np.empty(m, np.int64)
    for p in range(m):
        index[p] = kept[p] if p < count else free[p - count]
    saving = reduce(gram, b, index, count, m, work, right)
    for p in range(len(free)):
        r[p] = right[count + p]
        for q in range(p, len(free)):
            a[p, q] = work[count + p, count + q]
    return saving


@kernel(error_model="numpy")
def make_tries(base, free, code, number, s, price, gap, child, value, root, order):
    """A binary tree for the codes of each cluster within a gap, with the best value s − price of its continuations.

    Parameters
    ----------
    base, free, code, number, s
        As in `kernels.clusters`.
    child, value
        Results: the nodes after a 0 and a 1, −1 where there is no code, and the best value of the codes below.
    root
        Result: the root of each cluster's tree.
    order
        Result: the clusters, those of fewest codes within the gap first, so that the enumeration branches late.

    Returns
    -------
    float
        The sum of the best values.
    """
    groups = len(free)
    total = 0.0
    choices = np.zeros(groups)
    count = 0
    for g in range(groups):
        best = -np.inf
        for at in range(base[g], base[g + 1]):
            best = max(best, s[at] - price * number[at])
        total += best
        root[g] = count
        child[count] = -1
        value[count] = best
        count += 1
        for at in range(base[g], base[g + 1]):
            x = s[at] - price * number[at]
            if best - x > gap:
                continue
            choices[g] += 1.0
            node = root[g]
            for d in range(free[g] - 1, -1, -1):
                bit = (code[at] >> d) & 1
                if child[node, bit] < 0:
                    child[node, bit] = count
                    child[count] = -1
                    value[count] = x
                    count += 1
                node = child[node, bit]
                value[node] = max(value[node], x)
        choices[g] /= 1.0 + free[g]
    rank(choices, order)
    return total


@kernel(error_model="numpy")
def free_tries(savings, child, value, root):
    """The same for inputs that are clusters of their own, kept for a value and dropped for nothing."""
    for p in range(len(savings)):
        root[p] = 3 * p
        child[3 * p, 0] = 3 * p + 1
        child[3 * p, 1] = 3 * p + 2
        value[3 * p] = max(savings[p], 0.0)
        value[3 * p + 1] = 0.0
        value[3 * p + 2] = savings[p]


@kernel(error_model="numpy")
def near_sets(a, r, room, child, best, root, order, free, gap, threshold, most, found):
    """Sets of exactly ``room`` free inputs within a gap whose saving exceeds a threshold.

    Parameters
    ----------
    a, r
        Schur complement (upper triangle) and residual of the free inputs, clusters in ``order``.
    child, best, root, order, free
        See `make_tries`; ``best`` are the values.
    gap
        How much the costs of a set, the differences of values to those of the best codes, may add up to.
    threshold
        Least saving.
    most
        Limit of work, in multiplications.
    found
        Result: positions of the inputs of each set, shape (sets, room).

    Returns
    -------
    int
        How many there are; −1 if there is no room for them in ``found``; −2 where the work is too much.
    """
    m = len(r)
    count = 0
    if room == 0:
        return 1 if threshold < 0.0 else 0
    if room > m:
        return 0
    cluster = np.empty(m, np.int64)
    depth = np.empty(m, np.int64)
    t = 0
    for x in range(len(order)):
        for d in range(free[order[x]]):
            cluster[t] = order[x]
            depth[t] = d
            t += 1
    if room == 1:
        for j in range(m):
            if r[j] * r[j] > threshold * a[j, j]:
                if count == len(found):
                    return -1
                found[count, 0] = j
                count += 1
        return count
    levels = room - 1
    # The Schur complement is kept up to this level; below, its rows are computed where they are needed.
    eager = max(levels - LAZY, 0)
    matrix = np.empty((eager + 1, m, m))
    rows = np.empty((levels, m))
    pivots = np.empty(levels)
    vector = np.empty((levels, m))
    diagonal = np.empty((levels, m))
    saved = np.zeros(levels)
    position = np.zeros(levels, np.int64)
    begun = np.zeros(levels, np.int64)
    cost = np.zeros(levels)
    chosen = np.empty(room, np.int64)
    for i in range(m):
        vector[0, i] = r[i]
        diagonal[0, i] = a[i, i]
        for j in range(i, m):
            matrix[0, i, j] = a[i, j]
    begun[0] = root[cluster[0]]
    work = 0
    q = 0
    while q >= 0:
        t = position[q]
        if t + room - q > m:
            q -= 1
            continue
        g = cluster[t]
        top_value = best[root[g]]
        out, into = child[begun[q], 0], child[begun[q], 1]
        with_it = cost[q] + top_value - best[into] if into >= 0 else np.inf
        without = cost[q] + top_value - best[out] if out >= 0 else np.inf
        # The state of this level: the input is left out.
        position[q] = t + 1 if without <= gap else m
        closes = depth[t] + 1 == free[g]
        following_root = root[cluster[t + 1]] if t + 1 < m else 0
        begun[q] = following_root if closes else out
        if closes:
            cost[q] = without
        if with_it > gap:
            continue
        pivot = diagonal[q, t]
        if not pivot > 0.0:
            return -2
        chosen[q] = t
        f = vector[q, t] / pivot
        value = saved[q] + vector[q, t] * f
        top = rows[q]
        source = matrix[min(q, eager), t]
        for j in range(t + 1, m):
            top[j] = source[j]
        for p in range(eager, q):
            other = rows[p]
            ratio = other[t] / pivots[p]
            for j in range(t + 1, m):
                top[j] -= ratio * other[j]
        work += (m - t) * (2 + max(q - eager, 0))
        v, dg = vector[q], diagonal[q]
        inverse = 1.0 / pivot
        if q == levels - 1:
            # The saving of the last input is v²/d after the input t is in; its own cost is not looked at.
            need = threshold - value
            peak = -np.inf
            for j in range(t + 1, m):
                x = v[j] - top[j] * f
                peak = max(peak, x * x - need * (dg[j] - top[j] * top[j] * inverse))
            if not peak <= 0.0:
                for j in range(t + 1, m):
                    x = v[j] - top[j] * f
                    if not x * x - need * (dg[j] - top[j] * top[j] * inverse) <= 0.0:
                        if count == len(found):
                            return -1
                        for p in range(q + 1):
                            found[count, p] = chosen[p]
                        found[count, q + 1] = j
                        count += 1
            continue
        pivots[q] = pivot
        q += 1
        saved[q] = value
        position[q] = t + 1
        begun[q] = following_root if closes else into
        cost[q] = with_it if closes else cost[q - 1]
        following, remaining = vector[q], diagonal[q]
        for j in range(t + 1, m):
            following[j] = v[j] - top[j] * f
            remaining[j] = dg[j] - top[j] * top[j] * inverse
        if q <= eager:
            work += (m - t) * (m - t) // 2
            for i in range(t + 1, m):
                ratio = top[i] * inverse
                above = matrix[q - 1, i]
                row = matrix[q, i]
                for j in range(i, m):
                    row[j] = above[j] - ratio * top[j]
        if work > most:
            return -2
    return count


@kernel(error_model="numpy")
def estimate(base, number, s, price, gap):
    """About how many sets, of any size, lie within a gap: their costs are added up in steps of the gap's 64th part."""
    steps = 64
    sets = np.zeros(steps + 1)
    sets[0] = 1.0
    costs = np.empty(steps + 1)
    for g in range(len(base) - 1):
        top = -np.inf
        for at in range(base[g], base[g + 1]):
            top = max(top, s[at] - price * number[at])
        for x in range(len(costs)):
            costs[x] = 0.0
        for at in range(base[g], base[g + 1]):
            x = (top - (s[at] - price * number[at])) / gap * steps
            if x < steps + 0.5:
                costs[int(x + 0.5)] += 1.0
        following = np.zeros(steps + 1)
        for x in range(steps + 1):
            if costs[x] > 0.0:
                for y in range(steps + 1 - x):
                    following[x + y] += costs[x] * sets[y]
        sets = following
    return sets.sum()


@kernel(error_model="numpy")
def before(bound, turn, x, y):
    """Whether node x comes before node y: smaller bounds first, then older nodes."""
    return bound[x] < bound[y] or (bound[x] == bound[y] and turn[x] < turn[y])


@kernel(error_model="numpy")
def push(heap, size, bound, turn, node):
    """Add a node to the heap of ``size`` nodes."""
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if not before(bound, turn, node, heap[parent]):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = node


@kernel(error_model="numpy")
def pop(heap, size, bound, turn):
    """Take the first node off the heap of ``size`` nodes."""
    first = heap[0]
    last = heap[size - 1]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size - 1:
            break
        if child + 1 < size - 1 and before(bound, turn, heap[child + 1], heap[child]):
            child += 1
        if not before(bound, turn, heap[child], last):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    return first


@kernel(error_model="numpy")
def climb(gram, d, alpha, mu, tuned, inputs, kept, m, a, work, inverse):
    """A sweep of coordinate ascent on a node's diagonal, into ``tuned``; False where its proof fails.

    ``inputs``, ``kept``, ``m`` and ``a`` as in `relax`.
    """
    copy(d, tuned)
    free = m - kept
    for p in range(free):
        row, line = a[kept + p], work[p]
        for q in range(p, free):
            line[q] = row[kept + q]
        line[p] -= d[inputs[kept + p]]
    if free == 0 or not factorize(work, free, free):
        return False
    invert_factor(work, free, inverse)
    if free > CACHED:
        for p in range(free):
            for q in range(p):
                inverse[p, q] = inverse[q, p]
    values, weights = np.empty(free), np.empty(free)
    for p in range(free):
        values[p] = d[inputs[kept + p]]
        weights[p] = alpha[inputs[kept + p]]
    ascend(inverse, weights, mu, values)
    for p in range(free):
        if not values[p] > 0.0:
            return False
    for shrink in (1.0, 0.97, 0.8):
        for p in range(free):
            tuned[inputs[kept + p]] = shrink * values[p]
        if prove(gram, tuned, inputs, m, kept, work):
            return True
    return False


@kernel(error_model="numpy")
def near_count(save, index, m, room, price, gap, most):
    """About how many sets of ``room`` single inputs lie within a gap, by steps of the gap's 24th part."""
    steps = 24
    raw = 1.0
    for j in range(room):
        raw *= (m - j) / (j + 1.0)
    if raw <= most:
        return raw
    number = np.zeros((room + 1, steps + 1))
    number[0, 0] = 1.0
    for p in range(m):
        x = (save[index[p]] - price) / gap * steps
        # Costs of the input in and out: one of them is none.
        drop = int(min(max(x, 0.0), steps + 1.0) + 0.5)
        keep = int(min(max(-x, 0.0), steps + 1.0) + 0.5)
        for j in range(min(room, p + 1), -1, -1):
            line = number[j]
            if drop > 0:
                for y in range(steps, -1, -1):
                    line[y] = line[y - drop] if y >= drop else 0.0
            if j > 0:
                previous = number[j - 1]
                for y in range(keep, steps + 1):
                    line[y] += previous[y - keep]
    return number[room].sum()


@kernel(error_model="numpy")
def close_by_sets(
    inputs, kept, total, reduced, residual, base, status, room, save, edge, value, cut, energy, margin, most, found
):  # fmt: skip
    """Enumerate the sets of a node of one group whose bound stays below the cut.

    ``inputs``, ``kept`` and ``total`` as in `relax`; ``reduced``, ``residual`` and ``base`` are what `reduce` left and
    returned; ``value`` is the bound that belongs to the savings ``save``. Returns the number of sets in ``found`` (rows
    of flags) that have to be evaluated exactly, or a negative number where the node cannot be closed so.
    """
    n = len(status)
    index = inputs[kept:total]
    m = total - kept
    price = 0.5 * (edge[0] + edge[1])
    gap = (cut - value) * (1.0 + 1e-12)
    # A NaN would find no set to be better than the cut.
    if not base < np.inf or not near_count(save, index, m, room, price, gap, most) <= most:
        return -2
    key = np.empty(m)
    for p in range(m):
        key[p] = -abs(save[index[p]] - price)
    order = np.empty(m, np.int64)
    rank(key, order)
    child, best = np.empty((3 * m, 2), np.int64), np.empty(3 * m)
    root = np.empty(m, np.int64)
    a, r, savings = np.empty((m, m)), np.empty(m), np.empty(m)
    for p in range(m):
        savings[p] = save[index[order[p]]] - price
        r[p] = residual[kept + order[p]]
        for q in range(p, m):
            low, high = min(order[p], order[q]), max(order[p], order[q])
            a[p, q] = reduced[kept + low, kept + high]
    free_tries(savings, child, best, root)
    sets = np.empty((len(found), room), np.int64)
    count = near_sets(
        a, r, room, child, best, root, np.arange(m), np.ones(m, np.int64), gap, energy - base - cut - margin,
        np.int64(MOST_WORK), sets,
    )  # fmt: skip
    for x in range(count):
        for i in range(n):
            found[x, i] = status[i] == 1
        for p in range(room):
            found[x, index[order[sets[x, p]]]] = True
    return count


@kernel(error_model="numpy")
def error_of(gram, b, chosen, energy):
    """Error of the best weights on a set, as computed."""
    n = len(b)
    kept = np.empty(n, np.int64)
    m = 0
    for i in range(n):
        if chosen[i]:
            kept[m] = i
            m += 1
    return energy - reduce(gram, b, kept, m, m, np.empty((m, m)), np.empty(m))


@kernel(error_model="numpy")
def release(node, row, uses, spare, spare_rows, counts):
    """Give a node and its share of a minorant back."""
    spare[counts[1]] = node
    counts[1] += 1
    uses[row[node]] -= 1
    if uses[row[node]] == 0:
        spare_rows[counts[2]] = row[node]
        counts[2] += 1


@kernel(error_model="numpy")
def run(
    gram, norm, b, energy, reach, group, upper, cut, margin, most, budget, last,
    status, state, room, bound, turn, row, spare, d, uses, spare_rows, heap, counts, closed, found,
):  # fmt: skip
    """Best-first branch and bound with the diagonal dual, until something has to be done outside.

    Parameters
    ----------
    gram, norm, b, energy, reach, group
        As in `relax`.
    upper, cut, margin
        Error of the incumbent, the bound that closes a node, and the rounding of a set's computed error.
    most
        Nodes of one group with about so many sets within the gap are enumerated.
    budget, last
        Work of this call, in nodes; number of nodes at which to stop.
    status, state, room, bound, turn, row
        The nodes. ``row`` is the row of their minorant in ``d``, ``uses`` how many nodes share it.
    spare, spare_rows, heap
        Stacks of unused nodes and rows; open nodes, the one of smallest bound first.
    counts
        Open nodes, spare nodes, spare rows, turns so far, nodes expanded, entries of ``found``.
    closed
        ``closed[0]`` is the smallest bound of a closed node, or of what was cut off one.
    found
        Result: flags of sets that have to be evaluated exactly.

    Returns
    -------
    int
        One of the constants above.
    """
    n = len(b)
    groups = room.shape[1]
    # A constant as an argument would be a type of its own, for which numba compiles once more.
    rounds = np.int64(ROUNDS)
    u, save, v, scores = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    edge = np.zeros((groups, 2))
    work, other, inverse, reduced = np.empty((n, n)), np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    index, inputs = np.zeros(n, np.int64), np.zeros(n, np.int64)
    residual = np.zeros(n)
    out = np.zeros(1)
    alpha, tuned = np.zeros(n), np.zeros(n)
    trial = np.empty(n, np.int8)
    chosen = np.empty(n, np.bool_)
    while counts[0] > 0 and bound[heap[0]] < cut:
        if budget <= 0 or counts[4] >= last:
            return LIMIT
        if counts[1] < 1 or counts[2] < 1:
            return FULL
        # With very many open nodes a recent one is worked on, whose subtree is small.
        node = heap[counts[0] - 1] if counts[0] > MOST_OPEN else pop(heap, counts[0], bound, turn)
        counts[0] -= 1
        counts[4] += 1
        budget -= 1
        st, sg, rm = status[node], state[node], room[node]
        kept, live = alive(st, inputs)
        if kept == live:
            for i in range(n):
                chosen[i] = st[i] == 1
            error = error_of(gram, b, chosen, energy)
            if error - margin >= cut:
                closed[0] = min(closed[0], cut)
            else:
                copy(chosen, found[0])
                counts[5] = 1
            release(node, row, uses, spare, spare_rows, counts)
            if counts[5]:
                return FOUND
            continue
        base = reduce(gram, b, inputs, kept, live, reduced, residual)
        now = relax(
            gram, norm, b, energy, reach, d[row[node]], group, rm, st, sg, rounds, cut,
            inputs, kept, live, reduced, residual, u, save, edge, work, v, index, scores, out,
        )  # fmt: skip
        count = -1
        if now < cut and groups == 1:
            count = close_by_sets(
                inputs, kept, live, reduced, residual, base, st, rm[0], save, edge[0], now, cut, energy, margin,
                EARLY * most, found,
            )  # fmt: skip
        if now < cut and count < 0:
            budget -= 1
            mean = emphasis(group, rm, st, u, d[row[node]], save, edge, FLOOR, alpha)
            if mean > 0.0 and climb(
                gram, d[row[node]], alpha, TREE_MU * mean, tuned, inputs, kept, live, reduced, other, inverse
            ):
                copy(sg, trial)
                better = relax(
                    gram, norm, b, energy, reach, tuned, group, rm, st, trial, rounds, cut,
                    inputs, kept, live, reduced, residual, u, save, edge, work, v, index, scores, out,
                )  # fmt: skip
                if better > now:
                    now = better
                    copy(trial, sg)
                    old = row[node]
                    counts[2] -= 1
                    row[node] = spare_rows[counts[2]]
                    copy(tuned, d[row[node]])
                    uses[row[node]] = 1
                    uses[old] -= 1
                    if uses[old] == 0:
                        spare_rows[counts[2]] = old
                        counts[2] += 1
                else:
                    # The work arrays belong to the last relaxation: back to the better one.
                    now = relax(
                        gram, norm, b, energy, reach, d[row[node]], group, rm, st, sg, rounds, cut,
                        inputs, kept, live, reduced, residual, u, save, edge, work, v, index, scores, out,
                    )  # fmt: skip
            if now < cut and groups == 1:
                count = close_by_sets(
                    inputs, kept, live, reduced, residual, base, st, rm[0], save, edge[0], now, cut, energy, margin,
                    most, found,
                )  # fmt: skip
        if count >= 0:
            budget -= 4
            closed[0] = min(closed[0], cut)
            release(node, row, uses, spare, spare_rows, counts)
            counts[5] = count
            if count > 0:
                return FOUND
            continue
        value = max(now, bound[node])
        if value >= cut:
            closed[0] = min(closed[0], value)
            release(node, row, uses, spare, spare_rows, counts)
            continue
        if counts[4] % TRIALS == 1:
            for i in range(n):
                chosen[i] = st[i] == 1 or (st[i] == 0 and save[i] >= edge[group[i], 1])
        active = int(out[0])
        rounded = counts[4] % TRIALS == 1 and error_of(gram, b, chosen, energy) < upper * (1.0 - 1e-9)
        branch = pick(d[row[node]], st, u, work, active, index, v, CANDIDATES)
        if fix(now, cut, group, rm, st, save, edge):
            # What was cut off is only known to reach the cut.
            closed[0] = min(closed[0], cut)
            settle(group, rm, st)
        free = 0
        fallback = -1
        for i in range(n):
            if st[i] == 0:
                free += 1
                if fallback < 0 or save[i] > save[fallback]:
                    fallback = i
        bound[node] = value
        if free > 0:
            if branch < 0 or st[branch] != 0:
                branch = fallback
            child = spare[counts[1] - 1]
            counts[1] -= 1
            copy(st, status[child])
            copy(sg, state[child])
            copy(rm, room[child])
            bound[child] = value
            row[child] = row[node]
            uses[row[node]] += 1
            st[branch] = -1
            settle(group, rm, st)
            status[child, branch] = 1
            room[child, group[branch]] -= 1
            settle(group, room[child], status[child])
            turn[node] = counts[3]
            turn[child] = counts[3] + 1
            counts[3] += 2
            push(heap, counts[0], bound, turn, node)
            push(heap, counts[0] + 1, bound, turn, child)
            counts[0] += 2
        else:
            turn[node] = counts[3]
            counts[3] += 1
            push(heap, counts[0], bound, turn, node)
            counts[0] += 1
        if rounded:
            copy(chosen, found[0])
            counts[5] = 1
            return ROUNDED
    return DONE
