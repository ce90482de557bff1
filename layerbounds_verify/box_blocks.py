"""Least costs of blocks of a minorant over boxes of codes, in float64, with what rounding can hide.

With g = s + B(c − z), e = v − c, for any point c and RᵀR near B (docs/certificates.md, boxes of codes),

    2sᵀ(v − z) + (v − z)ᵀB(v − z) = (c − z)ᵀ(s + g) + Σ 2g_i e_i + ‖Re‖² + eᵀ(B − RᵀR)e.

A depth-first search adds up squares and what tilts 2g_i e_i exceed their least values by. None of that is negative, so
that sums rise, also rounded ones: the search finds the least computed cost. Tilts are small where c is near the least
cost over the box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from layerbounds_verify.bounds import Minorant
from layerbounds_verify.exact import RefusedError, U
from layerbounds_verify.grids import searched
from layerbounds_verify.search import factor

#: Nodes of the search of one block in one box, and sweeps to its centre.
_MOST_NODES, _SWEEPS = 1 << 22, 30
#: More than underflow can do to numbers of about 1.
_UNDERFLOW = 1e-300


def prepared(minorant: Minorant) -> tuple[Any, Any, Any, Any, Any]:
    """Where blocks of several inputs begin; the inputs in the order of the search; B, R and |B − RᵀR|, padded."""
    parts = [(m, values) for m, values in minorant.parts if len(m) > 1]
    first = np.cumsum([0, *(len(m) for m, _ in parts)])
    member = np.zeros(first[-1], dtype=np.int64)
    entries, factors, away = np.zeros((3, len(parts), *(max([len(m) for m, _ in parts], default=0),) * 2))
    for k, (m, values) in enumerate(parts):
        size, order = len(m), searched(values.tobytes(), len(m))[0]
        member[first[k] : first[k + 1]] = m[order]
        b = values[np.ix_(order, order)].copy()
        b[np.diag_indices(size)] = np.nextafter(np.diag(b) - minorant.shift[m[order]], -np.inf)
        try:
            r = factor(b)
        except RefusedError:
            r = np.zeros((size, size))
        near = np.abs(b - r.T @ r) + 1.01 * (size + 2) * U * (np.abs(r.T) @ np.abs(r) + np.abs(b)) + _UNDERFLOW
        entries[k, :size, :size], factors[k, :size, :size], away[k, :size, :size] = b, r, near
    return first, member, entries, factors, away


@njit(cache=True, nogil=True)
def least_of_block(
    values: Any, z: Any, slope: Any, low: Any, high: Any, inputs: Any, b: Any, r: Any, away: Any
) -> Any:  # fmt: skip  # pragma: no cover - compiled
    """The least computed cost, how far below it the true one can be, and the size of what was added.

    ``values``, ``z``, ``slope`` and the first and last codes, ``low`` and ``high``, are those of all inputs. The cost
    is NaN where the search has too many nodes.
    """
    m = len(inputs)
    c, move, g, reach, floor = np.zeros(m), np.zeros(m), np.zeros(m), np.zeros(m), np.zeros(m)
    for k in range(m):
        i = inputs[k]
        c[k] = min(max(z[i], values[i, int(low[i])]), values[i, int(high[i])])
    for _ in range(_SWEEPS):
        moved = 0.0
        for k in range(m):
            i = inputs[k]
            pull = slope[i]
            for j in range(m):
                pull += b[k, j] * (c[j] - z[inputs[j]])
            begin, end = values[i, int(low[i])], values[i, int(high[i])]
            aim = c[k] - pull / b[k, k] if b[k, k] > 0.0 else (end if pull < 0.0 else begin)
            aim = min(max(aim, begin), end) if aim == aim else begin
            moved = max(moved, abs(aim - c[k]) / (end - begin) if end > begin else 0.0)
            c[k] = aim
        if moved <= 1e-4:
            break
    base, size, charge = 0.0, 0.0, 0.0
    for k in range(m):
        move[k] = c[k] - z[inputs[k]]
    for k in range(m):
        i = inputs[k]
        g[k], much = slope[i], abs(slope[i])
        for j in range(m):
            g[k] += b[k, j] * move[j]
            much += abs(b[k, j] * move[j])
        below, above = values[i, int(low[i])] - c[k], values[i, int(high[i])] - c[k]
        reach[k] = max(abs(below), abs(above))
        floor[k] = min(2.0 * g[k] * below, 2.0 * g[k] * above)
        base += move[k] * (g[k] + slope[i]) + floor[k]
        size += 2.0 * abs(move[k]) * much + 6.0 * abs(g[k]) * reach[k]
        charge += 2.0 * (m + 3) * U * much * reach[k] + _UNDERFLOW * (1.0 + reach[k] + abs(move[k]))
    for k in range(m):
        row, off = 0.0, 0.0
        for j in range(m):
            row += abs(r[k, j]) * reach[j]
            off += away[k, j] * reach[j]
        size += row * row
        charge += reach[k] * off + _UNDERFLOW * row
    charge += (6 * m + 32) * U * size
    # Partial sums of the levels of each variable, those of the next ones known; infinite once they were tried.
    count = 1
    for k in range(m):
        count = max(count, int(high[inputs[k]]) - int(low[inputs[k]]) + 1)
    part, e, total, best, nodes = np.full((m, count), np.inf), np.zeros(m), np.zeros(m + 1), np.inf, 0
    k, enter = m - 1, True
    while k < m:
        i = inputs[k]
        own = int(high[i]) - int(low[i]) + 1
        if enter:
            rest = 0.0
            for j in range(k + 1, m):
                rest += r[k, j] * e[j]
            for v in range(own):
                step = values[i, int(low[i]) + v] - c[k]
                row = rest + r[k, k] * step
                part[k, v] = total[k + 1] + (max(2.0 * g[k] * step - floor[k], 0.0) + row * row)
        pick = 0
        for v in range(1, own):
            if part[k, v] < part[k, pick]:
                pick = v
        if not part[k, pick] < best:
            k, enter = k + 1, False
            continue
        nodes += 1
        if nodes > _MOST_NODES:
            return np.nan, charge, size
        total[k], e[k] = part[k, pick], values[i, int(low[i]) + pick] - c[k]
        part[k, pick] = np.inf
        if k == 0:
            best, k, enter = total[0], 1, False
        else:
            k, enter = k - 1, True
    return base + best, charge, size
