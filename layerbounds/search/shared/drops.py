"""Units to be dropped, by branch and bound on the error itself (docs/shared-sets.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.kernels import exact
from layerbounds.kernels.factorization import UNIT, cholesky, gamma, symmetric_inverse
from layerbounds.kernels.shared import drops
from layerbounds.kernels.shared.drop_levels import open_level
from layerbounds.problems.patterns import Structure

#: Nothing is searched where rounding could hide more than this share of the error.
VISIBLE = 0.02
#: Bytes of the matrices of all levels.
MOST_BYTES = 2**30
#: Sets that are kept until they are evaluated.
FOUND = 4096


@dataclass(frozen=True, eq=False)
class DropBasis:
    """H⁻¹ and WᵀW for the errors of dropping units, scaled by powers of two, and what rounding can hide of them.

    Attributes
    ----------
    inverse, squares : ndarray of shape (n, n)
        Units one after the other.
    edge : ndarray of int64, shape (units + 1,)
        First input of each unit.
    members : list of ndarray of int64
        The inputs of each unit.
    share : float
        Sets whose error is at most e have computed errors of at most (1 + share)·e.
    structure : Structure
    """

    inverse: Float
    squares: Float
    edge: Int
    members: list[Int]
    share: float
    structure: Structure

    @property
    def drops(self) -> Int:
        """How many units are dropped in each group."""
        structure = self.structure
        return np.asarray(np.bincount(structure.group, minlength=len(structure.capacity)) - structure.capacity)


def make_drop_basis(gram: Float, rows: Float, structure: Structure) -> DropBasis | None:
    """Invert a Gram matrix and bound what that hides; None where it is too nearly singular.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    rows : ndarray of shape (rows, n)
        W.
    structure : Structure
    """
    members = [np.flatnonzero(structure.unit == g) for g in range(len(structure.group))]
    order = np.concatenate(members)
    edge = np.concatenate([[0], np.cumsum([len(m) for m in members])]).astype(np.int64)
    exponents = exact.balance(gram)[order]
    scaled = np.ldexp(gram[np.ix_(order, order)], exponents[:, None] + exponents[None, :])
    weights = np.ldexp(rows[:, order], -exponents[None, :])
    factor = cholesky(np.ascontiguousarray(scaled))
    if factor is None:
        return None
    inverse = symmetric_inverse(factor)
    share = _share(scaled, inverse, len(rows))
    if not share <= VISIBLE:
        return None
    return DropBasis(inverse, weights.T @ weights, edge, members, share, structure)


def _share(gram: Float, inverse: Float, rows: int) -> float:
    """See `DropBasis.share`; infinite where nothing is known."""
    n = len(gram)
    if not np.all(np.isfinite(inverse)) or not is_positive_semidefinite(inverse.copy()):
        return math.inf
    size = np.abs(gram) @ np.abs(inverse)
    residual = np.abs(np.eye(n) - gram @ inverse) + gamma(n + 4) * (size + np.eye(n))
    off = float(np.max(np.sum(residual, axis=1))) * (1.0 + gamma(n + 4))
    if not off < 0.25:
        return math.inf
    spread = float(np.diag(gram) @ np.diag(inverse)) * (1.0 + gamma(n + 4)) / (1.0 - off)
    pivots = n * gamma(3 * n + 8) * spread
    if not pivots < 0.25:
        return math.inf
    moments = (21.0 * n * (n + 1) * UNIT + n * gamma(rows + 2)) * spread / (1.0 - pivots)
    if not moments < 0.25:
        return math.inf
    return (1.0 + gamma(n + 8)) / ((1.0 - off) * (1.0 - pivots) * (1.0 - moments)) - 1.0


class DropSearch:
    """All sets of units to be dropped whose error is below a cut; resumable.

    Parameters
    ----------
    basis : DropBasis
    cut : float
        What is of interest is an error below this.
    rounding : float
        By how much an error of the basis can exceed the one that counts.
    dropped, free : ndarray of int64, optional
        Units that are dropped, and those that may be; default: none, and all.
    lowers : bool
        Whether the cut falls to the errors found.
    """

    def __init__(
        self,
        basis: DropBasis,
        cut: float,
        rounding: float = 0.0,
        dropped: Int | None = None,
        free: Int | None = None,
        lowers: bool = True,
    ) -> None:
        self.basis, self.rounding = basis, rounding
        units = len(basis.members)
        self.dropped = np.zeros(0, dtype=np.int64) if dropped is None else dropped
        free = np.arange(units) if free is None else free
        need = basis.drops - np.bincount(basis.structure.group[self.dropped], minlength=len(basis.drops))
        drops_left = int(need.sum())
        self.nodes, self.broken = 0, False
        self._share = basis.share
        self._threshold = np.array([(cut + rounding) * (1.0 + self._share)])
        self._slack = np.array([self._share, rounding * (1.0 + self._share)]) if lowers else np.full(2, np.inf)
        self._found = np.empty((FOUND, drops_left), dtype=np.int64)
        self._values = np.empty(FOUND)
        self._counts = np.zeros(3, dtype=np.int64)
        self.finished = False
        levels = max(drops_left - 1, 1)
        size = np.sort(np.diff(basis.edge)[free])[::-1]
        side = np.array([int(size[: max(len(free) - q, 0)].sum()) for q in range(levels)])
        self.bytes = 16 * int(np.sum(side**2))
        if self.bytes > MOST_BYTES:
            self.broken = True
            return
        self._side = side
        begin = np.concatenate([[0], np.cumsum(side**2)])
        self._begin = begin[:-1]
        self._a, self._m = np.empty(begin[-1]), np.empty(begin[-1])
        width = max(len(free), 1)
        self._edge, self._unit = np.zeros((levels, width + 1), np.int64), np.zeros((levels, width), np.int64)
        self._order, self._cost = np.zeros((levels, width), np.int64), np.zeros((levels, width))
        self._count, self._position, self._chosen = np.zeros((3, levels), np.int64)
        self._value = np.zeros(levels)
        self._need = np.zeros((levels, len(need)), np.int64)
        self._need[0] = need
        self._level = np.zeros(1, dtype=np.int64)
        self._open(need, free, drops_left)

    def _open(self, need: Int, free: Int, drops_left: int) -> None:
        """The root, which is the end where no more than one unit is to be dropped."""
        basis, side = self.basis, self._side[0]
        count = open_level(
            basis.inverse, basis.squares, basis.edge, basis.structure.group, need, self.dropped, free,
            self._threshold[0], self._a[: side**2].reshape(side, side), self._m[: side**2].reshape(side, side),
            self._edge[0], self._unit[0], self._cost[0], self._order[0], self._value,
        )  # fmt: skip
        if count < 0:
            self.broken = True
            return
        self._count[0] = count
        if drops_left > 1:
            return
        self.finished = True
        if drops_left == 0 and self._value[0] <= self._threshold[0]:
            self._values[0] = self._value[0]
            self._counts[0] = 1
        if drops_left == 1:
            near = min(count, FOUND)
            self._found[:near, 0], self._values[:near] = self._unit[0, :near], self._cost[0, :near]
            self._counts[0] = near
            self.broken = count > FOUND
            self._lower()

    def _lower(self) -> None:
        """Let the threshold fall to the least error found."""
        values = self._values[: self._counts[0]]
        if len(values) and np.all(np.isfinite(self._slack)):
            least = (1.0 + self._slack[0]) * float(values.min()) + self._slack[1]
            self._threshold[0] = min(self._threshold[0], least)

    def run(self, work: int) -> bool:
        """Go on for so many multiplications; whether nothing is left."""
        if self.finished or self.broken:
            return self.finished
        basis = self.basis
        status = drops.drop_units(
            basis.structure.group, self._need, work, self._a, self._m, self._begin, self._side, self._edge, self._unit,
            self._count, self._order, self._cost, self._value, self._position, self._chosen, self._level,
            self._threshold, self._slack, self._found, self._values, self._counts,
        )  # fmt: skip
        self.nodes = int(self._counts[1])
        self.broken = status in (drops.MANY_FOUND, drops.BROKEN)
        self.finished = status == drops.DONE
        return self.finished

    @property
    def cut(self) -> float:
        """Once the search is finished, only the sets found have errors below this."""
        return float(self._threshold[0]) / (1.0 + self._share) * (1.0 - 4.0 * UNIT) - self.rounding * (1.0 + 4.0 * UNIT)

    def found(self) -> tuple[Bool, Float]:
        """Flags of the units kept, shape (sets, units), and computed errors, the smallest first."""
        count = int(self._counts[0])
        near = np.flatnonzero(self._values[:count] <= self._threshold[0])
        near = near[np.argsort(self._values[near], kind="stable")]
        kept = np.ones((len(near), len(self.basis.members)), dtype=bool)
        kept[:, self.dropped] = False
        for row, x in enumerate(near):
            kept[row, self._found[x]] = False
        return kept, self._values[near]
