"""Compiled local search of tiled masks whose weights stay as they are; see `layerbounds.kernels.tiles.descent`."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import copy
from layerbounds.kernels.pruning.subset import random_below
from layerbounds.kernels.tiles.descent import SWEEPS, best_counts, best_union

#: Kicks in a row from masks that are not the best ones.
WALK = 8


@kernel(error_model="numpy", nested=True)
def tables(gram, slope, original, mask, inputs, codes, change):
    """Change of each row's error by each code of a group instead of what it keeps now; ``slope`` is H(v − w)."""
    rows, c = len(mask), len(inputs)
    step = np.empty(c)
    for row in range(rows):
        for x in range(len(codes)):
            total = 0.0
            for p in range(c):
                i = inputs[p]
                new = codes[x] >> p & 1
                step[p] = (new - (1 if mask[row, i] else 0)) * original[row, i]
                total += 2.0 * step[p] * slope[row, i]
            for p in range(c):
                if step[p] != 0.0:
                    for q in range(c):
                        total += step[p] * gram[inputs[p], inputs[q]] * step[q]
            change[row, x] = total


@kernel(error_model="numpy", nested=True)
def flip(gram, slope, original, mask, row, i):
    """Keep an input of a row, or drop it; returns the change of the error."""
    step = -original[row, i] if mask[row, i] else original[row, i]
    value = step * (2.0 * slope[row, i] + step * gram[i, i])
    line, target = gram[i], slope[row]
    for j in range(len(line)):
        target[j] += step * line[j]
    mask[row, i] = not mask[row, i]
    return value


@kernel(error_model="numpy", nested=True)
def descend(gram, slope, original, mask, groups, floor):
    """Best masks of one group after the other, until no group changes; returns the change of the error."""
    members, sizes, begin, codes, most, union_begin, unions = groups
    rows = len(mask)
    choice = np.zeros(rows, np.int64)
    total, calm, g = 0.0, 0, 0
    for _ in range(SWEEPS * len(sizes)):
        inputs, own = members[g, : sizes[g]], codes[begin[g] : begin[g + 1]]
        change = np.empty((rows, len(own)))
        tables(gram, slope, original, mask, inputs, own, change)
        if union_begin[g] < union_begin[g + 1]:
            gain = best_union(change, own, unions[union_begin[g] : union_begin[g + 1]], choice)
        else:
            gain = best_counts(change, own, most[g], sizes[g], choice)
        if gain < -floor:
            for row in range(rows):
                for p in range(len(inputs)):
                    if (own[choice[row]] >> p & 1 == 1) != mask[row, inputs[p]]:
                        total += flip(gram, slope, original, mask, row, inputs[p])
            calm = 0
        else:
            calm += 1
            if calm == len(sizes):
                break
        g = (g + 1) % len(sizes)
    return total


@kernel(error_model="numpy", nested=True)
def renew(gram, targets, original, chosen, slope, mask):
    """Slopes of given masks; returns their error."""
    rows, n = targets.shape
    value = 0.0
    for row in range(rows):
        for j in range(n):
            slope[row, j] = 0.0
            mask[row, j] = chosen[row, j]
        for i in range(n):
            f = (original[row, i] if chosen[row, i] else 0.0) - targets[row, i]
            line, target = gram[i], slope[row]
            for j in range(n):
                target[j] += f * line[j]
        for i in range(n):
            value += ((original[row, i] if chosen[row, i] else 0.0) - targets[row, i]) * slope[row, i]
    return value


@kernel(error_model="numpy")
def improve(gram, targets, original, chosen, groups, floor, kicks, state):
    """Local search from masks, then kicks that are undone where they do not help.

    Parameters
    ----------
    gram
        H.
    targets, original
        Of each row: w, and the weights that are kept.
    chosen
        Masks, shape (rows, n); becomes the best ones.
    groups, floor, kicks, state
        As in `layerbounds.kernels.tiles.descent.improve`.

    Returns
    -------
    float
        The error.
    """
    members, sizes = groups[0], groups[1]
    rows, n = targets.shape
    slope, mask = np.empty((rows, n)), np.empty((rows, n), np.bool_)
    value = renew(gram, targets, original, chosen, slope, mask) + 0.0
    value += descend(gram, slope, original, mask, groups, floor)
    best = value
    for row in range(rows):
        copy(mask[row], chosen[row])
    for count in range(kicks):
        for _ in range(1 + random_below(state, 3)):
            g = random_below(state, len(sizes))
            for p in range(sizes[g]):
                for row in range(rows):
                    if mask[row, members[g, p]] and random_below(state, 2) == 1:
                        value += flip(gram, slope, original, mask, row, members[g, p])
        value += descend(gram, slope, original, mask, groups, floor)
        if value < best - floor:
            best = value
            for row in range(rows):
                copy(mask[row], chosen[row])
        elif count % WALK == WALK - 1:
            value = best = renew(gram, targets, original, chosen, slope, mask)
    return best
