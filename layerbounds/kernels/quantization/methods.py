"""Compiled loops of published rounding methods: lazy feedback, randomized rounding, OBQ, cyclic descent, scale search.

All work on real targets w and sorted level tables of shape (n, levels), padded with the last level; ``count`` holds the
true numbers of levels. Successive methods fix variables from the last to the first; ``shifts[k, :k]`` moves the centre
of the variables below k for a unit move of variable k.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.quantization.rounding import nearest


@kernel()
def lazy_rounding(shifts, target, levels, count, block, choice):
    """Successive rounding that moves the variables outside the current block once for the whole block."""
    n = target.shape[0]
    centre = target.copy()
    delta = np.zeros(n)
    end = n
    while end > 0:
        begin = max(end - block, 0)
        for k in range(end - 1, begin - 1, -1):
            j = nearest(levels[k], count[k], centre[k])
            choice[k] = j
            delta[k] = levels[k, j] - centre[k]
            for i in range(begin, k):
                centre[i] += shifts[k, i] * delta[k]
        for k in range(begin, end):
            for i in range(begin):
                centre[i] += shifts[k, i] * delta[k]
        end = begin


@kernel()
def stochastic_rounding(shifts, target, levels, count, uniform, choice):
    """Successive rounding to one of the two levels around the centre, up with the probability that is unbiased.

    ``uniform`` holds one number in [0, 1) for each variable. Outside the levels the nearest one is taken.
    """
    n = target.shape[0]
    centre = target.copy()
    for k in range(n - 1, -1, -1):
        x, row = centre[k], levels[k]
        j = nearest(row, count[k], x)
        if row[j] > x and j > 0:
            j -= 1
        if row[j] <= x and j + 1 < count[k] and x - row[j] > uniform[k] * (row[j + 1] - row[j]):
            j += 1
        choice[k] = j
        delta = row[j] - x
        for i in range(k):
            centre[i] += shifts[k, i] * delta


@kernel()
def klein_rounding(shifts, pivots, target, levels, count, inverse_temperature, uniform, choice):
    """Successive rounding to a level drawn with probability ∝ exp(−A · pivot · (level − centre)²) (Klein 2000)."""
    n = target.shape[0]
    centre = target.copy()
    weight = np.empty(levels.shape[1])
    for k in range(n - 1, -1, -1):
        row = levels[k]
        best = nearest(row, count[k], centre[k])
        # Relative to the nearest level, so that one weight is 1 and the sum cannot vanish.
        least = (row[best] - centre[k]) ** 2
        total = 0.0
        for j in range(count[k]):
            more = (row[j] - centre[k]) ** 2 - least
            weight[j] = np.exp(-inverse_temperature * pivots[k] * more) if more > 0.0 else 1.0
            total += weight[j]
        rest = uniform[k] * total
        pick = best
        for j in range(count[k]):
            rest -= weight[j]
            if rest < 0.0:
                pick = j
                break
        choice[k] = pick
        delta = row[pick] - centre[k]
        for i in range(k):
            centre[i] += shifts[k, i] * delta


@kernel()
def optimal_brain_quantization(inverse, target, levels, count, sequence, outliers, choice):
    """Fix the weight whose rounding costs least, re-optimise the others, remove it from the inverse; repeat.

    ``inverse`` is overwritten. ``sequence`` forces an order where it is not empty. With ``outliers`` a weight that
    lies beyond the last level by more than half of the last gap is fixed as soon as it appears.
    """
    n = target.shape[0]
    weight = target.copy()
    free = np.ones(n, np.bool_)
    column = np.empty(n)
    for step in range(n):
        p, level = -1, 0
        if sequence.shape[0]:
            p = sequence[step]
            level = nearest(levels[p], count[p], weight[p])
        else:
            least, outlying = np.inf, False
            for i in range(n):
                if not free[i]:
                    continue
                j = nearest(levels[i], count[i], weight[i])
                distance = abs(levels[i, j] - weight[i])
                beyond = False
                if outliers and count[i] > 1:
                    if j == 0:
                        beyond = levels[i, 0] - weight[i] > 0.5 * (levels[i, 1] - levels[i, 0])
                    elif j == count[i] - 1:
                        beyond = weight[i] - levels[i, j] > 0.5 * (levels[i, j] - levels[i, j - 1])
                cost = distance * distance / inverse[i, i]
                if p < 0 or (beyond and not outlying) or (beyond == outlying and cost < least):
                    p, level, least, outlying = i, j, cost, beyond
        choice[p] = level
        free[p] = False
        pivot = inverse[p, p]
        delta = (levels[p, level] - weight[p]) / pivot
        for i in range(n):
            column[i] = inverse[p, i]
        for i in range(n):
            if free[i]:
                weight[i] += column[i] * delta
                factor = column[i] / pivot
                # Cancellation must not leave a variance that is zero or negative.
                floor = 1e-14 * inverse[i, i]
                for j in range(n):
                    inverse[i, j] -= factor * column[j]
                inverse[i, i] = max(inverse[i, i], floor)


@kernel()
def sweep(gram, levels, count, quantize, value, gradient, target):
    """Minimise over one variable after the other, on its levels or, without ``quantize``, on the real line.

    ``gradient`` is H(value − target), kept up to date in place; returns the number of variables that moved.
    """
    n = target.shape[0]
    moved = 0
    for i in range(n):
        ideal = value[i] - gradient[i] / gram[i, i]
        new = levels[i, nearest(levels[i], count[i], ideal)] if quantize else ideal
        step = new - value[i]
        if step != 0.0:
            moved += 1
            value[i] = new
            for j in range(n):
                gradient[j] += step * gram[i, j]
    return moved


@kernel()
def search_scales(shifts, pivots, target, codes, zero, group, scale, factors, cost):
    """Choose the scale of one group after the other for successive rounding; ``scale`` is overwritten.

    Variables are fixed from the last to the first; those of a group are neighbours. ``group`` is the index of each
    variable's scale group, ``zero`` its zero point. For each factor the variables of the group are rounded with the
    scale times the factor, the errors of what is fixed already fed back; the factor whose own part of the error
    Σ pivot·(level − centre)² is smallest stays. ``cost[g]`` receives these parts for all factors.
    """
    n = target.shape[0]
    most = codes.shape[0]
    centre = target.copy()
    trial = np.empty(n)
    moved = np.empty(n)
    best_moved = np.empty(n)
    end = n
    while end > 0:
        g = group[end - 1]
        begin = end
        while begin > 0 and group[begin - 1] == g:
            begin -= 1
        best, pick = np.inf, 0
        for f in range(factors.shape[0]):
            s = scale[g] * factors[f]
            total = 0.0
            trial[begin:end] = centre[begin:end]
            for k in range(end - 1, begin - 1, -1):
                delta = s * (codes[nearest(codes, most, trial[k] / s + zero[k])] - zero[k]) - trial[k]
                moved[k] = delta
                total += pivots[k] * delta * delta
                for i in range(begin, k):
                    trial[i] += shifts[k, i] * delta
            cost[g, f] = total
            if total < best:
                best, pick = total, f
                best_moved[begin:end] = moved[begin:end]
        scale[g] *= factors[pick]
        for k in range(begin, end):
            for i in range(begin):
                centre[i] += shifts[k, i] * best_moved[k]
        end = begin
