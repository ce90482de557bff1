"""Compiled improvement and proof of the diagonal of the perspective dual (docs/pruning-bounds.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import (
    copy,
    factorize,
    invert_factor,
    solve_system,
)

UNIT = 2.0**-53
#: Least share of an entry that is left by a sweep: the relaxation finds inputs of very small entries at no cost.
SHRINK = 0.7
#: Order of the largest matrix whose inverse fits into the cache and is updated one coordinate at a time; how many
#: coordinates are changed before the rest of a larger one.
CACHED, WIDTH = 128, 16


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


@kernel(error_model="numpy", nested=True)
def update_rest(inverse, n, k0, k1, delta):
    """Carry a change of M's diagonal by −``delta`` between ``k0`` and ``k1`` over to the rows of M⁻¹ from ``k1`` to n.

    M⁻¹ + M⁻¹E K EᵀM⁻¹ with K = (I − ΔP)⁻¹Δ and P = (M⁻¹)_EE.
    """
    m = k1 - k0
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


@kernel(error_model="numpy", inline=True)
def ascend_block(local, begin, alpha, mu, d, delta):
    """The coordinates from ``begin`` on, ``local`` being their block of M⁻¹; ``delta`` becomes how much they grow.

    Each coordinate is optimal at d_i = s_i α_i/(α_i + μ), where s_i = d_i + 1/(M⁻¹)_ii is the largest feasible value;
    it falls to no less than ``SHRINK`` times its value. Later coordinates need M⁻¹ after this change: a rank-one update
    of what is left of its upper triangle.
    """
    m = len(delta)
    factor = np.zeros(4)
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
            most = d[begin + p] + 1.0 / t
            new = max(most * alpha[begin + p] / (alpha[begin + p] + mu), SHRINK * d[begin + p])
            delta[p] = new - d[begin + p]
            d[begin + p] = new
            factor[p - p0] = delta[p] / (1.0 - delta[p] * t)
        if p1 == m:
            break
        r0, r1, r2, r3 = local[p0], local[p0 + 1], local[p0 + 2], local[p0 + 3]
        for q in range(p1, m):
            f0, f1, f2, f3 = factor[0] * r0[q], factor[1] * r1[q], factor[2] * r2[q], factor[3] * r3[q]
            row = local[q]
            for j in range(q, m):
                row[j] += f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]


@kernel(error_model="numpy")
def ascend(inverse, alpha, mu, d):
    """One sweep of coordinate ascent on Σ α_i log d_i + μ logdet(M), M = H' − D, given M⁻¹, which is overwritten.

    This serves matrices of orders up to ``CACHED``; see `ascend_block`. ``inverse`` may have more rows than ``d``.
    """
    ascend_block(inverse, 0, alpha, mu, d, np.zeros(len(d)))


@kernel(error_model="numpy")
def ascend_wide(inverse, alpha, mu, d):
    """The same for larger matrices: ``WIDTH`` coordinates at a time, so that the update of the rest is a product."""
    n = len(d)
    for k0 in range(0, n, WIDTH):
        k1 = min(k0 + WIDTH, n)
        local, delta = np.empty((k1 - k0, k1 - k0)), np.zeros(k1 - k0)
        for p in range(k1 - k0):
            copy(inverse[k0 + p, k0:k1], local[p])
        ascend_block(local, k0, alpha, mu, d, delta)
        if k1 == n:
            return
        update_rest(inverse, n, k0, k1, delta)


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


@kernel(error_model="numpy", nested=True)
def climb(gram, d, alpha, mu, tuned, inputs, kept, m, a, work, inverse, wide):
    """A sweep of coordinate ascent on a node's diagonal, into ``tuned``; False where its proof fails.

    ``inputs``, ``kept``, ``m`` and ``a`` as in `relax`. Where ``wide`` is None there are no more than ``CACHED``
    inputs, and what larger matrices need is not compiled.
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
    values, weights = np.empty(free), np.empty(free)
    for p in range(free):
        values[p] = d[inputs[kept + p]]
        weights[p] = alpha[inputs[kept + p]]
    if wide is not None and free > CACHED:
        for p in range(free):
            for q in range(p):
                inverse[p, q] = inverse[q, p]
        ascend_wide(inverse, weights, mu, values)
    else:
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
