"""Compiled diagonal perspective dual of best subset selection: its bound at a point, and the active-set method.

Arrays over inputs: ``status`` is 1 (kept), −1 (dropped) or 0 (free); ``state`` is the active set of the relaxation: 0
at zero, ±1 fractional with the sign of v, 2 whole (z = 1). See docs/pruning-bounds.md.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import (
    back_substitute,
    backward,
    factorize,
    forward,
    select,
    sort,
)

UNIT = 2.0**-53


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


@kernel(error_model="numpy", nested=True)
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
@kernel(error_model="numpy", nested=True)
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


@kernel(error_model="numpy", nested=True)
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
