"""Depth-first search of all points of a grid below a cut: min over v of Σ cost_i(v_i) + ‖R(v − z)‖².

R is an upper triangular float64 matrix, the numbers as they are. Variables are fixed from the last to the first. Where
those from k on are fixed, the centre of the first k is z + x with R_FF x_F = −R_F,fixed (v − z)_fixed, and for every
diagonal D ⪯ R_FFᵀR_FF

    Σ cost_i(v_i) + ‖R(v − z)‖² ≥ (costs and squares of the fixed rows) + Σ min_v [cost_i(v) + d_i (v − z_i − x_i)²].

The search is in float64; how much its rounding can hide is computed afterwards from what it met (`Search.allowance`,
derived in docs/certificates.md).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from layerbounds_verify.bounds import is_semidefinite
from layerbounds_verify.exact import RefusedError, U, floats, integers, power

#: Shares of the given diagonals that are tried one after the other until one is proven.
_SHARES = (1.0, 1.0 - 1e-12, 1.0 - 1e-9, 1.0 - 1e-6, 0.999, 0.5, 0.0)
#: The least terms of levels are walked to where none of their steps is this many times shorter than all together.
_MOST_UNEVEN = 1000.0
#: More points below the cut than this are not gone through one by one.
MOST_LEAVES = 100_000


@njit(cache=True, nogil=True)
def _search(
    step: Any, cost: Any, count: Any, convex: bool, zero: Any, group: Any, capacity: Any, price: Any,
    factor: Any, shifts: Any, minorants: Any, cut: float, most: int, reach: Any, far: Any, leaves: Any,
) -> Any:  # fmt: skip  # pragma: no cover - compiled
    """Nodes met and leaves found below the cut; nodes are −1 where they are more than ``most``.

    Where costs are convex, a variable's least term is looked for from the level that had it last. Levels other than
    ``zero`` (−1 where it is not allowed) count against the capacity of their variable's group: a bound has the terms of
    zeros, less the largest savings of as many others as the capacities leave. Of a single group it has for any price
    p ≥ 0 the smaller ones of the terms of zero and p more than those of others, less p for each place left; prices
    adapt to depth and places, and the last row has the largest. With groups costs have to be convex.
    """
    n = factor.shape[0]
    x = np.zeros((n + 1, n))
    sums = np.zeros((n + 1, n))
    partial = np.zeros(n + 1)
    rest = np.full(n + 1, -np.inf)
    pick = np.full(n + 1, -1, dtype=np.int64)
    guess = np.zeros(n, dtype=np.int64)
    nodes, found, k = 0, 0, n - 1
    # How many more of each group may be used, with the variables from k on fixed; what was saved by as many others.
    groups = capacity.shape[0]
    left = np.zeros((n + 1, groups), dtype=np.int64)
    left[n] = capacity
    for i in range(n if groups else 0):
        if zero[i] < 0:
            # For variables that need it, it is set aside.
            left[n, group[i]] -= 1
            if left[n, group[i]] < 0:
                return 0, 0
    top = np.zeros((groups, n + 1))
    saved = np.zeros(groups, dtype=np.int64)
    kept = np.full(n + 1, -np.inf)
    # The least costs of the first so many variables.
    floor = np.zeros(n + 1)
    for i in range(n):
        floor[i + 1] = floor[i] + np.min(cost[: count[i], i])
    while k < n:
        pick[k] += 1
        if pick[k] >= count[k]:
            pick[k] = -1
            k += 1
            continue
        j = pick[k]
        uses = groups > 0 and zero[k] >= 0 and j != zero[k]
        if uses and left[k + 1, group[k]] == 0:
            continue
        move = step[j, k] - x[k + 1, k]
        own = minorants[k + 1, k] * (move * move)
        # The parent's bound with this level in the place of the best one.
        if (kept[k + 1] if uses else rest[k + 1]) + cost[j, k] + own >= cut:
            continue
        nodes += 1
        if nodes > most:
            return -1, found
        row = sums[k + 1, k] + factor[k, k] * step[j, k]
        partial[k] = partial[k + 1] + cost[j, k] + row * row
        if k == 0:
            if partial[0] < cut:
                if found < leaves.shape[0]:
                    for i in range(n):
                        leaves[found, i] = pick[i]
                found += 1
            continue
        reach[k] = max(reach[k], abs(move))
        total = partial[k]
        last, least, paid = 0.0, 0.0, 0.0
        for g in range(groups):
            left[k, g] = left[k + 1, g]
            saved[g] = 0
        if uses:
            left[k, group[k]] -= 1
        if groups == 1 and left[k, 0] < k:
            paid = price[k, left[k, 0]] if left[k, 0] else np.inf
            total -= paid * left[k, 0] if left[k, 0] else 0.0
        for i in range(k):
            if groups < 2 and i % 8 == 7 and total + (floor[k] - floor[i]) >= cut:
                total, last = cut, -np.inf
                break
            sums[k, i] = sums[k + 1, i] + factor[i, k] * step[j, k]
            centre = x[k + 1, i] + shifts[k, i] * move
            x[k, i] = centre
            far[i] = max(far[i], abs(centre))
            d = minorants[k, i]
            guess[i] = guess[i] if convex else 0
            m = guess[i]
            r = step[m, i] - centre
            best = cost[m, i] + d * (r * r)
            for way in (1, -1):
                m = guess[i] + way if convex else m + 1
                while 0 <= m < count[i]:
                    r = step[m, i] - centre
                    value = cost[m, i] + d * (r * r)
                    if value < best:
                        best = value
                        guess[i] = m
                    elif convex:
                        break
                    m += way if convex else 1
            last = total
            if groups == 0 or zero[i] < 0:
                total += best
                continue
            # Zero, and what the best other level saves: its place among the savings of its group.
            o, none, g = guess[i], best, group[i]
            if o != zero[i]:
                r = step[zero[i], i] - centre
                none = cost[zero[i], i] + d * (r * r)
            else:
                best = np.inf
                for m in (o - 1, o + 1):
                    if 0 <= m < count[i]:
                        r = step[m, i] - centre
                        best = min(best, cost[m, i] + d * (r * r))
            if groups == 1:
                total += min(none, best + paid)
                saved[0] += best + paid < none
                continue
            room, filled = left[k, g], saved[g]
            if i == k - 1:
                least = top[g, room - 1] if 0 < room <= filled else 0.0
            total += none
            gain = none - best
            if gain > 0.0 and room > 0:
                if filled < room:
                    saved[g] += 1
                    total -= gain
                    m = filled
                elif gain > top[g, room - 1]:
                    total -= gain - top[g, room - 1]
                    m = room - 1
                else:
                    continue
                while m > 0 and room < k and top[g, m - 1] < gain:
                    top[g, m] = top[g, m - 1]
                    m -= 1
                top[g, m] = gain
        if groups == 1 and 0.0 < paid < np.inf and last > -np.inf:
            paid *= 1.03 if saved[0] > left[k, 0] else 0.97 if saved[0] < left[k, 0] else 1.0
            price[k, left[k, 0]] = paid
            price[n, 0] = max(price[n, 0], paid)
        if not total < 1e300:
            return -1, found
        if total >= cut:
            continue
        # Without the own term of the variable that is next; a place that it takes is missing to the others.
        rest[k] = last
        kept[k] = last + (least if groups > 1 else paid)
        k -= 1
    return nodes, found


class Search:
    """One problem, made ready.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        Symmetric, in the order of the search; what ‖R(v − z)‖² stands for.
    step, cost : ndarray of shape (levels, n)
        v − z, rounded to float64, and the costs.
    count : ndarray of int, shape (n,)
        How many levels each variable has.
    minorants : ndarray of shape (n + 1, n)
        Row k: a diagonal for the first k variables, which is proven here or lowered.
    convex : bool
        Whether costs are linear in the steps, which ascend: levels that are far from even are all gone through.
    limits : tuple of ndarray, optional
        Where zero is among the levels of each variable, −1 where it is not; its group; how many of each group may be
        other than zero; prices to begin with.
    """

    def __init__(
        self, matrix: Any, step: Any, cost: Any, count: Any, minorants: Any, convex: bool, limits: Any = None
    ) -> None:
        n = len(matrix)
        self.limits: list[Any]
        none = *(np.zeros(0, dtype=np.int64),) * 3, np.zeros(0)
        *self.limits, price = none if limits is None else limits
        self.step, self.cost, self.count = np.ascontiguousarray(step), np.ascontiguousarray(cost), count
        # A step between levels that rounding hides is no reason to stop where the next ones are much longer.
        spans = [(np.ptp(s[:c]), np.diff(s[:c]).min()) for s, c in zip(step.T, count, strict=True) if np.ptp(s[:c])]
        self.convex = convex and all(span <= _MOST_UNEVEN * shortest for span, shortest in spans)
        self.uneven = max((span / shortest for span, shortest in spans), default=0.0) if self.convex else 0.0
        self.factor, self.away, self.shifts, self.minorants = prepared(matrix.tobytes(), minorants.tobytes(), n)
        self.size = np.array([np.abs(self.step[: self.count[i], i]).max() for i in range(n)])
        if not np.max(np.abs(self.factor) @ self.size) <= 1e140:
            raise RefusedError("its numbers are too large for a search in float64")
        least = [self.cost[: self.count[i], i].min() for i in range(n)]
        self.floor, self.costs = float(np.sum(least)), sum(np.abs(self.cost[:c, i]).max() for i, c in enumerate(count))
        # Distances that a search meets, as a guess from which it rarely has to be repeated.
        self.reach, self.far = self.size.copy(), self.size.copy()
        self.price = np.full((n + 1, n + 1), max(*price, 1e-9 * self.costs, 0.0) if len(price) == 1 else 0.0)

    def below(self, cut: float, most: int) -> Any:
        """The levels of all points below an exact cut, shape (points, n), and perhaps of some a little above it."""
        slack = 16.0 * self.allowance(cut)
        for _ in range(6):
            found = self.run(cut + slack, most)
            needed = self.allowance(cut)
            if needed <= slack:
                return found
            slack = 2.0 * needed
        raise RefusedError("rounding could hide points from a search")

    def run(self, cut: float, most: int) -> Any:
        """The levels of all points whose computed value is below the cut."""
        leaves = np.zeros((256, len(self.factor)), dtype=np.int64)
        while True:
            nodes, found = _search(  # type: ignore[call-arg]
                self.step, self.cost, self.count, self.convex, *self.limits, self.price, self.factor, self.shifts,
                self.minorants, cut, most, self.reach, self.far, leaves,
            )  # fmt: skip
            if nodes < 0:
                raise RefusedError(f"a search has more than {most} nodes, or numbers that are too large")
            if found <= len(leaves):
                return leaves[:found]
            if found > MOST_LEAVES:
                raise RefusedError("too many points lie below the lower bound that it claims")
            leaves = np.zeros((found, leaves.shape[1]), dtype=np.int64)

    def allowance(self, cut: float) -> float:
        """How far above its exact value a value that the search tested can lie, for points below an exact cut."""
        n = len(self.factor)
        size = np.abs(self.factor)
        differs = float(self.size @ self.away @ self.size)
        radius = np.sqrt(max(cut - self.floor + differs, 0.0) * (1 + 1e-9)) + 1e-150
        rows = np.linalg.norm(1.01 * (n + 8) * U * (size @ self.size))
        centre = 13.0 * U * n * np.linalg.norm(size @ self.far)
        for k in range(1, n):
            block = self.factor[:k, :k]
            residual = np.abs(block @ self.shifts[k, :k] + self.factor[:k, k])
            residual += 1.01 * (n + 4) * U * (size[:k, :k] @ np.abs(self.shifts[k, :k]) + size[:k, k])
            centre += 1.01 * float(np.linalg.norm(residual)) * self.reach[k]
        errors = 2.0 * radius * (rows + centre) + (rows + centre) ** 2
        added = self.costs + (radius + rows + centre) ** 2
        if len(self.limits[2]):
            added += 2.0 * self.costs + 3.0 * float(self.minorants.max(axis=0) @ (self.size + self.far) ** 2)
            added += 2.0 * n * self.price.max()
        sums = 1.01 * (5 * n + 16 * self.uneven + 32) * U * added
        return float(1.01 * (errors + sums + differs)) + 1e-290


@lru_cache(maxsize=512)
def prepared(matrix_data: bytes, minorant_data: bytes, n: int) -> tuple[Any, Any, Any, Any]:
    """R, |matrix − RᵀR|, T and proven diagonals; kept, as the blocks of many rows are the same."""
    matrix, given = np.frombuffer(matrix_data).reshape(n, n), np.frombuffer(minorant_data).reshape(n + 1, n)
    upper = factor(matrix)
    half = power(upper, matrix)
    whole = integers(upper, half)
    whole = whole.T @ whole
    square = floats(whole, 2 * half)
    away = np.abs(floats(whole - integers(matrix, 2 * half), 2 * half)) * (1 + 2 * U)
    shifts, minorants = np.zeros((n, n)), np.zeros((n + 1, n))
    inverse = np.linalg.inv(upper)
    for k in range(1, n + 1):
        shifts[k - 1, : k - 1] = inverse[: k - 1, k - 1] * upper[k - 1, k - 1]
        for share in _SHARES:
            d = np.maximum(given[k, :k], 0.0) * share
            off = U * np.abs(square[:k, :k]) + 2 * U * np.diag(np.diag(square)[:k] + d)
            if is_semidefinite(square[:k, :k] - np.diag(d), off):
                minorants[k, :k] = d
                break
    return upper, away, shifts, minorants


def factor(matrix: Any) -> Any:
    """An upper triangular R with RᵀR near the matrix: of a singular one, near the matrix with a raised diagonal."""
    for share in (0.0, *(2.0**e for e in range(-44, -8, 4))):
        try:
            lower = np.linalg.cholesky(matrix + np.diag(share * np.diag(matrix)))
        except np.linalg.LinAlgError:
            continue
        if len(matrix) == 0 or np.min(np.diag(lower) ** 2 / np.diag(matrix)) > 2.0**-44:
            return np.ascontiguousarray(lower.T)
    raise RefusedError("its Gram matrix cannot be factorized")
