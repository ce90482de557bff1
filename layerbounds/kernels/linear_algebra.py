"""Factorizations, solves and small array operations that kernels share, so that each is compiled once.

Matrices are symmetric; only their upper triangles are read, unless the function says otherwise. What divides by zero
gives NaN or infinity, which no comparison in the kernels takes for a better bound.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel


@kernel(error_model="numpy", nested=True)
def factorize(a, m, stop):
    """Upper Cholesky factor UᵀU of the leading m × m block, in place, four rows at a time; False where it breaks down.

    It ends after the first ``stop`` rows; the others are then the Schur complement.
    """
    for k0 in range(0, stop, 4):
        k1 = min(k0 + 4, stop)
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
        else:
            for k in range(k0, k1):
                top = a[k]
                for i in range(k1, m):
                    f = top[i]
                    row = a[i]
                    for j in range(i, m):
                        row[j] -= f * top[j]
    return True


@kernel(error_model="numpy", nested=True)
def forward(a, m, stop, x):
    """Solve the first ``stop`` equations of Uᵀy = x in place, and take them off the others; returns Σ y² of those."""
    total = 0.0
    for i in range(stop):
        f = x[i] / a[i, i]
        x[i] = f
        total += f * f
        row = a[i]
        for j in range(i + 1, m):
            x[j] -= f * row[j]
    return total


@kernel(error_model="numpy", fastmath=REORDER, nested=True)
def backward(a, m, stop, x):
    """Solve the first ``stop`` equations of Uy = x in place, the other entries being known."""
    for i in range(stop - 1, -1, -1):
        row = a[i]
        t = 0.0
        for j in range(i + 1, m):
            t += row[j] * x[j]
        x[i] = (x[i] - t) / row[i]


@kernel(error_model="numpy", nested=True)
def back_substitute(a, m, x):
    """Solve UᵀU y = x in place."""
    forward(a, m, m, x)
    backward(a, m, m, x)


@kernel(error_model="numpy", nested=True)
def solve(a, m, x):
    """Solve UᵀU y = x in place, rows in turn; rounds otherwise than `back_substitute`."""
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


@kernel(error_model="numpy", nested=True)
def invert_factor(u, m, inverse):
    """The upper triangle of (UᵀU)⁻¹, by products of four rows of U⁻ᵀ; ``u`` keeps the factor."""
    # Rows that fill the last four are zero.
    w = np.zeros(((m + 3) // 4 * 4, m))
    for r in range(m):
        row = w[r]
        whole = r // 4 * 4
        for k in range(0, whole, 4):
            f0, f1, f2, f3 = u[k, r], u[k + 1, r], u[k + 2, r], u[k + 3, r]
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            for j in range(k + 4):
                row[j] -= f0 * w0[j] + f1 * w1[j] + f2 * w2[j] + f3 * w3[j]
        for k in range(whole, r):
            f = u[k, r]
            other = w[k]
            for j in range(k + 1):
                row[j] -= f * other[j]
        scale = 1.0 / u[r, r]
        for j in range(r):
            row[j] *= scale
        row[r] = scale
    for p in range(m):
        for q in range(p, m):
            inverse[p, q] = 0.0
    for r in range(0, m, 4):
        w0, w1, w2, w3 = w[r], w[r + 1], w[r + 2], w[r + 3]
        end = min(r + 4, m)
        for p in range(end):
            f0, f1, f2, f3 = w0[p], w1[p], w2[p], w3[p]
            row = inverse[p]
            for q in range(p, end):
                row[q] += f0 * w0[q] + f1 * w1[q] + f2 * w2[q] + f3 * w3[q]


@kernel(error_model="numpy", nested=True)
def invert_by_sweeps(a, m):
    """Inverse of the leading block of a positive definite matrix, in place, by sweeps; False where a pivot is not."""
    for k in range(m):
        pivot = a[k, k]
        if not pivot > 0.0:
            return False
        for i in range(m):
            if i == k:
                continue
            f = a[i, k] / pivot
            if f == 0.0:
                continue
            for j in range(m):
                if j != k:
                    a[i, j] -= f * a[k, j]
            a[i, k] = f
        for j in range(m):
            if j != k:
                a[k, j] = a[j, k]
        a[k, k] = -1.0 / pivot
    for i in range(m):
        for j in range(m):
            a[i, j] = -a[i, j]
    return True


@kernel(error_model="numpy", nested=True)
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


@kernel(error_model="numpy", nested=True)
def rank(key, order):
    """Indices by ascending key; numba's own sort takes seconds to compile."""
    for i in range(len(key)):
        at = i
        while at > 0 and key[order[at - 1]] > key[i]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = i


@kernel(error_model="numpy", nested=True)
def solve_system(a, b):
    """Solve AX = B by elimination with row exchanges, for any small square matrix; both are overwritten, B by X."""
    n, width = len(a), b.shape[1]
    for k in range(n):
        top = k
        for i in range(k + 1, n):
            if abs(a[i, k]) > abs(a[top, k]):
                top = i
        if top != k:
            for j in range(n):
                a[k, j], a[top, j] = a[top, j], a[k, j]
            for j in range(width):
                b[k, j], b[top, j] = b[top, j], b[k, j]
        for i in range(k + 1, n):
            f = a[i, k] / a[k, k]
            for j in range(k + 1, n):
                a[i, j] -= f * a[k, j]
            for j in range(width):
                b[i, j] -= f * b[k, j]
    for k in range(n - 1, -1, -1):
        for j in range(width):
            x = b[k, j]
            for i in range(k + 1, n):
                x -= a[k, i] * b[i, j]
            b[k, j] = x / a[k, k]


@kernel(error_model="numpy", nested=True)
def multiply(a, b, c):
    """C = AB for small matrices."""
    for i in range(len(a)):
        line = c[i]
        for j in range(len(line)):
            line[j] = 0.0
        for k in range(len(b)):
            f, row = a[i, k], b[k]
            for j in range(len(line)):
                line[j] += f * row[j]


@kernel(error_model="numpy")
def copy(source, target):
    """Copy an array of one dimension; an assignment of arrays takes seconds to compile."""
    for i in range(len(source)):
        target[i] = source[i]


@kernel(error_model="numpy")
def sort(values):
    """Sort in place, ascending (Shell, 1959); numba's own sort takes seconds to compile."""
    count = len(values)
    gap = 1
    while 3 * gap + 1 < count:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            value = values[i]
            at = i
            while at >= gap and values[at - gap] > value:
                values[at] = values[at - gap]
                at -= gap
            values[at] = value
        gap //= 3


@kernel(error_model="numpy")
def largest(values, count):
    """Index of the largest of ``values[:count]``, the first one of equals."""
    best = 0
    for i in range(1, count):
        if values[i] > values[best]:
            best = i
    return best


@kernel(error_model="numpy")
def select(values, count, place):
    """Reorder ``values[:count]`` so that those below ``place`` are at most as large as those from it on (Hoare)."""
    low, high = 0, count - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            return
