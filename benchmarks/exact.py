"""Smallest errors of small channels in exact arithmetic: float64 numbers are rational, and so are their sums.

Enumeration in floating point, with a bound on its rounding, leaves the choices near the minimum; these are compared as
Python integers. Nothing here uses the package: it is what its results are judged by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Bits of a float64 significand.
_BITS = 53


@dataclass(frozen=True)
class Optimum:
    """The smallest error of a channel, the constant included.

    Attributes
    ----------
    value : Fraction
        An error that weights attain, and at least the constant: the error is a mean of squares, whatever the rounding
        of a stored matrix says.
    definite : bool
        False where the stored matrix is not positive semidefinite on some support, or its null vectors are not those
        of the right side: then ``value`` belongs to the stationary points, and other weights may do better.
    rounded : bool
        Whether weights are roundings of what was enumerated, so that their errors may lie below by as much.
    """

    value: Fraction
    definite: bool = True
    rounded: bool = False


def as_integers(*arrays: Float) -> tuple[list[list[int]], int]:
    """Flattened arrays as integers times one power of two: (lists, exponent)."""
    parts = [np.frexp(np.asarray(a, dtype=np.float64).ravel()) for a in arrays]
    used = [e[m != 0] for m, e in parts]
    lowest = min((int(e.min()) for e in used if e.size), default=0)
    lists = [
        [int(m) << (int(e) - lowest) if m else 0 for m, e in zip(np.ldexp(m, _BITS).tolist(), e.tolist(), strict=True)]
        for m, e in parts
    ]
    return lists, lowest - _BITS


def rational(value: int | Fraction, exponent: int) -> Fraction:
    """``value · 2^exponent``."""
    return Fraction(value) * (Fraction(2) ** exponent)


class Channel:
    """One output channel: (v − target)ᵀ gram (v − target) + constant.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    constant : float
    """

    def __init__(self, gram: Float, target: Float, constant: float) -> None:
        self.gram, self.target, self.constant = gram, target, Fraction(constant)
        self.size = len(target)
        (flat,), self._gram_exponent = as_integers(gram)
        self._gram = [flat[i * self.size : (i + 1) * self.size] for i in range(self.size)]

    def form(self, deviation: Sequence[int]) -> int:
        """The quadratic form of integer deviations."""
        total = 0
        for i, d in enumerate(deviation):
            if d:
                row = self._gram[i]
                total += d * (row[i] * d + 2 * sum(row[j] * deviation[j] for j in range(i)))
        return total

    def error(self, weights: Float) -> Fraction:
        """Exact error of weights, shape (n,)."""
        (v, w), exponent = as_integers(weights, self.target)
        value = self.form([a - b for a, b in zip(v, w, strict=True)])
        return rational(value, self._gram_exponent + 2 * exponent) + self.constant

    def magnitude(self, weights: Float) -> float:
        """Sum of the magnitudes of all terms of the error: what rounding is relative to."""
        size = np.abs(weights - self.target)
        return float(size @ np.abs(self.gram) @ size) + float(self.constant)

    def best_point(self, table: Float, choices: Int) -> Optimum:
        """The best of some choices of levels.

        Parameters
        ----------
        table : ndarray of shape (n, levels)
        choices : ndarray of int64, shape (choices, n)
        """
        index = np.arange(self.size)
        for kind in (np.float64, np.longdouble):
            deviation = table[index, choices].astype(kind) - self.target.astype(kind)
            gram = self.gram.astype(kind)
            value = np.sum((deviation @ gram) * deviation, axis=1)
            size = np.abs(deviation)
            rounding = (2 * self.size + 8) * np.finfo(kind).eps * np.sum((size @ np.abs(gram)) * size, axis=1)
            choices = choices[value - rounding <= np.min(value + rounding)]
        (flat, target), exponent = as_integers(table, self.target)
        count = table.shape[1]
        moves = [[v - target[i] for v in flat[i * count : (i + 1) * count]] for i in range(self.size)]
        rows = np.unique(choices, axis=0).tolist()
        best = min(self.form([moves[i][c] for i, c in enumerate(row)]) for row in rows)
        return Optimum(max(rational(best, self._gram_exponent + 2 * exponent), Fraction(0)) + self.constant)

    def best_support(self, supports: Sequence[Sequence[int]]) -> Optimum:
        """The best of some supports whose weights are refitted."""
        return Rows([self]).best_support(supports)

    def best_division(self, divisions: Iterable[Sequence[int]]) -> Optimum:
        """The best of some divisions into blocks of equal weights, each the number of every input's block."""
        (target,), exponent = as_integers(self.target)
        right = [sum(g * t for g, t in zip(row, target, strict=True)) for row in self._gram]
        energy = sum(b * t for b, t in zip(right, target, strict=True))
        best, definite = rational(energy, self._gram_exponent + 2 * exponent), True
        for labels in divisions:
            count = max(labels, default=-1) + 1
            matrix = [[0] * (count + 1) for _ in range(count + 1)]
            matrix[count][count] = energy
            for i, a in enumerate(labels):
                matrix[a][count] += right[i]
                matrix[count][a] += right[i]
                for j, b in enumerate(labels):
                    matrix[a][b] += self._gram[i][j]
            reduced = _eliminate(matrix)
            definite &= reduced.definite
            best = min(best, rational(reduced.corner, self._gram_exponent + 2 * exponent))
        return Optimum(max(best, Fraction(0)) + self.constant, definite)

    def best_ray(self, choices: Iterable[Sequence[float]], limit: float, moved: bool) -> Optimum:
        """The best of some codes at their best positive scales, and with ``moved`` at the best common shift.

        Weights are at most ``limit`` in size, which is infinite with ``moved``.
        """
        gram = [[rational(g, self._gram_exponent) for g in row] for row in self._gram]
        target = [Fraction(t) for t in self.target.tolist()]
        pull = [sum((g * t for g, t in zip(row, target, strict=True)), Fraction(0)) for row in gram]
        sums = [sum(row, Fraction(0)) for row in gram]
        energy = sum((p * t for p, t in zip(pull, target, strict=True)), Fraction(0))
        ones, shift = sum(sums, Fraction(0)), sum(pull, Fraction(0))
        moved = moved and ones > 0
        best, definite = energy - (shift**2 / ones if moved else 0), True
        for choice in choices:
            q = [Fraction(c) for c in choice]
            pulled = [sum((g * c for g, c in zip(row, q, strict=True)), Fraction(0)) for row in gram]
            square = sum((p * c for p, c in zip(pulled, q, strict=True)), Fraction(0))
            along = sum((p * c for p, c in zip(pull, q, strict=True)), Fraction(0))
            start = energy
            if moved:
                cross = sum((s * c for s, c in zip(sums, q, strict=True)), Fraction(0))
                square, along, start = square - cross**2 / ones, along - cross * shift / ones, energy - shift**2 / ones
            if along > 0 and square > 0:
                scale = along / square
                if limit < np.inf:
                    scale = min(scale, Fraction(limit) / max(abs(c) for c in q))
                best = min(best, start - 2 * along * scale + square * scale**2)
            definite &= square > 0 or along <= 0
        return Optimum(max(best, Fraction(0)) + self.constant, definite, rounded=True)

    def right_side(self) -> tuple[list[int], int, int]:
        """H w and wᵀHw of the target w as integers, and the exponent of the target."""
        (target,), exponent = as_integers(self.target)
        right = [sum(g * t for g, t in zip(row, target, strict=True)) for row in self._gram]
        return right, sum(b * t for b, t in zip(right, target, strict=True)), exponent

    def on_support(self, support: Sequence[int], right: list[int], energy: int, exponent: int) -> _Elimination:
        """The error of the best weights of a support, without the constant, and on which inputs they are."""
        gram = self._gram
        reduced = _eliminate(
            [[gram[i][j] for j in support] + [right[i]] for i in support] + [[right[j] for j in support] + [energy]]
        )
        corner = Fraction(reduced.corner) * Fraction(2) ** (self._gram_exponent + 2 * exponent)
        return _Elimination(corner, [support[p] for p in reduced.pivots], reduced.definite)

    def refitted(self, index: list[int], right: list[int], exponent: int) -> Float:
        """The best weights on inputs whose matrix is not singular, rounded to float64."""
        weights = np.zeros(self.size)
        weights[index] = [float(rational(x, exponent)) for x in self._solve(index, right)]
        return weights

    def _solve(self, index: list[int], right: list[int]) -> list[Fraction]:
        """Weights of a support whose matrix is not singular, in the integers' units of the target."""
        rows = [[Fraction(self._gram[i][j]) for j in index] + [Fraction(right[i])] for i in index]
        for step in range(len(rows)):
            swap = next(i for i in range(step, len(rows)) if rows[i][step])
            rows[step], rows[swap] = rows[swap], rows[step]
            for i, row in enumerate(rows):
                if i != step and row[step]:
                    factor = row[step] / rows[step][step]
                    rows[i] = [a - factor * b for a, b in zip(row, rows[step], strict=True)]
        return [row[-1] / row[i] for i, row in enumerate(rows)]


class Rows:
    """Output channels with the same Gram matrix and one mask: their errors are summed.

    Parameters
    ----------
    channels : sequence of Channel
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.channels = channels
        self.constant = sum((channel.constant for channel in channels), Fraction(0))

    def error(self, weights: Float) -> Fraction:
        """Exact error of weights, shape (rows, n)."""
        return sum((c.error(w) for c, w in zip(self.channels, np.atleast_2d(weights), strict=True)), Fraction(0))

    def magnitude(self, weights: Float) -> float:
        """Sum of the magnitudes of all terms of the error: what rounding is relative to."""
        return sum(c.magnitude(w) for c, w in zip(self.channels, np.atleast_2d(weights), strict=True))

    def best_support(self, supports: Sequence[Sequence[int]]) -> Optimum:
        """The best of some supports of all rows, whose weights are refitted."""
        sides = [channel.right_side() for channel in self.channels]
        found = []
        definite = True
        for support in supports:
            reduced = [c.on_support(support, *side) for c, side in zip(self.channels, sides, strict=True)]
            definite &= all(r.definite for r in reduced)
            # Pivots depend on the matrix alone.
            found.append((sum((r.corner for r in reduced), Fraction(0)), reduced[0].pivots))
        found.sort(key=lambda item: item[0])
        if definite:
            return Optimum(max(found[0][0], Fraction(0)) + self.constant)
        # Only what weights of float64 attain counts.
        best: Fraction | None = None
        for corner, index in found:
            if best is not None and corner + self.constant >= best:
                break
            weights = [c.refitted(index, side[0], side[2]) for c, side in zip(self.channels, sides, strict=True)]
            value = self.error(np.stack(weights))
            best = value if best is None else min(best, value)
        assert best is not None
        return Optimum(max(best, self.constant), False)

    def best_mask(self, original: Float, supports: Iterable[Sequence[int]]) -> Optimum:
        """The best of some supports of all rows, on which they have their original weights, shape (rows, n)."""
        best: Fraction | None = None
        for support in supports:
            kept = np.isin(np.arange(original.shape[1]), support)
            value = self.error(np.where(kept, original, 0.0))
            best = value if best is None else min(best, value)
        assert best is not None
        return Optimum(max(best, self.constant))


@dataclass(frozen=True)
class _Elimination:
    """Schur complement of the last entry of a symmetric matrix, and the pivots that were not zero."""

    corner: Fraction
    pivots: list[int]
    definite: bool


def _eliminate(matrix: list[list[int]]) -> _Elimination:
    """Eliminate all but the last row of a symmetric integer matrix without fractions (Bareiss)."""
    last = len(matrix) - 1
    left, pivots, previous, definite = list(range(last)), [], 1, True
    while left:
        # Of a matrix that is positive definite every diagonal entry is positive at every step.
        sign = 1 if previous > 0 else -1
        definite &= all(sign * matrix[i][i] >= 0 for i in left)
        pivot = next((i for i in left if sign * matrix[i][i] > 0), None)
        if pivot is None:
            pivot = next((i for i in left if matrix[i][i] != 0), None)
        if pivot is None:
            definite &= all(matrix[i][j] == 0 for i in left for j in [*left, last])
            break
        left.remove(pivot)
        pivots.append(pivot)
        d, row = matrix[pivot][pivot], matrix[pivot]
        for i in [*left, last]:
            factor = matrix[i][pivot]
            for j in [*left, last]:
                matrix[i][j] = (matrix[i][j] * d - factor * row[j]) // previous
        previous = d
    return _Elimination(Fraction(matrix[last][last], previous), pivots, definite)


def unit_groups(pattern: str, n: int, k: int) -> list[tuple[list[list[int]], int]]:
    """The groups of a sparsity pattern: (units, each a list of inputs; how many may be kept)."""
    if pattern == "unstructured":
        return [([[i] for i in range(n)], k)]
    first, _, second = pattern.partition(":")
    if first == "units":
        # The unit of each input: k counts units.
        labels = [int(label) for label in second.split(",")]
        return [([[i for i in range(n) if labels[i] == unit] for unit in range(max(labels) + 1)], k)]
    size = int(second)
    runs = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    if first == "block":
        return [(runs, len(runs) if k >= n else k // size)]
    return [([[i] for i in run], int(first)) for run in runs]


def supports(pattern: str, n: int, k: int, largest: bool) -> Iterator[list[int]]:
    """Sets of inputs that a pattern allows; only those to which no unit can be added where ``largest`` is set."""
    per_group = []
    for units, room in unit_groups(pattern, n, k):
        most = min(room, len(units))
        counts = [most] if largest else range(most + 1)
        per_group.append([c for count in counts for c in combinations(units, count)])
    for choice in product(*per_group):
        yield [i for part in choice for unit in part for i in unit]


def divisions(size: int, blocks: int) -> Iterator[tuple[int, ...]]:
    """The divisions of so many inputs into at most so many blocks, blocks numbered as they come."""
    if not size:
        yield ()
        return
    for head in divisions(size - 1, blocks):
        for label in range(min(max(head, default=-1) + 2, blocks)):
            yield (*head, label)
