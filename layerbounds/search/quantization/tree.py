"""One depth-first search: state arrays around the compiled enumeration."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.diagonal import maximize_minorant, reciprocals
from layerbounds.bounds.quantization.block_relaxation import BlockRelaxation
from layerbounds.bounds.quantization.box import box_multipliers
from layerbounds.bounds.quantization.relaxation import Relaxation
from layerbounds.bounds.quantization.split_relaxation import SplitRelaxation
from layerbounds.kernels.factorization import gamma
from layerbounds.kernels.quantization.enumeration import enumerate_levels
from layerbounds.search.quantization.cut_tests import CutTests
from layerbounds.search.quantization.grid_units import UnitProblem

#: What bounds the root.
Root = Relaxation | SplitRelaxation | BlockRelaxation

#: A depth's minorant is learned anew only from so many nodes.
_ENOUGH = 50
#: Rounds of dropping end levels and tilting anew.
TIGHTENINGS = 12
#: Larger errors of the tilted centre, relative to √bound, are not worth the better bound.
MAX_ROOT_ERROR = 1e-7


class Tree:
    """Depth-first search of one channel below a cut; resumable, and reusable for another cut.

    Parameters
    ----------
    unit : UnitProblem
    """

    def __init__(self, unit: UnitProblem) -> None:
        n = unit.size
        self.unit = unit
        self.minorants = unit.minorants.copy()
        self.inverses = reciprocals(self.minorants)
        self.steps = np.zeros(n + 1, dtype=np.int64)
        self.z = np.zeros((n + 1, n))
        self.tilts = np.zeros((n + 1, n))
        self.psi = np.zeros(n + 1)
        self.base = np.full(n + 1, -np.inf)
        self.floor = np.zeros(n + 1)
        self.row = np.full(n + 1, n, dtype=np.int64)
        self.sparse = np.zeros(0, dtype=np.int64)
        self.moves = np.zeros(n + 1, dtype=np.int64)
        self.extreme = np.zeros(2)
        self.reach = np.zeros(n)
        #: Error of the root's centre in the norm of the Gram matrix.
        self.root_error = 0.0
        self.nodes = np.zeros(1, dtype=np.int64)
        self._chosen = np.zeros(n, dtype=np.int64)
        self._lower = np.zeros(n, dtype=np.int64)
        self._upper = np.zeros(n, dtype=np.int64)
        self._position = np.array([n], dtype=np.int64)
        self._cut = np.zeros(1)
        self._best = np.full(n, -1, dtype=np.int64)
        self._seen = np.zeros(n + 1, dtype=np.int64)
        self._distance = np.zeros((n + 1, n))
        self.z[n] = unit.origin
        self.levels, self.count = unit.levels, unit.count
        self.low, self.high = unit.low, unit.high
        self._first = np.zeros(n, dtype=np.int64)
        self._sides = np.zeros(n, dtype=np.int64)
        self.cuts = CutTests(n, unit.shifts, unit.cuts)
        #: The root's relaxations on the whole grid.
        self.relaxations: list[Root] = []

    def _tilt_root(self) -> None:
        """Price the active ends of the box at the root."""
        n, unit = self.unit.size, self.unit
        self.tilts[n], self._sides = box_multipliers(unit.covariance, unit.origin, self.low, self.high, self._sides)
        before = self.root_error
        self._set_root(self.tilts[n])
        bound = self.root_bound()
        # Singular Gram matrices can make the multipliers too inexact to be of use.
        if not bound > self._bound_without_tilts() or self.root_error > MAX_ROOT_ERROR * np.sqrt(bound):
            self.root_error = before
            self._set_root(np.zeros(n))

    def _bound_without_tilts(self) -> float:
        distance = np.abs(self.levels - self.unit.origin).min(axis=0)
        return float(self.minorants[self.unit.size] @ distance**2)

    def _set_root(self, h: Float) -> None:
        n, unit = self.unit.size, self.unit
        z = unit.origin.copy()
        if np.any(h):
            z += unit.covariance @ h
            z -= unit.covariance @ (unit.gram @ (z - unit.origin) - h)
        self.tilts[n], self.z[n] = h, z
        # For any z, f(z) − 2hᵀz exceeds psi by the squared distance of z to the minimiser, ρᵀH⁻¹ρ with
        # ρ = H(z − w) − h (docs/numerics.md).
        deviation = z - unit.origin
        residual = unit.gram @ deviation - h
        rounding = gamma(n + 4) * (np.abs(unit.gram) @ (np.abs(z) + np.abs(unit.origin)) + np.abs(h))
        size = np.abs(residual) + rounding
        scale = np.sqrt(np.diag(unit.gram))
        spread = 2.0 * float(np.sum(np.diag(unit.covariance) * scale**2))
        self.root_error = max(self.root_error, float(np.linalg.norm(size / scale) * np.sqrt(spread)))
        self.psi[n] = float(deviation @ (unit.gram @ deviation)) - 2.0 * float(h @ z)
        self.cuts.start(z)
        self.sparse = np.flatnonzero(h)
        self.floor[n] = float(np.sum(2.0 * np.minimum(h * self.low, h * self.high)))
        tilt_size = float(np.sum(2.0 * np.abs(h) * np.maximum(np.abs(unit.low), np.abs(unit.high))))
        self.extreme[0] = max(self.extreme[0], tilt_size)

    def _root_terms(self) -> Float:
        """Terms of the separable bound at the root for every level, shape (levels, n)."""
        n = self.unit.size
        v = self.levels
        return np.asarray(2.0 * self.tilts[n] * v + self.minorants[n] * (v - self.z[n]) ** 2)

    def root_bound(self) -> float:
        """The separable bound at the root on the present box, in grid units."""
        return float(self.psi[self.unit.size] + np.sum(self._root_terms().min(axis=0)))

    def restart(self, cut: float) -> float:
        """Begin a new search for everything below a cut; returns the root's bound on what may lie there.

        End levels that no point below the cut can take are dropped, which tightens the box for the whole tree.
        """
        unit, n = self.unit, self.unit.size
        self._cut[0] = cut
        self._best[:] = -1
        self._position[0] = n
        self.levels, self.count = unit.levels.copy(), unit.count.copy()
        self.low, self.high = unit.low.copy(), unit.high.copy()
        self._first = np.zeros(n, dtype=np.int64)
        bound = -np.inf
        if self.relaxations:
            self._tighten(np.all([_below(found.value, found.terms, cut) for found in self.relaxations], axis=0))
        for _ in range(TIGHTENINGS):
            self._tilt_root()
            terms = self._root_terms()
            least = terms.min(axis=0)
            bound = float(self.psi[n] + np.sum(least))
            if bound >= cut:
                self._position[0] = n + 1
                break
            if not self._tighten(_below(bound, terms, cut)):
                break
        return bound

    def _tighten(self, keep: Bool) -> bool:
        """Drop the end levels that need not be kept; True when there were any."""
        first = np.argmax(keep, axis=0)
        last = np.minimum(len(keep) - 1 - np.argmax(keep[::-1], axis=0), self.count - 1)
        if np.all(first == 0) and np.all(last == self.count - 1):
            return False
        self._drop_levels(first, last)
        return True

    def _drop_levels(self, first: Int, last: Int) -> None:
        columns = np.arange(self.unit.size)
        rows = np.minimum(first + np.arange(len(self.levels))[:, None], last)
        self.levels = np.ascontiguousarray(self.levels[rows, columns])
        self.count = last - first + 1
        self.low, self.high = self.levels[0].copy(), self.levels[-1].copy()
        self._first = self._first + first

    def run(self, max_nodes: int, learn: bool = False, collect: bool = False) -> bool:
        """Go on for some nodes; True when nothing below the cut is left.

        With ``collect`` every leaf below the cut ends the call and the cut stays; see `take`.
        """
        unit, cuts = self.unit, self.cuts
        return bool(
            enumerate_levels(
                max_nodes, collect, unit.uniform, unit.pivots, unit.shifts, self.minorants, self.inverses,
                unit.covariances, unit.prep.first_covariance, self.steps, self.levels, self.count, self.low, self.high,
                self.z, self.tilts, self.row, self.sparse, self.psi, self.base, self.floor, self.moves, self._chosen,
                self._lower, self._upper, self._position, self._cut, self._best, self.nodes, self.extreme, self.reach,
                self._seen if learn else _NOTHING, self._distance, cuts.active, cuts.forms, cuts.moves, cuts.units,
                cuts.inverses, cuts.weights, cuts.values, cuts.seen, cuts.distance,
            )
        )  # fmt: skip

    @property
    def cut(self) -> float:
        """Everything below is being searched; falls when a better point is found."""
        return float(self._cut[0])

    @property
    def found(self) -> Int | None:
        """Level indices of the best point found since the restart."""
        return self._best + self._first if self._best[0] >= 0 else None

    @property
    def exhausted(self) -> bool:
        """Whether nothing below the cut is left of this search's part."""
        return int(self._position[0]) == self.unit.size + 1

    def close(self) -> None:
        """Note that nothing is left."""
        self._position[0] = self.unit.size + 1

    def lower(self, cut: float) -> None:
        """Search below a lower cut from now on."""
        self._cut[0] = min(self._cut[0], cut)

    def adopt(self, cut: float, leaf: Int) -> None:
        """Take over the best leaf that a fork has found, and the cut that it made."""
        self._best[:] = leaf - self._first
        self.lower(cut)

    def fork(self) -> Self:
        """The same search for another thread, with state of its own and nothing to do yet; see `give`."""
        other = copy.copy(self)
        other.cuts = copy.copy(self.cuts)
        for name in _STATE:
            setattr(other, name, _apart(getattr(self, name)))
        for name in ("values", "seen", "distance"):
            setattr(other.cuts, name, _apart(getattr(self.cuts, name)))
        for statistic in (other.nodes, other._seen, other._distance, other.cuts.seen, other.cuts.distance):
            statistic[:] = 0
        other._best[:] = -1
        other.close()
        return other

    def give(self, other: Self) -> bool:
        """Hand open siblings to a fork without work: those of every second depth that has any, the uppermost first.

        False where there are not two such depths.
        """
        depth = int(self._position[0])
        if depth >= self.unit.size:
            return False
        siblings = (self._lower[depth:] >= 0) | (self._upper[depth:] < self.count[depth:])
        given = depth + np.flatnonzero(siblings)[::-1][::2]
        if np.count_nonzero(siblings) < 2:
            return False
        last = int(given[-1])
        for name in ("z", "tilts", "row", "psi", "base", "floor", "moves"):
            getattr(other, name)[last + 1 :] = getattr(self, name)[last + 1 :]
        other.cuts.values[last + 1 :] = self.cuts.values[last + 1 :]
        other._chosen[:] = self._chosen
        other._lower[:], other._upper[:] = -1, self.count
        for mine, pointers, none in (
            (self._lower, other._lower, np.full_like(given, -1)),
            (self._upper, other._upper, self.count[given]),
        ):
            pointers[given] = mine[given]
            mine[given] = none
        other._position[0] = last
        return True

    def join(self, other: Self) -> None:
        """Add what a fork has seen; not its leaves, see `adopt`, and not what it has left open."""
        np.maximum(self.extreme, other.extreme, out=self.extreme)
        np.maximum(self.reach, other.reach, out=self.reach)
        self.nodes += other.nodes
        self._seen += other._seen
        self._distance += other._distance
        self.cuts.seen += other.cuts.seen
        if self.cuts.cuts is not None:
            self.cuts.distance += other.cuts.distance

    def take(self) -> Int | None:
        """Level indices of the leaf that ended a collecting call, once."""
        leaf = self.found
        self._best[0] = -1
        return leaf

    def learn(self, stride: int) -> None:
        """Refit the minorants to the distances seen near the cut (docs/bounds.md, learned weights)."""
        start: Float | None = None
        row: Float | None = None
        since = stride
        for k in range(self.unit.size, 1, -1):
            if row is not None and since < stride:
                row = row[:k]
                self.minorants[k, :k] = row
                since += 1
                continue
            if self._seen[k] < _ENOUGH:
                row = None
                since = stride
                continue
            objective = self._distance[k, :k] / self._seen[k]
            objective += 1e-3 * float(objective.mean())
            block = np.ascontiguousarray(self.unit.gram[:k, :k])
            row = maximize_minorant(block, objective, self.minorants[k, :k] if start is None else start[:k])
            if not np.any(row):
                row = None
                continue
            start = row
            self.minorants[k, :k] = row
            since = 1
        self.inverses = reciprocals(self.minorants)
        self.cuts.learn(self.unit.gram, self._distance, self._seen)
        self._seen[:] = 0
        self._distance[:] = 0.0


def _below(bound: float, terms: Float, cut: float) -> Bool:
    """The levels at which a bound stays below the cut."""
    return np.asarray(bound + (terms - terms.min(axis=0)) < cut)


def _apart(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that shares no cache line with another array: threads write to these all the time."""
    margin = 16
    padded = np.zeros(array.size + 2 * margin, dtype=array.dtype)
    result = padded[margin : margin + array.size].reshape(array.shape)
    result[:] = array
    return result


#: What a search changes.
_STATE = (
    "z", "tilts", "row", "psi", "base", "floor", "moves", "nodes", "extreme", "reach", "_chosen", "_lower", "_upper",
    "_position", "_cut", "_best", "_seen", "_distance",
)  # fmt: skip
_NOTHING = np.zeros(0, dtype=np.int64)
