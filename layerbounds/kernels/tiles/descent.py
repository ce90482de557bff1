"""Compiled local search of tiled masks: the masks of one group of inputs in all rows, best for what else is kept.

Each row has a tableau as in `kernels.pruning.subset`. The error of a row as a function of what it keeps of a group
needs the group's part of the tableau alone; the best masks of all rows together are found from these tables.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import copy
from layerbounds.kernels.pruning.subset import DEPENDENT, random_below, sweep

#: Sweeps of all groups at most, and kicks after which the tableaux are made anew.
SWEEPS, RENEWED = 200, 64


@kernel(error_model="numpy", nested=True)
def local_sweep(a, r, k, inside, c):
    """`kernels.pruning.subset.sweep` of a group's part of a tableau, the first c rows and columns."""
    pivot = a[k, k]
    sign = -1.0 if inside else 1.0
    rk = r[k]
    for i in range(c):
        if i != k:
            f = a[i, k] / pivot
            for j in range(c):
                if j != k:
                    a[i, j] -= f * a[k, j]
            r[i] -= f * rk
            a[i, k] = sign * f
    for j in range(c):
        if j != k:
            a[k, j] = a[j, k]
    a[k, k] = -1.0 / pivot
    r[k] = sign * rk / pivot
    return -rk * rk / pivot


@kernel(error_model="numpy", nested=True)
def saving_of(a, r, code, c, diagonal, work, right, index):
    """What keeping the inputs of a code saves, from the group's part of a tableau without them; −∞ where dependent."""
    m = 0
    for p in range(c):
        if code >> p & 1:
            index[m] = p
            m += 1
    for x in range(m):
        right[x] = r[index[x]]
        for y in range(x, m):
            work[x, y] = a[index[x], index[y]]
    total = 0.0
    for x in range(m):
        pivot = work[x, x]
        if not pivot > DEPENDENT * diagonal[index[x]]:
            return -np.inf
        total += right[x] * right[x] / pivot
        for y in range(x + 1, m):
            f = work[x, y] / pivot
            right[y] -= f * right[x]
            for t in range(y, m):
                work[y, t] -= f * work[x, t]
    return total


@kernel(error_model="numpy", nested=True)
def tables(gram, a, r, kept, inputs, codes, price, change):
    """Change of each row's error, and prices, by each code of a group instead of what it keeps now."""
    rows, c = len(a), len(inputs)
    local, vector, diagonal = np.empty((c, c)), np.empty(c), np.empty(c)
    work, right, index = np.empty((c, c)), np.empty(c), np.empty(c, np.int64)
    for row in range(rows):
        for p in range(c):
            vector[p] = r[row, inputs[p]]
            diagonal[p] = gram[inputs[p], inputs[p]]
            for q in range(c):
                local[p, q] = a[row, inputs[p], inputs[q]]
        base = 0.0
        now = 0
        for p in range(c):
            if kept[row, inputs[p]]:
                base += local_sweep(local, vector, p, True, c)
                now |= 1 << p
        for x in range(len(codes)):
            code = codes[x]
            total = 0.0
            for p in range(c):
                bit = code >> p & 1
                if bit != (now >> p & 1):
                    total += price[row, inputs[p]] if bit else -price[row, inputs[p]]
            if code == now:
                change[row, x] = 0.0
            else:
                change[row, x] = base + total - saving_of(local, vector, code, c, diagonal, work, right, index)


@kernel(error_model="numpy", nested=True)
def best_counts(change, codes, most, c, choice):
    """Codes of all rows of least total change, no input kept by more than ``most`` of them; the change."""
    rows = len(change)
    base = most + 1
    states = base**c
    digit = np.empty((len(codes), c), np.int64)
    step = np.zeros(len(codes), np.int64)
    for x in range(len(codes)):
        power = 1
        for p in range(c):
            digit[x, p] = codes[x] >> p & 1
            step[x] += power * digit[x, p]
            power *= base
    best = np.full((rows + 1, states), np.inf)
    came = np.zeros((rows, states), np.int64)
    best[0, 0] = 0.0
    for row in range(rows):
        for s in range(states):
            value = best[row, s]
            if value == np.inf:
                continue
            for x in range(len(codes)):
                rest, fits = s, True
                for p in range(c):
                    if digit[x, p] and rest % base == most:
                        fits = False
                        break
                    rest //= base
                if fits and value + change[row, x] < best[row + 1, s + step[x]]:
                    best[row + 1, s + step[x]] = value + change[row, x]
                    came[row, s + step[x]] = x
    s = int(np.argmin(best[rows]))
    total = best[rows, s]
    for row in range(rows - 1, -1, -1):
        choice[row] = came[row, s]
        s -= step[choice[row]]
    return total


@kernel(error_model="numpy", nested=True)
def best_union(change, codes, unions, choice):
    """Codes of all rows of least total change whose union is one of ``unions``; the change."""
    rows = len(change)
    least, arg = np.inf, 0
    for u in range(len(unions)):
        total = 0.0
        for row in range(rows):
            value = np.inf
            for x in range(len(codes)):
                if codes[x] & ~unions[u] == 0:
                    value = min(value, change[row, x])
            total += value
            if total >= least:
                break
        if total < least:
            least, arg = total, u
    for row in range(rows):
        value = np.inf
        for x in range(len(codes)):
            if codes[x] & ~unions[arg] == 0 and change[row, x] < value:
                value = change[row, x]
                choice[row] = x
    return least


@kernel(error_model="numpy", nested=True)
def set_codes(a, r, kept, inputs, codes, choice):
    """Keep these codes of a group; returns the change of the error."""
    value = 0.0
    for row in range(len(a)):
        code = codes[choice[row]]
        for drop in (True, False):
            for p in range(len(inputs)):
                i = inputs[p]
                if kept[row, i] == drop and (code >> p & 1) == (0 if drop else 1):
                    value += sweep(a[row], r[row], kept[row], i)
    return value


@kernel(error_model="numpy", nested=True)
def descend(gram, a, r, kept, price, groups, floor):
    """Best masks of one group after the other, until no group changes; returns the change of the error and prices."""
    members, sizes, begin, codes, most, union_begin, unions = groups
    rows = len(a)
    choice = np.zeros(rows, np.int64)
    total, calm = 0.0, 0
    g = 0
    for _ in range(SWEEPS * len(sizes)):
        inputs, own = members[g, : sizes[g]], codes[begin[g] : begin[g + 1]]
        change = np.empty((rows, len(own)))
        tables(gram, a, r, kept, inputs, own, price, change)
        if union_begin[g] < union_begin[g + 1]:
            gain = best_union(change, own, unions[union_begin[g] : union_begin[g + 1]], choice)
        else:
            gain = best_counts(change, own, most[g], sizes[g], choice)
        if gain < -floor:
            set_codes(a, r, kept, inputs, own, choice)
            total += gain
            calm = 0
        else:
            calm += 1
            if calm == len(sizes):
                break
        g = (g + 1) % len(sizes)
    return total


@kernel(error_model="numpy", nested=True)
def renew(gram, b, chosen, a, r, kept):
    """Fill the tableaux for given masks; dependent inputs are left out. Returns the error beside the energy."""
    value = 0.0
    n = b.shape[1]
    for row in range(len(a)):
        copy(b[row], r[row])
        for i in range(n):
            kept[row, i] = False
            copy(gram[i], a[row, i])
        for i in range(n):
            if chosen[row, i] and a[row, i, i] > DEPENDENT * gram[i, i]:
                value += sweep(a[row], r[row], kept[row], i)
    return value


@kernel(error_model="numpy")
def improve(gram, b, price, chosen, groups, floor, kicks, state):
    """Local search from masks, then kicks that are undone where they do not help.

    Parameters
    ----------
    gram, b
        H, and H w of each row.
    price
        Of what each row keeps.
    chosen
        Masks, shape (rows, n); becomes the best ones.
    groups
        Inputs of each group, padded, and how many; where its codes begin; all codes (bits of the inputs that a row may
        keep); how many rows may keep an input; where its unions begin, and all unions (bits of inputs that all rows
        together may keep). Groups without unions are treated by the number of rows.
    floor
        Changes below this are rounding.
    kicks
        Number of them.
    state
        Of the random generator.

    Returns
    -------
    float
        The error less the energy, plus prices.
    """
    members, sizes = groups[0], groups[1]
    rows, n = b.shape
    a, r, kept = np.empty((rows, n, n)), np.empty((rows, n)), np.empty((rows, n), np.bool_)
    value = renew(gram, b, chosen, a, r, kept)
    for row in range(rows):
        for i in range(n):
            if kept[row, i]:
                value += price[row, i]
    value += descend(gram, a, r, kept, price, groups, floor)
    best = value
    for row in range(rows):
        copy(kept[row], chosen[row])
    for count in range(kicks):
        # Nothing of a few groups, and then everything as is best.
        for _ in range(1 + random_below(state, 3)):
            g = random_below(state, len(sizes))
            for p in range(sizes[g]):
                for row in range(rows):
                    i = members[g, p]
                    if kept[row, i] and random_below(state, 2) == 1:
                        value += sweep(a[row], r[row], kept[row], i) - price[row, i]
        value += descend(gram, a, r, kept, price, groups, floor)
        if value < best - floor:
            best = value
            for row in range(rows):
                copy(kept[row], chosen[row])
        elif count % 4 == 3:
            # Back to the best masks, from their beginning: sweeps add up their rounding.
            value = renew(gram, b, chosen, a, r, kept)
            for row in range(rows):
                for i in range(n):
                    if kept[row, i]:
                        value += price[row, i]
            best = value
    return best
