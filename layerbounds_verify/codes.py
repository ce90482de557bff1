"""A search of all points of evenly spaced grids below a cut: as `search`, in codes, with centres alone.

With levels near s(c − o), c = 0, 1, 2, …, and code coordinates y of the point z, f(v) − f(z) is nearly
Σ 2g_i(c_i − y_i) + ‖R(c − y)‖², g = s·h. Row k of R(c − y) is R_kk times the distance of c_k to its centre, and the
least term of a free code is at the integer nearest to its vertex, so that a node is one loop over the free codes
(docs/certificates.md).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit

from layerbounds_verify.bounds import Minorant, Tangent, is_semidefinite
from layerbounds_verify.exact import RefusedError, U, below, floats, integers, matrix_integers, power
from layerbounds_verify.grids import MOST_NODES, tightened
from layerbounds_verify.search import MOST_LEAVES, prepared


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _terms(
    k: int, move: float, parent: Any, child: Any, shift: Any, d: Any, pull: Any, vertex: Any, low: Any, high: Any
) -> float:  # fmt: skip  # pragma: no cover - compiled
    """Move the centres of the first k codes; the sum of their least terms."""
    total = 0.0
    for i in range(k):
        x = parent[i] + shift[i] * move
        child[i] = x
        c = min(max(np.rint(x - vertex[i]), low[i]), high[i])
        total += pull[i] * c + d[i] * ((c - x) * (c - x))
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _form_terms(
    k: int, m: int, move: float, left: float, parent: Any, child: Any, moved: Any, own: Any, weights: Any, x: Any,
    d: Any, pull: Any, vertex: Any, low: Any, high: Any,
) -> float:  # fmt: skip  # pragma: no cover - compiled
    """The values of the first m forms of the first k codes, and the sum of the least terms of both."""
    total = 0.0
    for j in range(m):
        value = parent[j] + moved[j] * move - own[j] * left
        child[j] = value
        total += weights[j] * ((value - np.rint(value)) * (value - np.rint(value)))
    for i in range(k):
        c = min(max(np.rint(x[i] - vertex[i]), low[i]), high[i])
        total += pull[i] * c + d[i] * ((c - x[i]) * (c - x[i]))
    return total


@njit(cache=True, nogil=True)
def _search(
    y: Any, pull: Any, low: Any, high: Any, pivots: Any, shifts: Any, minorants: Any, vertex: Any, forms: Any,
    moves: Any, active: Any, units: Any, unit_vertex: Any, weights: Any, cut: float, most: int, reach: Any, leaves: Any,
) -> Any:  # fmt: skip  # pragma: no cover - compiled
    """Nodes met and points found below the cut; nodes are −1 where they are more than ``most``."""
    n = len(y)
    x = np.zeros((n + 1, n))
    x[n] = y
    values = np.zeros((n + 1, forms.shape[1]))
    for j in range(forms.shape[1]):
        values[n, j] = np.sum(forms[:, j] * y)
    partial = np.zeros(n + 1)
    rest = np.full(n + 1, -np.inf)
    pick = low - 1.0
    nodes, found, k = 0, 0, n - 1
    while k < n:
        pick[k] += 1.0
        if pick[k] > high[k]:
            pick[k] = low[k] - 1.0
            k += 1
            continue
        move = pick[k] - x[k + 1, k]
        cost = pull[k] * pick[k]
        # The parent's bound with this code in the place of the best one.
        if rest[k + 1] + cost + minorants[k + 1, k] * (move * move) >= cut:
            continue
        nodes += 1
        if nodes > most:
            return -1, found
        partial[k] = partial[k + 1] + cost + pivots[k] * (move * move)
        if k == 0:
            if partial[0] < cut:
                if found < len(leaves):
                    leaves[found] = pick
                found += 1
            continue
        reach[k] = max(reach[k], abs(move))
        total = partial[k] + _terms(k, move, x[k + 1], x[k], shifts[k], minorants[k], pull, vertex[k], low, high)
        if not total < 1e300:
            return -1, found
        if total >= cut:
            continue
        if active[k] and cut <= partial[k] + _form_terms(
            k, active[k], move, x[k + 1, k], values[k + 1], values[k], moves[k], forms[k], weights[k], x[k],
            units[k], pull, unit_vertex[k], low, high,
        ):  # fmt: skip
            continue
        k -= 1
        c = min(max(np.rint(x[k + 1, k] - vertex[k + 1, k]), low[k]), high[k])
        r = c - x[k + 1, k]
        rest[k + 1] = total - (pull[k] * c + minorants[k + 1, k] * (r * r))
    return nodes, found


def over_codes(
    gram: Any, target: Any, values: Any, order: Any, z: Any, minorants: Any, claim: Fraction, scale: Any, zero: Any,
    count: Any, forms: Any = None,
) -> Fraction:  # fmt: skip
    """The claim, if no point of the grid has a smaller error, as `grids.over_grid`.

    Parameters
    ----------
    gram, target, values, order, z, minorants, claim
        As there.
    scale, zero : ndarray of shape (n,)
        With which levels are near scale · (code − zero), codes 0, 1, 2, ….
    count : ndarray of int, shape (n,)
        How many codes each input has; further levels are the same again.
    forms : sequence of ndarray, optional
        Of shapes (n, cuts), (rows,), (rows, n), (rows, cuts): integer forms of the codes in that order; and, for the
        first so many inputs, d and g of diag(d) + U diag(g) Uᵀ, U = forms / scale, or what is hoped to be below H.
    """
    n = len(values)
    if sorted(order.tolist()) != list(range(n)) or minorants.shape != (n + 1, n) or not np.all(np.isfinite(minorants)):
        raise RefusedError("its search has an order that is no permutation, or minorants of a wrong shape")
    tangent = Tangent(gram, target, z, Minorant(np.zeros(n), np.zeros(n), []), values)
    cut = -below(tangent.bound(0) - claim)
    whole, b = matrix_integers(gram)
    p, s, o = power(scale), [Fraction(x) for x in scale.tolist()], [Fraction(x) for x in zero.tolist()]
    times, y = integers(scale, p), z / scale + zero
    off = []
    for i, row in enumerate(row[:k] for row, k in zip(values.tolist(), count.tolist(), strict=True)):
        levels_off = max(abs(Fraction(v) / s[i] - c + o[i]) for c, v in enumerate(row))
        off.append(float(levels_off + abs(Fraction(float(z[i])) / s[i] + o[i] - Fraction(float(y[i])))))
    matrix = floats(whole * np.outer(times, times), b + 2 * p)[np.ix_(order, order)]
    pull, y = 2.0 * floats(tangent.h * times, tangent.a + tangent.b + p)[order], y[order]
    square, at_most = scale[order] ** 2, np.array(off)[order] * (1 + 2 * U)
    search = Codes(matrix, minorants * square, pull, y, at_most, count[order], cut)
    if forms is not None:
        search.use(forms[0], forms[1], forms[2] * square, forms[3])
    for leaf in search.below(cut):
        point = np.empty(n)
        point[order] = values[order, leaf]
        error = Tangent(gram, target, point, Minorant(np.zeros(n), np.zeros(n), [])).bound(0)
        if error < claim:
            raise RefusedError(
                f"weights on the grid have a smaller error than it claims, by {float(claim - error):.3g}"
            )
    return claim


class Codes:
    """A search, made ready: all in its order, and in codes."""

    def __init__(self, matrix: Any, minorants: Any, pull: Any, y: Any, off: Any, count: Any, cut: float) -> None:
        n = len(y)
        step = np.arange(int(count.max()))[:, None] - y
        apart = 2.0 * float((np.abs(pull) + 2.0 * np.abs(minorants[n]) * np.abs(step).max(axis=0)) @ off)
        step, _, count, start = tightened(step, pull * step, minorants[n], matrix, cut + apart, count)
        self.low, self.high = start.astype(np.float64), (start + count - 1).astype(np.float64)
        self.pull, self.y, self.off = pull, y, off
        self.factor, away, self.shifts, self.minorants = prepared(matrix.tobytes(), minorants.tobytes(), n)
        self.away = away + U * np.abs(matrix)
        self.size = np.maximum(np.abs(self.low - y), np.abs(self.high - y)) + off
        self.floor = float(np.minimum(pull * (self.low - y), pull * (self.high - y)).sum())
        self.costs = float(np.abs(pull) @ (self.high + np.abs(y)))
        self.reach, self.matrix = np.zeros(n), matrix
        self.forms = self.moves = np.zeros((n, 0))
        self.active, self.units, self.weights = (
            np.zeros(n + 1, dtype=np.int64),
            np.zeros((n + 1, n)),
            np.zeros((n + 1, 0)),
        )

    def use(self, forms: Any, depths: Any, units: Any, weights: Any) -> None:
        """Forms, where they are proven to be below the matrix."""
        (n, m), forms = forms.shape, forms.astype(np.float64)
        fits = units.shape == (len(depths), n) and weights.shape == (len(depths), m) and n == len(self.y)
        if not fits or np.any(forms != np.rint(forms)) or np.abs(forms).max(initial=0.0) > 2**16:
            raise RefusedError("its search has forms of a wrong shape, or that are no small integers")
        if not np.all((units >= 0) & (units < np.inf)) or not np.all((weights >= 0) & (weights < np.inf)):
            raise RefusedError("its search has weights of forms that are negative or not finite")
        self.forms, self.moves = forms, self.shifts @ forms
        self.active, self.units, self.weights = (
            np.zeros(n + 1, dtype=np.int64),
            np.zeros((n + 1, n)),
            np.zeros((n + 1, m)),
        )
        several = np.cumsum(forms != 0, axis=0) >= 2
        for (k, least), d, g in zip(depths.tolist(), units, weights, strict=True):
            v, given = forms[:k], self.matrix[:k, :k]
            size = (np.abs(v) * g) @ np.abs(v).T + np.diag(d[:k])
            off = self.away[:k, :k] + 2 * U * np.abs(given) + 1.01 * (m + 8) * U * size
            if not 1 < least <= k <= n or not is_semidefinite(given - (v * g) @ v.T - np.diag(d[:k]), off):
                continue
            for i in range(least, k + 1):
                # The same holds for fewer inputs; forms of one of them that is left add to its weight.
                a = self.active[i] = 1 + np.flatnonzero(several[i - 1]).max(initial=-1)
                self.units[i, :i] = (d[:i] + forms[:i, a:] ** 2 @ g[a:]) * (1 - 4 * (m + 4) * U)
                self.weights[i, :a] = g[:a]
        # Values of forms are those of the node above, moved.
        self.active = np.minimum.accumulate(self.active[::-1])[::-1]

    def below(self, cut: float) -> Any:
        """The codes of all points below an exact cut, shape (points, n), and perhaps of some a little above it."""
        radius = np.sqrt(max(cut - self.floor, 0.0))
        pivots = np.diag(self.factor)
        self.reach = radius / pivots
        slack = 4.0 * self.allowance(cut)
        with np.errstate(divide="ignore", invalid="ignore"):
            vertices = [np.where(self.pull == 0.0, 0.0, self.pull / 2.0 / d) for d in (self.minorants, self.units)]
        leaves = np.zeros((256, len(pivots)))
        for _ in range(6):
            self.reach = np.zeros(len(pivots))
            nodes, found = _search(
                self.y, self.pull, self.low, self.high, pivots**2, self.shifts, self.minorants, vertices[0],
                self.forms, self.moves, self.active, self.units, vertices[1], self.weights,
                cut + float(self.pull @ self.y) + slack, MOST_NODES, self.reach, leaves,
            )  # fmt: skip
            if nodes < 0:
                raise RefusedError(f"a search has more than {MOST_NODES} nodes, or numbers that are too large")
            needed = self.allowance(cut)
            if needed <= slack and found <= len(leaves):
                return leaves[:found].astype(np.int64)
            if found > MOST_LEAVES:
                raise RefusedError("too many points lie below the lower bound that it claims")
            slack, leaves = max(slack, 2.0 * needed), np.zeros((max(found, 256), len(pivots)))
        raise RefusedError("rounding could hide points from a search")

    def allowance(self, cut: float) -> float:
        """How far above its exact value a value that the search tested can lie, for points below an exact cut."""
        n, size = len(self.factor), np.abs(self.factor)
        terms = 5 * n + 2 * self.forms.shape[1] + 40
        differs = float(self.size @ self.away @ self.size) + float(np.abs(self.pull) @ self.off)
        sums = 1.01 * terms * U * self.costs
        radius = np.sqrt(max(cut - self.floor + differs + sums, 0.0) * (1 + 1e-9)) + 1e-150
        # No centre is farther from 0 than all moves together.
        far = 1.01 * (np.abs(self.y) + self.reach @ np.abs(self.shifts))
        row = size @ self.off + 13.0 * U * n * (size @ far)
        for k in range(1, n):
            block, shift = size[:k, :k], np.abs(self.shifts[k, :k])
            residual = np.abs(self.factor[:k, :k] @ self.shifts[k, :k] + self.factor[:k, k])
            row[:k] += self.reach[k] * (residual + 1.01 * (n + 4) * U * (block @ shift + size[:k, k]))
        apart = 1.01 * float(np.linalg.norm(row))
        squares = 1.01 * terms * U * (radius + apart) ** 2
        most = np.maximum(self.minorants.max(axis=0), self.units.max(axis=0))
        nearest = 5.0 * U * float(most @ far + np.abs(self.pull).sum())
        values = 20.0 * (n + 4) * U * (far @ np.abs(self.forms))
        nearest += float(self.weights.max(axis=0) @ (values + values**2))
        return float(1.01 * (2.0 * radius * apart + apart**2 + sums + squares + nearest + differs)) + 1e-290
