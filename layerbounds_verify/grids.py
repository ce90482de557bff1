"""Lower bounds that a search proves: of a whole channel on a grid, and of the blocks of a block-diagonal minorant."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from layerbounds_verify.bounds import Minorant, Tangent, is_semidefinite
from layerbounds_verify.exact import RefusedError, U, below, floats, integers
from layerbounds_verify.reader import Structure
from layerbounds_verify.search import Search

#: Nodes of one search, of that of a block, and choices that are tried one by one.
MOST_NODES, MOST_BLOCK_NODES, MOST_CHOICES = 1 << 30, 1 << 22, 1 << 16


def over_grid(
    gram: Any, target: Any, values: Any, order: Any, z: Any, minorants: Any, claim: Fraction,
    structure: Structure | None = None, price: Any = None,
) -> Fraction:  # fmt: skip
    """The claim, if no point of the grid has a smaller error: all points below it are looked for.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target, z : ndarray of shape (n,)
    values : ndarray of shape (n, levels)
        Sorted.
    order : ndarray of int, shape (n,)
        In which variables are fixed, from the last to the first.
    minorants : ndarray of shape (n + 1, n)
        In that order.
    claim : Fraction
        Without the constant.
    structure : Structure or None
        Of single inputs, of which those with a weight other than zero count.
    price : ndarray of shape (groups,)
        With it: at least 0; what such an input of a group costs, and capacity that is not used is worth.
    """
    n = len(gram)
    if sorted(order.tolist()) != list(range(n)) or minorants.shape != (n + 1, n) or not np.all(np.isfinite(minorants)):
        raise RefusedError("its search has an order that is no permutation, or minorants of a wrong shape")
    rows = [np.unique(row) for row in values]
    count, last = np.array([len(row) for row in rows])[order], max(map(len, rows))
    values = np.array([np.pad(row, (0, last - len(row)), mode="edge") for row in rows])
    tangent = Tangent(gram, target, z, Minorant(np.zeros(n), np.zeros(n), []), values)
    whole = integers(values, tangent.a) - tangent.z[:, None]
    step, cost = floats(whole, tangent.a)[order].T, floats(2 * tangent.h[:, None] * whole, tangent.unit)[order].T
    cut, saved = -below(tangent.bound(0) - claim), Fraction(0)
    ordered, limits, paid = gram[np.ix_(order, order)], None, np.zeros(step.shape)
    if structure is not None:
        group = structure.group[structure.unit]
        if len(structure.group) != n or price.shape != structure.capacity.shape or not np.all(price >= 0):
            raise RefusedError("its search is of units of several inputs, or its prices are negative or too few")
        saved = sum((Fraction(p) * c for p, c in zip(price.tolist(), structure.capacity.tolist(), strict=True)), saved)
        paid = price[group[order]] * (values[order].T != 0.0)
    top = -below(tangent.bound(0) - claim - saved)
    count, start = tightened(step, cost + paid, minorants[n], ordered, top, count)[2:]
    inside = np.minimum(start + np.arange(last)[:, None], start + count - 1)
    step, cost = np.take_along_axis(step, inside, 0), np.take_along_axis(cost, inside, 0)
    if structure is not None:
        zero = np.argmax(values[order] == 0.0, axis=1) - start
        zero[(zero < 0) | (zero >= count)] = -1
        limits = zero, group[order].astype(np.int64), structure.capacity.astype(np.int64), price
    search = Search(ordered, step, cost, count, minorants, True, limits)
    for leaf in search.below(cut, MOST_NODES):
        point = np.empty(n)
        point[order] = values[order, leaf + start]
        error = Tangent(gram, target, point, Minorant(np.zeros(n), np.zeros(n), [])).bound(0)
        if error < claim:
            raise RefusedError(
                f"weights on the grid have a smaller error than it claims, by {float(claim - error):.3g}"
            )
    return claim


def tightened(step: Any, cost: Any, d: Any, gram: Any, cut: float, count: Any = None) -> tuple[Any, Any, Any, Any]:
    """Without the end levels of each variable that no point below the cut can take; and how many were left out below.

    With all variables free, D ⪯ H and the tangent at z bound the error; a level is out where its own term in the place
    of the least one lifts the bound to the cut, by more than rounding explains.
    """
    rows, start = np.arange(len(step))[:, None], np.zeros(len(d), dtype=np.int64)
    count = np.full(len(d), len(step)) if count is None else count
    terms = np.where(rows < count, cost + d * step * step, np.inf)
    if np.any(d < 0) or not is_semidefinite(gram - np.diag(d)):
        return step, cost, count, start
    size = float(np.max(np.abs(np.where(rows < count, terms, 0.0)), axis=0).sum())
    bound = terms.min(axis=0).sum() + (terms - terms.min(axis=0))
    keep = bound < cut + 1e-10 * (size + abs(cut))
    if keep.any(axis=0).all():
        start = np.argmax(keep, axis=0)
        count = len(keep) - np.argmax(keep[::-1], axis=0) - start
    inside = np.minimum(start + rows, start + count - 1)
    return np.take_along_axis(step, inside, 0), np.take_along_axis(cost, inside, 0), count, start


def over_blocks(tangent: Tangent, minorant: Minorant, values: Any, structure: Structure | None) -> Fraction:
    """The bound of a block-diagonal minorant, for levels, supports, and levels on supports.

    Blocks hold whole units of a structure, and whole groups, or units of one group.
    """
    total = 0
    tables: dict[int, list[list[int]]] = {}
    for m, matrix in minorant.parts:
        block = Block(tangent, m, matrix)
        if structure is None:
            total += block.least_level(values[m])
            continue
        sets, inputs, group = choices(structure, m, values is None)
        zero = block.costs(np.zeros((1, len(m))))[0]
        most = int(sets.sum(axis=1).max())
        if values is not None and group >= 0 and inputs.shape == sets.shape and values.shape[1] ** most > MOST_CHOICES:
            table = [0, *(zero - block.least_level(values[m], j + 1) for j in range(most))]
        else:
            table = by_count(block.saved(zero, inputs, values), sets)
        tables.setdefault(group, []).append(table)
        total += zero
    return tangent.bound(total if structure is None else total - most_saved(tables, structure))


def by_count(saved: Any, sets: Any) -> list[int]:
    """The most that sets of so many units save, from 0 on, or of fewer."""
    table, count = [0], sets.sum(axis=1)
    for j in range(1, int(count.max()) + 1):
        table.append(max([table[-1], *saved[count == j]]))
    return table


def most_saved(tables: dict[int, list[list[int]]], structure: Structure) -> int:
    """The largest total saving within the capacities, from those of blocks by group; −1 for blocks of whole groups."""
    total = sum(max(part) for part in tables.pop(-1, []))
    for group, parts in tables.items():
        capacity = int(structure.capacity[group])
        best = [0] * (capacity + 1)
        for part in parts:
            best = [max(best[k - j] + part[j] for j in range(min(k, len(part) - 1) + 1)) for k in range(capacity + 1)]
        total += best[-1]
    return total


def choices(structure: Structure, m: Any, refit: bool) -> tuple[Any, Any, int]:
    """The allowed sets of a block's units, masks of units and of inputs, and their group; −1 for whole groups."""
    units = np.unique(structure.unit[m])
    groups = np.unique(structure.group[units])
    whole = np.isin(structure.unit, units).sum() == len(m)
    if not whole or (len(groups) > 1 and np.isin(structure.group, groups).sum() != len(units)):
        raise RefusedError("a block of its minorant has parts of units or of groups")
    rows: list[tuple[int, ...]] = [()]
    for group in groups:
        own = np.flatnonzero(structure.group[units] == group).tolist()
        most = min(len(own), int(structure.capacity[group]))
        # With refit keeping more never costs more.
        least = most if refit and len(groups) > 1 else 0
        rows = [row + more for row in rows for j in range(least, most + 1) for more in combinations(own, j)]
        if len(rows) > MOST_CHOICES:
            raise RefusedError("a block of its minorant has too many choices")
    sets = np.array([[unit in row for unit in range(len(units))] for row in rows])
    return sets, sets[:, np.searchsorted(units, structure.unit[m])], -1 if len(groups) > 1 else int(groups[0])


def refit_saving(matrix: Any, entries: Any, c: Any, kept: Any, a: int, b: int) -> int:
    """c_SᵀB_SS⁻¹c_S from above, c = Bz − h: at most 2cᵀt − tᵀBt + ‖r‖²/λ, r = c − Bt on S, λ below all eigenvalues.

    t may be anything: it is found in float64, and again for what was left over. Of several rows, columns of c, the sum.
    """
    s = np.flatnonzero(kept)
    if not len(s):
        return 0
    block, entries = matrix[np.ix_(s, s)], entries[np.ix_(s, s)]
    lowest = 0.5 * np.linalg.eigvalsh(block)[0]
    if not lowest > 0 or not is_semidefinite(block - lowest * np.eye(len(s))):
        raise RefusedError("a block of its minorant is not positive definite")
    p, c = a + 64, c[s] << 64
    t = np.zeros(c.shape, dtype=object)
    for _ in range(3):
        rest = c - entries @ t
        t = t + integers(np.linalg.solve(block, floats(rest, p + b)), p)
    rest = c - entries @ t
    value = Fraction(int((t * (2 * c - entries @ t)).sum()), 1 << (2 * p + b))
    value += Fraction(int((rest * rest).sum()), 1 << (2 * (p + b))) / Fraction(lowest)
    return -int(-value * (1 << (2 * a + b)) // 1)


class Block:
    """One block of a minorant: 2hᵀt + tᵀ(B − diag(shift))t, t = v − z, in units of the tangent."""

    def __init__(self, tangent: Tangent, m: Any, matrix: Any) -> None:
        self.tangent, self.m, self.matrix = tangent, m, matrix
        self.z, self.h, self.shift = tangent.z[m], tangent.h[m], tangent.shift[m]
        self.entries = integers(matrix, tangent.b)
        self.entries[np.diag_indices(len(m))] -= self.shift
        #: z and h in float64, where nothing depends on their last digits.
        self.point, self.slope = floats(self.z, tangent.a), floats(self.h, tangent.a + tangent.b)

    def costs(self, points: Any) -> Any:
        """Of weights, shape (points, inputs)."""
        step = integers(points, self.tangent.a) - self.z
        return (step * (2 * self.h + step @ self.entries)).sum(axis=1)

    def least(self, points: Any) -> Any:
        """The least cost of some points: those near the least one in float64 are looked at closely."""
        step, entries = points - self.point, floats(self.entries, self.tangent.b)
        value = step @ (2.0 * self.slope) + np.sum((step @ entries) * step, axis=1)
        size = np.abs(step) @ (2.0 * np.abs(self.slope)) + np.sum(
            (np.abs(step) @ np.abs(entries)) * np.abs(step), axis=1
        )
        near = value <= value.min() + 16 * U * (len(self.m) + 8) * size.max()
        return self.costs(points[near]).min()

    def least_level(self, values: Any, most: int | None = None) -> Any:
        """The least cost of level points, of which no more than so many weights are other than zero."""
        rows = [np.unique(row) for row in values]
        count = max(map(len, rows))
        if most is None and (len(self.m) == 1 or count ** len(self.m) <= MOST_CHOICES // 16):
            return self.least(_points(rows))
        values = np.array([np.pad(row, (0, count - len(row)), mode="edge") for row in rows])
        a, (order, minorants) = self.tangent.a, searched(self.matrix.tobytes(), len(self.m))
        # Around a point c of the box where slopes are those of its ends: costs are then hardly negative.
        c = integers(self._centre(values), a) - self.z
        whole = self.entries.copy()
        whole[np.diag_indices(len(self.m))] += self.shift
        pull = whole @ c
        step = integers(values, a) - (self.z + c)[:, None]
        away = (step + c[:, None]) ** 2 * self.shift[:, None]
        cost = floats(2 * (self.h + pull)[:, None] * step - away, self.tangent.unit)[order].T
        moves, ordered = floats(step, a)[order].T, self.matrix[np.ix_(order, order)]
        limits, zero = None, None
        if most is not None:
            if any(self.shift):
                raise RefusedError("a block of its minorant has too many choices, and a shift")
            zero = np.argmax(values[order] == 0.0, axis=1)
            limits = zero, np.zeros(len(order), dtype=np.int64), np.array([most]), np.array([np.abs(cost).mean()])
        counts = np.array([len(rows[i]) for i in order])
        search = Search(ordered, moves, cost, counts, minorants, not any(self.shift), limits)
        high, low = (
            _descent(ordered, moves, cost, zero, most),
            float((cost + minorants[-1] * moves**2).min(axis=0).sum()),
        )
        # Below a rising cut, as far too many points may lie below that of the descent.
        for k in range(6 if most else 0, -1, -1):
            leaves = search.below(high if k == 0 else low + (high - low) * 0.5**k, MOST_BLOCK_NODES)
            if len(leaves):
                break
        else:
            raise RefusedError("the search of a block found nothing")
        points = np.empty(leaves.shape)
        points[:, order] = values[order, leaves]
        return self.costs(points).min()

    def _centre(self, values: Any) -> Any:
        """Near the least cost over the box, by coordinate descent in float64."""
        low, high, diagonal = values[:, 0].tolist(), values[:, -1].tolist(), np.diag(self.matrix).tolist()
        c = np.clip(self.point, values[:, 0], values[:, -1])
        for _ in range(50):
            before = c.copy()
            for i, d in enumerate(diagonal):
                slope = self.slope[i] + self.matrix[i] @ (c - self.point)
                c[i] = min(max(c[i] - slope / d, low[i]), high[i])
            if np.max(np.abs(c - before)) <= 1e-4 * np.max(np.abs(values)):
                break
        return c

    def saved(self, zero: int, inputs: Any, values: Any) -> Any:
        """The most that keeping each set of inputs saves beside dropping all."""
        if values is not None:
            return np.array([zero - self.least(self._points(row, values)) for row in inputs], dtype=object)
        if any(self.shift):
            raise RefusedError("its minorant has a shift, and weights may take any value")
        c, a, b = self.entries @ self.z - self.h, self.tangent.a, self.tangent.b
        return np.array([refit_saving(self.matrix, self.entries, c, row, a, b) for row in inputs], dtype=object)

    def _points(self, kept: Any, values: Any) -> Any:
        """What weights may be where these inputs are kept."""
        many = [np.unique(values[i]) if own else np.zeros(1) for i, own in zip(self.m, kept, strict=True)]
        if np.prod([float(len(v)) for v in many]) > MOST_CHOICES:
            raise RefusedError("a block of its minorant has too many choices")
        return _points(many)


def _points(values: list[Any]) -> Any:
    """All points whose coordinates are taken from lists, shape (points, coordinates)."""
    return np.stack(np.meshgrid(*values, indexing="ij"), axis=-1).reshape(-1, len(values))


@lru_cache(maxsize=512)
def searched(data: bytes, n: int) -> tuple[Any, Any]:
    """The order of a block's search, which begins at its end, with the largest Schur complement; diagonals by depth."""
    matrix = np.frombuffer(data).reshape(n, n)
    left, order = list(range(n)), []
    while left:
        inverse = np.diag(np.linalg.pinv(matrix[np.ix_(left, left)]))
        order.append(left.pop(int(np.argmin(np.where(inverse > 0.0, inverse, np.inf)))))
    ordered = matrix[np.ix_(order[::-1], order[::-1])]
    lowest = [0.999 * np.linalg.eigvalsh(ordered[:k, :k])[0] if k else 0.0 for k in range(n + 1)]
    return np.array(order[::-1]), np.repeat(np.array(lowest)[:, None], n, axis=1)


def _descent(matrix: Any, step: Any, cost: Any, zero: Any, most: Any) -> float:
    """At least the cost of a point that no change of one weight improves, with no more than so many not at ``zero``."""
    pick, columns = np.abs(step).argmin(axis=0) if zero is None else zero.copy(), np.arange(len(matrix))
    for _ in range(50):
        before = pick.copy()
        for i in columns:
            t = step[pick, columns]
            pull = matrix[i] @ t - matrix[i, i] * t[i]
            pick[i] = np.argmin(cost[:, i] + step[:, i] * (2.0 * pull + matrix[i, i] * step[:, i]))
            if zero is not None and np.count_nonzero(pick != zero) > most:
                pick[i] = zero[i]
        if np.array_equal(before, pick):
            break
    t = step[pick, columns]
    size = np.abs(cost[pick, columns]).sum() + np.abs(t) @ np.abs(matrix) @ np.abs(t)
    return float(cost[pick, columns].sum() + t @ matrix @ t + 16 * U * (len(t) + 8) * size)
