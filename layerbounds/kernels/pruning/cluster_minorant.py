"""Compiled ascent of block-diagonal minorants, and clusters for them; arrays as in `kernels.clusters`."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import factorize, invert_by_sweeps


@kernel(error_model="numpy")
def ascend(inverse, position, block, first, member, place, count, gradient, mu, side):
    """Block coordinate ascent on Σ ⟨A_g, B_g⟩ + μ logdet(H − B), with a logarithm in place of the linear term.

    With S the largest feasible block when the others stay, and in coordinates that make S the identity and A diagonal,
    the optimal block has the eigenvalues α/(α + μ'), α the eigenvalue of A times the present diagonal entry of B.

    Parameters
    ----------
    inverse
        (H − B)⁻¹ on the inputs that are left, at rows ``position``; updated.
    block, first, member, place, count
        As in `relax`; ``count`` inputs of each cluster are left. ``block`` is updated.
    gradient
        Supergradients A_g, in the order of ``place``.
    mu, side
        Barrier weight, and the least α, relative to the mean of the α.
    """
    groups = len(count)
    total = 0.0
    size = 0
    for g in range(groups):
        size += count[g]
        for p in range(count[g]):
            for q in range(count[g]):
                total += gradient[g, p, q] * block[g, place[first[g] + p], place[first[g] + q]]
    if not total > 0.0:
        return False
    barrier = mu * total / size
    for g in range(groups):
        m = count[g]
        if m == 0:
            continue
        f0 = first[g]
        rows = np.empty((m, size))
        local = np.empty((m, m))
        old = np.empty((m, m))
        most = np.empty((m, m))
        for p in range(m):
            rows[p] = inverse[position[member[f0 + place[f0 + p]]]]
        for p in range(m):
            for q in range(m):
                local[p, q] = rows[p, position[member[f0 + place[f0 + q]]]]
                old[p, q] = block[g, place[f0 + p], place[f0 + q]]
        for p in range(m):
            for q in range(m):
                most[p, q] = 0.5 * (local[p, q] + local[q, p])
        if not invert_by_sweeps(most, m):
            continue
        most += old
        half = most.copy()
        if not factorize(half, m, m):
            continue
        for p in range(m):
            for q in range(p):
                half[p, q] = 0.0
        # S = UᵀU with U = half: coordinates y = Uv.
        values, vectors = np.linalg.eigh(np.dot(half, np.dot(np.ascontiguousarray(gradient[g, :m, :m]), half.T)))
        basis = np.dot(half.T, vectors)
        solved = np.linalg.solve(basis, old)
        present = np.linalg.solve(basis, solved.T)
        new = np.zeros((m, m))
        for k in range(m):
            alpha = max(values[k] * present[k, k], side * barrier / mu)
            f = alpha / (alpha + barrier)
            for p in range(m):
                for q in range(m):
                    new[p, q] += f * basis[p, k] * basis[q, k]
        change = np.empty((m, m))
        system = np.empty((m, m))
        for p in range(m):
            for q in range(m):
                change[p, q] = 0.5 * (new[p, q] + new[q, p]) - old[p, q]
        system = np.eye(m) - np.dot(change, local)
        middle = np.linalg.solve(system, change)
        inverse += np.dot(np.ascontiguousarray(rows.T), np.dot(middle, rows))
        for p in range(m):
            for q in range(m):
                block[g, place[f0 + p], place[f0 + q]] += change[p, q]
    return True


@kernel(error_model="numpy")
def link_clusters(link, size, most):
    """Merge the pair of clusters with the largest link/√(product of sizes) until no pair fits; returns the labels.

    ``link`` and ``size`` are overwritten.
    """
    n = len(size)
    label = np.arange(n)
    alive = np.ones(n, np.bool_)
    while True:
        best = -1.0
        first = -1
        second = -1
        for i in range(n):
            if not alive[i]:
                continue
            row = link[i]
            for j in range(i + 1, n):
                if alive[j] and size[i] + size[j] <= most and row[j] * row[j] > best * size[i] * size[j]:
                    value = row[j] * row[j] / (size[i] * size[j])
                    if value > best:
                        best = value
                        first = i
                        second = j
        if first < 0:
            return label
        alive[second] = False
        size[first] += size[second]
        for j in range(n):
            link[first, j] += link[second, j]
            link[j, first] = link[first, j]
            if label[j] == second:
                label[j] = first
