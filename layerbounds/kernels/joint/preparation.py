"""What the enumeration of a node needs: factors of its Gram matrix in the order of the search, and what they lack.

Derivations: docs/numerics.md, joint enumeration.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel
from layerbounds.kernels.linear_algebra import backward, factorize, invert_factor

UNIT = 2.0**-53
#: How much an input is fixed earlier for being undecided, as a share of the node's gap.
UNDECIDED = 0.01
#: The least share of an entry that a sweep over the minorant of a depth leaves.
SHRINK = 0.5


@kernel(error_model="numpy", fastmath=REORDER)
def start_of_node(gram, norm, target, x, gradient):
    """f(x) = (x − w)ᵀH(x − w), its half gradient H(x − w), and Σ ν_i|x_i − w_i|."""
    n = len(x)
    value = 0.0
    size = 0.0
    e = np.empty(n)
    for i in range(n):
        e[i] = x[i] - target[i]
        size += norm[i] * abs(e[i])
    for i in range(n):
        total = 0.0
        row = gram[i]
        for j in range(n):
            total += row[j] * e[j]
        gradient[i] = total
        value += total * e[i]
    return value, size


@kernel(error_model="numpy")
def order_of_node(gram, inputs, d, z, gradient, values, count, free, price, value, cut, order):
    """Greedy order in which the inputs of a node are fixed, the last one first.

    The input fixed next has the largest product of its Schur complement, the root of its diagonal entry and what its
    second-best choice costs beyond the best one, by the separable bound: inputs that are almost decided come first, and
    in front of the others those that matter.

    Parameters
    ----------
    gram : (n, n) float64
    inputs : (m,) int64
    d, z, gradient, price : (m,) float64
        Minorant, point, half gradient, and the price of the capacity where an input may be zero.
    values : (m, longest) float64; count : (m,) int64; free : (m,) float64
        Levels other than zero; whether the weight may be zero.
    value, cut : float
        f at the point, and the cut.
    order : (m,) int64
        Result: positions in ``inputs``.
    """
    m = len(inputs)
    score = np.empty(m)
    bound = value
    for i in range(m):
        best, second = np.inf, np.inf
        if free[i] > 0.0:
            best = d[i] * z[i] * z[i] - 2.0 * gradient[i] * z[i]
        for j in range(count[i]):
            t = values[i, j] - z[i]
            c = t * (d[i] * t + 2.0 * gradient[i]) + price[i] * free[i]
            if c < best:
                best, second = c, best
            elif c < second:
                second = c
        score[i] = second - best
        bound += best
    gap = UNDECIDED * max(cut - bound, 1e-3 * cut)
    covariance, factor = np.empty((m, m)), np.empty((m, m))
    for i in range(m):
        row = gram[inputs[i]]
        score[i] = np.sqrt(row[inputs[i]]) * (score[i] + gap)
        for j in range(i, m):
            factor[i, j] = row[inputs[j]]
        factor[i, i] *= 1.0 + 1e-10
        order[i] = i
    if not factorize(factor, m, m):
        return
    invert_factor(factor, m, covariance)
    for i in range(m):
        for j in range(i):
            covariance[i, j] = covariance[j, i]
    for position in range(m - 1, 0, -1):
        at = position
        best = -1.0
        for p in range(position + 1):
            i = order[p]
            if score[i] > best * covariance[i, i]:
                best = score[i] / covariance[i, i]
                at = p
        pick = order[at]
        order[at] = order[position]
        order[position] = pick
        column = covariance[pick]
        for p in range(position):
            row = covariance[order[p]]
            f = row[pick] / column[pick]
            for j in range(m):
                row[j] -= f * column[j]


@kernel(error_model="numpy", nested=True)
def is_below(matrix, d, m, work):
    """Prove diag(d) ⪯ the leading block by one Cholesky factorization of the shifted difference."""
    unit = (m + 6) * UNIT
    shift = 1.0 - 1.5 * (m + 2) * unit / (1.0 - unit)
    for i in range(m):
        row, line = matrix[i], work[i]
        for j in range(i, m):
            line[j] = row[j]
        line[i] = (row[i] - d[i]) * shift
        if not line[i] > 0.0:
            return False
    return factorize(work, m, m)


@kernel(error_model="numpy")
def minorants_by_depth(matrix, emphasis, barriers, rows):
    """Raise the minorants of the leading blocks, from the second largest down, by sweeps of coordinate ascent.

    They ascend Σ a_i d_i + μ logdet(G − D), a the emphasis; the inverse of G − D is carried from each block to the next
    smaller one. What is not proven is left as it is.

    Parameters
    ----------
    matrix : (m, m) float64
    emphasis : (m,) float64
        Positive.
    barriers : (sweeps,) float64
        Barrier weight μ of each sweep, relative to the mean term of the objective.
    rows : (m + 1, m) float64
        Row m is a minorant of the matrix; rows 1 to m − 1 are results.
    """
    m = len(matrix)
    work, inverse = np.empty((m, m)), np.empty((m, m))
    d, trial = rows[m].copy(), np.empty(m)
    for i in range(m):
        for k in range(m):
            rows[k, i] = d[i] if i < k else 0.0
        d[i] *= 0.999
    for i in range(m):
        for j in range(i, m):
            work[i, j] = matrix[i, j]
        work[i, i] -= d[i]
    if not factorize(work, m, m):
        return
    invert_factor(work, m, inverse)
    for i in range(m):
        for j in range(i):
            inverse[i, j] = inverse[j, i]
    for k in range(m - 1, 0, -1):
        # The inverse of the smaller block.
        last = inverse[k]
        for i in range(k):
            row = inverse[i]
            f = last[i] / last[k]
            for j in range(k):
                row[j] -= f * last[j]
        for barrier in barriers:
            total = 0.0
            for i in range(k):
                total += emphasis[i] * d[i]
            mu = barrier * total / k
            for i in range(k):
                line = inverse[i]
                t = line[i]
                new = max(d[i] + 1.0 / t - mu / emphasis[i], SHRINK * d[i])
                f = (new - d[i]) / (1.0 - (new - d[i]) * t)
                d[i] = new
                for j in range(k):
                    trial[j] = line[j]
                for p in range(k):
                    row = inverse[p]
                    g = f * trial[p]
                    for j in range(k):
                        row[j] += g * trial[j]
        if is_below(matrix, d, k, work):
            for i in range(k):
                rows[k, i] = d[i]


@kernel(error_model="numpy", fastmath=REORDER)
def factors_of_node(gram, inputs, shift, norm, matrix, factor, pivots, shifts, error, covariance):
    """Pivots, shifts and their errors for some inputs of a Gram matrix, the last one fixed first.

    Parameters
    ----------
    gram : (n, n) float64
    inputs : (m,) int64
        The inputs in the order of the search.
    shift : (m,) float64
        Added to the diagonal.
    norm : (m,) float64
        ν with |G_ij| ≤ ν_i ν_j, the shift included.
    matrix, factor : (m, m) float64
        Become G, and its Cholesky factor.
    pivots, error, covariance : (m,) float64; shifts : (m, m) float64
        Results: pivots rounded down; shifts; a bound on the errors of their rows in the norm of G; an upper bound of
        the diagonal of G⁻¹.

    Returns
    -------
    bool
        Whether G is proven positive definite and the errors are bounded.
    """
    m = len(inputs)
    for i in range(m):
        row = gram[inputs[i]]
        for j in range(m):
            matrix[i, j] = row[inputs[j]]
        matrix[i, i] = matrix[i, i] + shift[i]
        for j in range(i, m):
            factor[i, j] = matrix[i, j]
    if not factorize(factor, m, m):
        return False
    for i in range(m):
        covariance[i] = 0.0
    size = np.empty(m)
    column = np.empty(m)
    # Σ_k ‖S⁻¹ρ_k‖²/p_k · Σ_{j<k} ‖S T_j‖²/p_j bounds the squared norm of P^(−1/2)(T G Tᵀ − P)P^(−1/2).
    before = 0.0
    defect = 0.0
    for k in range(m):
        t = shifts[k]
        for i in range(k):
            column[i] = -factor[i, k]
        backward(factor, k, k, column)
        for i in range(k):
            t[i] = column[i]
        for i in range(k, m):
            t[i] = 0.0
        length = norm[k]
        squares = norm[k] * norm[k]
        for i in range(k):
            length += norm[i] * abs(t[i])
            squares += (norm[i] * t[i]) ** 2
        rounding = 2.0 * UNIT * (k + 16) * length
        pivot = matrix[k, k]
        magnitude = matrix[k, k]
        total = 0.0
        for i in range(k):
            row = matrix[i]
            residual = row[k]
            for j in range(k):
                residual += row[j] * t[j]
            pivot += t[i] * residual + t[i] * row[k]
            magnitude += abs(t[i] * row[k]) + abs(t[i]) * (abs(residual) + norm[i] * rounding)
            residual = abs(residual) / norm[i] + rounding
            total += residual * residual
        # Squares of ‖S⁻¹ρ_k‖; the exact pivot differs from the sum by its rounding and by that of ρ.
        size[k] = 1.0001 * total
        pivots[k] = pivot - 2.0 * UNIT * (k + 16) * magnitude - rounding * (length - norm[k])
        if not pivots[k] > 0.0:
            return False
        defect += 2.0 * (size[k] / pivots[k]) * before
        before += 1.0001 * squares / pivots[k]
        for i in range(k):
            covariance[i] += t[i] * t[i] / pivots[k]
        covariance[k] += 1.0 / pivots[k]
    if not defect < 0.25:
        return False
    spread = 0.0
    for i in range(m):
        covariance[i] *= 2.0001
        spread += covariance[i] * norm[i] * norm[i]
    for k in range(m):
        error[k] = 1.0001 * np.sqrt(size[k] * spread)
    return True
