"""Coordinate ascent on the weights of integer forms inside a log-determinant barrier (docs/block-relaxation.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel


@kernel(fastmath=REORDER)
def ascend_weights(inverse, start, index, entry, weights, expected, barrier, order):
    """Set each weight μ_j in turn to m α/(α + barrier), α = expected_j μ_j and m the largest when the others stay.

    ``inverse`` is that of M = H − B − V diag(μ) Vᵀ and follows the changes: m = μ_j + 1/(vᵀM⁻¹v). Forms by columns.
    """
    n = inverse.shape[0]
    column = np.empty(n)
    for position in range(order.shape[0]):
        j = order[position]
        if not weights[j] > 0.0:
            continue
        for i in range(n):
            column[i] = 0.0
        for p in range(start[j], start[j + 1]):
            row, c = inverse[index[p]], entry[p]
            for i in range(n):
                column[i] += c * row[i]
        reach = 0.0
        for p in range(start[j], start[j + 1]):
            reach += entry[p] * column[index[p]]
        if not reach > 0.0:
            continue
        alpha = expected[j] * weights[j]
        change = (weights[j] + 1.0 / reach) * alpha / (alpha + barrier) - weights[j]
        weights[j] += change
        pull = change / (1.0 - change * reach)
        for i in range(n):
            step = pull * column[i]
            for k in range(n):
                inverse[i, k] += step * column[k]
