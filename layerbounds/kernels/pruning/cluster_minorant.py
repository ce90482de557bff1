"""Compiled ascent of block-diagonal minorants, and clusters for them; arrays as in `kernels.clusters`."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import copy, factorize, invert_by_sweeps, multiply, solve_system


@kernel(error_model="numpy", inline=True)
def best_block(gradient, old, most, barrier, least, change):
    """What the optimal block has more than the ``old`` one; False where the largest feasible one is not definite.

    With ``most`` = S the largest feasible block when the others stay, and in coordinates that make S the identity and
    ``gradient`` = A diagonal, the optimal block has the eigenvalues α/(α + ``barrier``), α the eigenvalue of A times
    the present diagonal entry of B, at ``least`` so large.
    """
    m = len(old)
    half, lower, first, second = np.zeros((m, m)), np.zeros((m, m)), np.empty((m, m)), np.empty((m, m))
    basis, present = np.empty((m, m)), np.empty((m, m))
    if not factorize(most, m, m):
        return False
    for p in range(m):
        for q in range(p, m):
            half[p, q] = lower[q, p] = most[p, q]
    # S = UᵀU with U = half: coordinates y = Uv.
    multiply(gradient, lower, first)
    multiply(half, first, second)
    values, vectors = np.linalg.eigh(second)
    for p in range(m):
        for q in range(m):
            first[p, q] = vectors[p, q]
    multiply(lower, first, basis)
    for p in range(m):
        copy(basis[p], first[p])
        copy(old[p], second[p])
    solve_system(first, second)
    for p in range(m):
        copy(basis[p], first[p])
        for q in range(m):
            present[p, q] = second[q, p]
    solve_system(first, present)
    for p in range(m):
        for q in range(m):
            second[p, q] = 0.0
    for k in range(m):
        alpha = max(values[k] * present[k, k], least)
        f = alpha / (alpha + barrier)
        for p in range(m):
            for q in range(m):
                second[p, q] += f * basis[p, k] * basis[q, k]
    total = 0.0
    for p in range(m):
        for q in range(m):
            change[p, q] = 0.5 * (second[p, q] + second[q, p]) - old[p, q]
            total += abs(change[p, q])
    return total < np.inf


@kernel(error_model="numpy", nested=True)
def add_products(left, right, target):
    """Add LᵀR to a matrix, four rows of each at a time."""
    m, n = left.shape
    for i in range(n):
        line = target[i]
        for p in range(0, m - 3, 4):
            f0, f1, f2, f3 = left[p, i], left[p + 1, i], left[p + 2, i], left[p + 3, i]
            r0, r1, r2, r3 = right[p], right[p + 1], right[p + 2], right[p + 3]
            for j in range(n):
                line[j] += f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
        for p in range(m // 4 * 4, m):
            f, row = left[p, i], right[p]
            for j in range(n):
                line[j] += f * row[j]


@kernel(error_model="numpy")
def ascend(inverse, position, block, first, member, place, count, gradient, mu, side):
    """Block coordinate ascent on Σ ⟨A_g, B_g⟩ + μ logdet(H − B), with a logarithm in place of the linear term.

    Each cluster gets its `best_block` when the others stay.

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
    total = 0.0
    size = 0
    for g in range(len(count)):
        size += count[g]
        for p in range(count[g]):
            for q in range(count[g]):
                total += gradient[g, p, q] * block[g, place[first[g] + p], place[first[g] + q]]
    if not total > 0.0:
        return False
    barrier = mu * total / size
    for g in range(len(count)):
        m = count[g]
        f0 = first[g]
        rows, product = np.empty((m, size)), np.empty((m, size))
        local, old, most, slope = np.empty((m, m)), np.empty((m, m)), np.empty((m, m)), np.empty((m, m))
        change, system = np.empty((m, m)), np.empty((m, m))
        for p in range(m):
            copy(inverse[position[member[f0 + place[f0 + p]]]], rows[p])
        for p in range(m):
            for q in range(m):
                local[p, q] = rows[p, position[member[f0 + place[f0 + q]]]]
                old[p, q] = block[g, place[f0 + p], place[f0 + q]]
                slope[p, q] = gradient[g, p, q]
        for p in range(m):
            for q in range(m):
                most[p, q] = 0.5 * (local[p, q] + local[q, p])
        if m == 0 or not invert_by_sweeps(most, m):
            continue
        for p in range(m):
            for q in range(m):
                most[p, q] += old[p, q]
        if not best_block(slope, old, most, barrier, side * barrier / mu, change):
            continue
        multiply(change, local, system)
        for p in range(m):
            for q in range(m):
                system[p, q] = (1.0 if p == q else 0.0) - system[p, q]
                block[g, place[f0 + p], place[f0 + q]] += change[p, q]
        solve_system(system, change)
        multiply(change, rows, product)
        add_products(rows, product, inverse)
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
