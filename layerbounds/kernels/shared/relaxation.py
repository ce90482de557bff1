"""Compiled parts of the block perspective dual of units that several rows share (docs/shared-engine.md).

Inputs are ordered by units: unit g has the rows ``first[g]`` to ``first[g + 1]`` of a matrix. ``block[g]`` is its block
of the minorant, padded. Arrays over inputs have a column for each right-hand side.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel
from layerbounds.kernels.linear_algebra import factorize, forward, invert_by_sweeps, sort

UNIT = 2.0**-53
#: The least weight of a unit that is left.
LEAST = 1e-3


@kernel(error_model="numpy")
def take_part(matrix, rows, columns, out):
    """Some rows and columns of a matrix."""
    for i in range(len(rows)):
        source, line = matrix[rows[i]], out[i]
        for j in range(len(columns)):
            line[j] = source[columns[j]]


@kernel(error_model="numpy")
def penalised(gram, first, units, block, z, out):
    """The lower triangle of H + B(1/z − 1) on the units ``units``, which ``first`` numbers anew."""
    for i in range(len(gram)):
        source, line = gram[i], out[i]
        for j in range(i + 1):
            line[j] = source[j]
    for k in range(len(units)):
        f = first[k]
        weight = 1.0 / z[k] - 1.0
        if weight != 0.0:
            b = block[units[k]]
            for p in range(first[k + 1] - f):
                for q in range(p + 1):
                    out[f + p, f + q] += weight * b[p, q]


@kernel(error_model="numpy")
def take_blocks(matrix, block, first, units, part):
    """Take parts of units' blocks off a matrix, in which ``first`` numbers their inputs."""
    for k in range(len(units)):
        f, b = first[k], block[units[k]]
        for p in range(first[k + 1] - f):
            for q in range(first[k + 1] - f):
                matrix[f + p, f + q] -= part[k] * b[p, q]


@kernel(error_model="numpy", fastmath=REORDER)
def energies(u, first, units, block, energy):
    """tr(U_gᵀB_gU_g) of each unit."""
    rows = u.shape[1]
    for k in range(len(units)):
        f, size = first[k], first[k + 1] - first[k]
        b = block[units[k]]
        total = 0.0
        for p in range(size):
            for q in range(p + 1):
                s = 0.0
                x, y = u[f + p], u[f + q]
                for r in range(rows):
                    s += x[r] * y[r]
                total += b[p, q] * s if p == q else (b[p, q] + b[q, p]) * s
        energy[k] = total


@kernel(error_model="numpy")
def best_sum(saving, group, room, scratch, edge):
    """The largest sum of savings that the groups' room allows, and for each group its edges.

    ``edge[g]`` is the largest saving left out, 0 where there is none, and the smallest one chosen, infinite where there
    is none. Units are sorted by their group.
    """
    total = 0.0
    for g in range(len(room)):
        edge[g, 0], edge[g, 1] = 0.0, np.inf
    end = 0
    while end < len(saving):
        begin = end
        g = group[begin]
        while end < len(saving) and group[end] == g:
            end += 1
        part = scratch[: end - begin]
        for i in range(end - begin):
            part[i] = saving[begin + i]
        sort(part)
        many = min(room[g], end - begin)
        for i in range(end - begin - many, end - begin):
            total += part[i]
        if many < end - begin:
            edge[g, 0] = part[end - begin - many - 1]
        if many > 0:
            edge[g, 1] = part[end - begin - many]
    return total


@kernel(error_model="numpy")
def rescale(z, group, room, scratch):
    """Multiply the weights of each group by a factor such that Σ min(1, z) is its room. Units are sorted by group."""
    end = 0
    while end < len(z):
        begin = end
        g = group[begin]
        while end < len(z) and group[end] == g:
            end += 1
        part = scratch[: end - begin]
        rest = 0.0
        for i in range(end - begin):
            part[i] = z[begin + i]
            rest += part[i]
        sort(part)
        count = end - begin
        whole = 0
        while whole < room[g] and whole < count and part[count - 1 - whole] * (room[g] - whole) >= rest:
            rest -= part[count - 1 - whole]
            whole += 1
        if rest > 0.0 and whole < room[g] and whole < count:
            factor = (room[g] - whole) / rest
        else:
            factor = 1.0 / max(part[0], 1e-300)
        for i in range(begin, end):
            z[i] = min(max(z[i] * factor, LEAST), 1.0)


@kernel(error_model="numpy", nested=True)
def product_with(matrix, scale, x, out):
    """A block times the rows of a unit."""
    for p in range(len(x)):
        line = out[p]
        for r in range(len(line)):
            line[r] = 0.0
        for q in range(len(x)):
            f = scale * matrix[p, q]
            row = x[q]
            for r in range(len(line)):
                line[r] += f * row[r]


@kernel(error_model="numpy")
def charged_savings(u, product, b, norm, size, first, units, block, inverse, smallest, part, unit_error, saving, terms):
    """What keeping each unit saves at a point, rounded up; returns Σ tr(U_gᵀB_gU_g).

    Parameters
    ----------
    u, product, b
        U, HU as computed, and HWᵀ.
    norm, size
        √h_ii, and Σ √h_ii|u_ir| of each row with its reach.
    block, inverse, smallest, part
        Minorant, its approximate inverses, its least eigenvalues, and the share of each unit's block that counts.
    unit_error
        γ, which covers every sum here.
    saving
        Result.
    terms
        ``terms[0]`` is the size of what was added up.
    """
    rows = u.shape[1]
    most = block.shape[1]
    c, t, left, bt, pull = (
        np.empty((most, rows)), np.empty((most, rows)), np.empty((most, rows)), np.empty((most, rows)),
        np.empty((most, rows)),
    )  # fmt: skip
    value = 0.0
    magnitude = 0.0
    for k in range(len(units)):
        f, m, g = first[k], first[k + 1] - first[k], units[k]
        share = part[k]
        matrix, back = block[g], inverse[g]
        product_with(matrix, share, u[f : f + m], pull)
        for p in range(m):
            for r in range(rows):
                c[p, r] = b[f + p, r] - product[f + p, r] + pull[p, r]
        product_with(back, 1.0 / share, c[:m], t)
        product_with(matrix, share, t[:m], bt)
        for p in range(m):
            for r in range(rows):
                left[p, r] = c[p, r] - bt[p, r]
        product_with(back, 1.0 / share, left[:m], bt)
        for p in range(m):
            for r in range(rows):
                t[p, r] += bt[p, r]
        product_with(matrix, share, t[:m], bt)
        total = 0.0
        rest = 0.0
        for p in range(m):
            for r in range(rows):
                pulled = 0.0
                spread = 0.0
                for q in range(m):
                    entry = share * abs(matrix[p, q])
                    pulled += entry * abs(u[f + q, r])
                    spread += entry * abs(t[q, r])
                value += u[f + p, r] * pull[p, r]
                magnitude += abs(u[f + p, r]) * pulled
                off = unit_error * (norm[f + p] * size[r] + 2.0 * abs(b[f + p, r]) + 2.0 * pulled + spread)
                x = abs(c[p, r] - bt[p, r]) + off + unit_error * abs(c[p, r])
                rest += x * x
                total += 2.0 * c[p, r] * t[p, r] - t[p, r] * bt[p, r]
                total += 2.0 * off * abs(t[p, r])
                total += unit_error * (2.0 * abs(c[p, r] * t[p, r]) + abs(t[p, r]) * spread)
        saving[k] = total + rest / (smallest[g] * share) * (1.0 + unit_error)
    terms[0] = magnitude
    return value


@kernel(error_model="numpy")
def invert_blocks(block, size, units, inverse, smallest):
    """Approximate inverses of some units' blocks, and proven lower bounds of their eigenvalues.

    False where one is singular.
    """
    for g in units:
        m = size[g]
        work = np.empty((m, m))
        for p in range(m):
            for q in range(m):
                work[p, q] = block[g, p, q]
        if not invert_by_sweeps(work, m):
            return False
        total = 0.0
        for p in range(m):
            for q in range(m):
                inverse[g, p, q] = 0.5 * (work[p, q] + work[q, p])
                total += work[p, q] * work[p, q]
        least = 0.5 / np.sqrt(total)
        # A completed factorization proves it, the diagonal lowered by more than its backward error.
        lowered = 1.0 - 8.0 * (m + 8) * (m + 8) * UNIT
        for p in range(m):
            for q in range(m):
                work[p, q] = block[g, p, q]
            work[p, p] = (work[p, p] - least) * lowered
        if not (least > 0.0 and factorize(work, m, m)):
            return False
        smallest[g] = least * (1.0 - 8.0 * UNIT)
    return True


@kernel(error_model="numpy", fastmath=REORDER)
def exclusion_costs(half, first, chosen, u, cost):
    """What excluding some units is estimated to cost at fixed weights: tr(U_gᵀ[(K⁻¹)_gg]⁻¹U_g).

    ``half`` holds a row of the inverse's triangle for each input of the units ``chosen``, one unit after the other.
    """
    columns, rows = half.shape[1], u.shape[1]
    at = 0
    for c in range(len(chosen)):
        f = first[chosen[c]]
        m = first[chosen[c] + 1] - f
        block, x = np.empty((m, m)), np.empty(m)
        for p in range(m):
            for q in range(p, m):
                s = 0.0
                for j in range(columns):
                    s += half[at + p, j] * half[at + q, j]
                block[p, q] = s
        at += m
        cost[c] = 0.0
        if factorize(block, m, m):
            for r in range(rows):
                for p in range(m):
                    x[p] = u[f + p, r]
                cost[c] += forward(block, m, m, x)


@kernel(error_model="numpy", fastmath=REORDER)
def gradients(u, first, units, z, side, gradient):
    """Supergradients (1/z_g − 1 + side) U_gU_gᵀ of the bound in the blocks."""
    rows = u.shape[1]
    for k in range(len(units)):
        f = first[k]
        weight = 1.0 / z[k] - 1.0 + side
        line = gradient[units[k]]
        for p in range(first[k + 1] - f):
            for q in range(p + 1):
                s = 0.0
                for r in range(rows):
                    s += u[f + p, r] * u[f + q, r]
                line[p, q] = line[q, p] = weight * s
