"""Tabu search over single weights of a row."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

#: Comparisons need not heed NaN here: there is none, and minima then become vector instructions.
FAST = frozenset({"reassoc", "contract", "nsz", "nnan"})
#: The cost of what is impossible; a step of this length costs more than that.
FAR = np.float32(1e18)
#: Diagonal entries below this, in units of their mean, count as this.
FLAT = np.float32(1e-12)
#: Inputs whose least costs are kept together.
STRIP = 64
#: The largest number of this kind; a time after all moves.
LAST = np.int32(2**31 - 1)


@kernel(fastmath=FAST, error_model="numpy", nested=True)
def add_multiple(step, column, gradient):
    """Follow a step of one weight in the gradient."""
    for j in range(len(column)):
        gradient[j] += step * column[j]


@kernel(fastmath=FAST, error_model="numpy", nested=True)
def _price(gradient, diagonal, up, down, cost):
    """Costs of the moves that the gradient asks for."""
    for j in range(len(gradient)):
        g, u, d = gradient[j], up[j], down[j]
        move = d if g > 0 else u
        cost[j] = move * (move * diagonal[j] - np.float32(2.0) * abs(g))


@kernel(error_model="numpy", nested=True)
def _least(bits, until, now):
    """Least of all numbers and of those that are free, as integers in the same order: LLVM has vectors for these."""
    least = free = LAST
    for j in range(len(bits)):
        b = bits[j]
        b = np.int32(b ^ ((b >> np.int32(31)) & LAST))
        f = b if until[j] <= now else LAST
        least = min(least, b)
        free = min(free, f)
    return least, free


@kernel(force_inline=True, nested=True)
def _place(strip, cost, until, now):
    """Where the least cost of a strip is, among what is free by a given time."""
    begin = strip * STRIP
    place, least = begin, np.float32(np.inf)
    for i in range(begin, min(len(cost), begin + STRIP)):
        if cost[i] < least and until[i] <= now:
            place, least = i, cost[i]
    return place


@kernel(force_inline=True, nested=True)
def _set_steps(i, c, codes, scale, up, down):
    last = len(codes) - 1
    up[i] = np.float32(scale * (codes[c + 1] - codes[c])) if c < last else FAR
    down[i] = np.float32(scale * (codes[c] - codes[c - 1])) if c > 0 else FAR


@kernel(force_inline=True, nested=True)
def next_state(state):
    """Marsaglia's xorshift."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    state ^= state << np.uint64(17)
    return state


@kernel(nested=True)
def tabu(gram, codes, scale, choice, slope, best, state, patience, most, tenure, grain):
    """Move single weights to neighbouring levels, again and again the move that raises the error least.

    A weight that moved rests for a while (Glover 1989).

    Parameters
    ----------
    gram : (n, n) float32
    codes : (levels,) float64
    scale : (n,) float64
    choice : (n,) int64
        Start; overwritten.
    slope : (n,) float32
        Half the derivatives of the error there.
    best : (n,) int64
        Filled: the best point on the way.
    state : uint64
        Of the generator.
    patience, most : int
        Moves after the last improvement, and in all.
    tenure : int
        A weight rests for so many moves, and up to nine more.
    grain : float
        Improvements of no more than this are rounding and win no further moves.

    Returns
    -------
    value : float
        Change of the error, ≤ 0.
    state : uint64
    """
    n = len(choice)
    strips = (n + STRIP - 1) // STRIP
    diagonal, up, down = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    gradient, until = np.empty(n, np.float32), np.zeros(n, np.int32)
    cost = np.empty(n, np.float32)
    bits = cost.view(np.int32)
    least, free = np.empty(strips, np.int32), np.empty(strips, np.int32)
    for i in range(n):
        diagonal[i] = max(gram[i, i], FLAT)
        gradient[i] = slope[i]
        best[i] = choice[i]
        _set_steps(i, choice[i], codes, scale[i], up, down)
    value = lowest = 0.0
    pending = False
    i = 0
    step = np.float32(0.0)
    turn, end = 0, min(most, patience)
    while turn < end:
        turn += 1
        now = np.int32(turn)
        add_multiple(step, gram[i], gradient)
        _price(gradient, diagonal, up, down, cost)
        a = f = 0
        for b in range(strips):
            j, k = b * STRIP, min(n, (b + 1) * STRIP)
            least[b], free[b] = _least(bits[j:k], until[j:k], now)
            if least[b] < least[a]:
                a = b
            if free[b] < free[f]:
                f = b
        i = _place(a, cost, until, LAST)
        if not value + cost[i] < lowest:
            i = _place(f, cost, until, now)
        wanted = cost[i]
        if until[i] > now and not value + wanted < lowest:
            break
        if pending and wanted >= 0.0:
            for k in range(n):
                best[k] = choice[k]
            pending = False
        c = choice[i] + (-1 if gradient[i] > 0 else 1)
        if c < 0 or c >= len(codes):
            # Only NaN and infinity lead here.
            break
        step = -down[i] if gradient[i] > 0 else up[i]
        choice[i] = c
        value += wanted
        if value < lowest:
            if value < lowest - grain:
                end = min(most, turn + patience)
            lowest = value
            pending = True
        _set_steps(i, choice[i], codes, scale[i], up, down)
        state = next_state(state)
        until[i] = now + np.int32(tenure) + np.int32(state % np.uint64(10))
    if pending:
        for k in range(n):
            best[k] = choice[k]
    return lowest, state
