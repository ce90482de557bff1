"""Pools of good roundings of each row, improved by tabu search and recombined."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.batched.tabu import add_multiple, next_state, tabu
from layerbounds.kernels.compilation import kernel

#: The inputs in which two parents differ are searched for themselves first, where they are at most so many.
WIDEST = 256
#: Inputs that a mutation may move.
MUTATED = 10
#: Errors that differ by this share are taken for one rounding.
SAME = 1e-6


@kernel(nested=True)
def _go(gram, codes, scales, start, gradient, best):
    """Follow the changes from one rounding to another in the gradient and in ``start``."""
    for i in range(len(start)):
        if best[i] != start[i]:
            add_multiple(np.float32(scales[i] * (codes[best[i]] - codes[start[i]])), gram[i], gradient)
            start[i] = best[i]


@kernel()
def evolve(gram, codes, scale, group, pool, values, gradients, states, descents, children, patience):
    """Improve the first members of every row's pool, then recombine members.

    A child takes each of the weights in which its parents differ from one or the other; tabu search improves it in
    these weights and then in all (a memetic algorithm: Lü, Glover & Hao 2010 for binary quadratic programs). It takes
    the place of the worst member unless it is worse still or known.

    Parameters
    ----------
    gram : (n, n) float32
        With a mean of about 1 on the diagonal.
    codes : (levels,) float64
    scale : (rows, groups) float64
    group : (n,) int64
    pool : (rows, members, n) int16
        Indices of codes; updated.
    values : (rows, members) float64
        Errors; updated.
    gradients : (rows, members, n) float32
        Half the derivatives of the errors; updated.
    states : (rows,) uint64
        Of the rows' generators, not zero; updated.
    descents, children : int
        Members that are improved themselves, and recombinations.
    patience : int
        Moves after the last improvement.
    """
    rows, members, n = pool.shape
    scales = np.empty(n)
    current, best, start = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    inputs = np.empty(max(n, MUTATED), np.int64)
    gradient, work = np.empty(n, np.float32), np.empty(n, np.float32)
    widest = min(n, WIDEST)
    part, narrow = np.empty((widest, widest), np.float32), np.empty(widest)
    tenure = max(2, min(n // 100, 20))
    most = 4 * n + 10 * patience
    for r in range(rows):
        state = states[r]
        for i in range(n):
            scales[i] = scale[r, group[i]]
        for turn in range(descents + children):
            a = b = min(turn, members - 1)
            if turn >= descents:
                state = next_state(state)
                a = b = np.int64(state % np.uint64(members))
                if members > 1:
                    state = next_state(state)
                    b = (a + 1 + np.int64(state % np.uint64(members - 1))) % members
            value = values[r, a]
            count = 0
            for i in range(n):
                start[i] = pool[r, a, i]
                gradient[i] = gradients[r, a, i]
                if pool[r, b, i] != start[i]:
                    inputs[count] = i
                    count += 1
            crossed = count > 0
            if turn >= descents and not crossed:
                for count in range(MUTATED):
                    state = next_state(state)
                    inputs[count] = np.int64(state % np.uint64(n))
                count = MUTATED
            for k in range(count):
                state = next_state(state)
                if (state >> np.uint64(20)) & np.uint64(1):
                    i = inputs[k]
                    to = np.int64(pool[r, b, i])
                    if not crossed:
                        upward = start[i] == 0 or (state >> np.uint64(21)) & np.uint64(1)
                        to = start[i] + (1 if upward and start[i] < len(codes) - 1 else -1)
                    change = np.float32(scales[i] * (codes[to] - codes[start[i]]))
                    value += change * (2.0 * gradient[i] + change * gram[i, i])
                    start[i] = to
                    add_multiple(change, gram[i], gradient)
            grain = SAME * abs(value)
            if crossed and 1 < count <= widest:
                for k in range(count):
                    i = inputs[k]
                    current[k] = start[i]
                    work[k] = gradient[i]
                    narrow[k] = scales[i]
                    for j in range(count):
                        part[k, j] = gram[i, inputs[j]]
                drop, state = tabu(
                    part[:count, :count], codes, narrow[:count], current[:count], work[:count], best[:count], state,
                    patience, most, 2, grain,
                )  # fmt: skip
                value += drop
                for k in range(count):
                    current[k] = best[k]
                for i in range(n):
                    best[i] = start[i]
                for k in range(count):
                    best[inputs[k]] = current[k]
                _go(gram, codes, scales, start, gradient, best)
            for i in range(n):
                current[i] = start[i]
            drop, state = tabu(gram, codes, scales, current, gradient, best, state, patience, most, tenure, grain)
            value += drop
            worst = a
            if turn >= descents:
                known = False
                worst = 0
                for k in range(members):
                    if values[r, k] > values[r, worst]:
                        worst = k
                    if abs(values[r, k] - value) <= grain:
                        known = True
                if known or not value < values[r, worst]:
                    continue
            _go(gram, codes, scales, start, gradient, best)
            for i in range(n):
                pool[r, worst, i] = best[i]
                gradients[r, worst, i] = gradient[i]
            values[r, worst] = value
        states[r] = state
