"""One box of codes and all scales of a cell: state arrays around the compiled enumeration (docs/scales.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.diagonal import reciprocals
from layerbounds.bounds.quantization.box import box_multipliers
from layerbounds.kernels.factorization import gamma
from layerbounds.kernels.quantization.rays import enumerate_rays, form_slopes, slopes
from layerbounds.search.quantization.cut_tests import CutTests, prepare_cuts
from layerbounds.search.quantization.preparation import Preparation

#: Rounds of dropping end levels and tilting anew, and of leaving out tilts that change their sign within the cell.
TIGHTENINGS, SIGN_ROUNDS = 4, 4
#: Residuals of larger matrices are not computed in extended precision.
LONG_SIZE = 400


@dataclass(frozen=True, eq=False)
class Ray:
    """A channel at all scales, with one list of codes, in the order of the search.

    Attributes
    ----------
    prep : Preparation
    target : ndarray of shape (n,)
        ω: the weights in units of ``unit``.
    codes : ndarray of shape (levels,)
        Sorted.
    uniform : bool
        Whether the codes are consecutive integers.
    inverses : ndarray of shape (n + 1, n)
        Of the preparation's minorants.
    """

    prep: Preparation
    target: Float
    codes: Float
    uniform: bool
    inverses: Float

    @property
    def size(self) -> int:
        """Number of variables."""
        return len(self.target)


def make_ray(prep: Preparation, target: Float, codes: Float) -> Ray:
    """A box of codes for a target in units of the scale that t = 1 stands for, in the layer's order."""
    steps = np.arange(len(codes)) + codes[0]
    uniform = bool(np.array_equal(codes, steps) and codes[0] == np.rint(codes[0]))
    return Ray(prep, np.ascontiguousarray(target[prep.order]), codes, uniform, reciprocals(prep.minorants))


class RayTree:
    """Depth-first search of the cells of one ray; resumable, and reusable for another cell or cut.

    Parameters
    ----------
    ray : Ray
    nodes : ndarray of int64, shape (1,), optional
        The count of nodes, where trees share one.
    """

    def __init__(self, ray: Ray, nodes: Int | None = None) -> None:
        n = ray.size
        self.ray = ray
        self.nodes = np.zeros(1, dtype=np.int64) if nodes is None else nodes
        self.middle = self.half = 0.0
        self.tilts = np.zeros((2, n))
        self.extreme = np.zeros(1)
        self.reach = np.zeros(n)
        self.wide = np.zeros(n + 1)
        #: Error of the root's centre in the norm of the Gram matrix, at the worse end of the cell.
        self.root_error = 0.0
        #: Magnitudes that were added up for psi of the root, and Σ 2|h_i|·max|level_i|, at the worse end.
        self.root_size = self.tilt_size = 0.0
        #: How far psi and the floors of the root are below 0, at the worst t of the cell: poor tilts only.
        self.deficit = 0.0
        self._sides = np.zeros(n, dtype=np.int64)
        self._span = np.zeros(2)
        self._slope = np.zeros((n + 1, n))
        self._quad, self._bend = np.zeros(n + 1), np.zeros(n + 1)
        self._floors = np.zeros((2, n + 1))
        self._tilted = np.zeros(0, dtype=np.int64)
        self._z = np.zeros((n + 1, n))
        self._const, self._linear = np.zeros(n + 1), np.zeros(n + 1)
        self._lo, self._hi = np.zeros(n + 1), np.zeros(n + 1)
        self._left, self._right = np.zeros(n + 1), np.zeros(n + 1)
        self._base_left, self._base_right = np.full(n + 1, -np.inf), np.full(n + 1, -np.inf)
        self._centre = np.zeros(n)
        self._chosen, self._lower, self._upper = (np.zeros(n, dtype=np.int64) for _ in range(3))
        self._position = np.array([n + 1], dtype=np.int64)
        self._cut = np.zeros(1)
        self._best = np.full(n, -1, dtype=np.int64)
        self.cuts = CutTests(n, ray.prep.shifts, prepare_cuts(ray.prep) if ray.uniform and len(ray.codes) > 2 else None)
        self._form_slope = np.zeros((n + 1, self.cuts.size))
        self._form_bend = np.zeros(n + 1)
        self._open_box()

    def _open_box(self) -> None:
        n, codes = self.ray.size, self.ray.codes
        self.levels = np.repeat(codes[:, None], n, axis=1)
        self.count = np.full(n, len(codes), dtype=np.int64)
        self.low, self.high = self.levels[0].copy(), self.levels[-1].copy()
        self._first = np.zeros(n, dtype=np.int64)

    def enter(self, cell: tuple[float, float], cut: float, span: tuple[float, float] = (0.0, np.inf)) -> bool:
        """Begin a cell of t below a cut; False where the root excludes it.

        Parameters
        ----------
        cell : tuple of float
            Least and largest t; both ends belong to it.
        cut : float
            In units of (the scale at t = 1)².
        span : tuple of float
            The t at which leaves may be valued; they are not valued far from the cell.
        """
        n = self.ray.size
        self._open_box()
        self.middle, self.half = 0.5 * (cell[0] + cell[1]), 0.5 * (cell[1] - cell[0])
        self._span[:] = max(span[0], 0.5 * cell[0]), min(span[1], 2.0 * cell[1])
        self._cut[0] = cut
        self._best[:] = -1
        self.extreme[0] = self.root_error = 0.0
        self.reach[:] = 0.0
        # The ends of the cell are rounded, and belong to it.
        self.half = float(np.nextafter(self.half + 4e-16 * cell[1], np.inf)) if self.half > 0 else 0.0
        self._lo[n], self._hi[n] = -self.half, self.half
        self.wide[:] = 0.0
        self.wide[n] = 2.0 * self.half
        self._position[0] = n
        for _ in range(TIGHTENINGS):
            self._tilt()
            keep = self._levels_below_cut()
            if not keep.any(axis=0).all():
                self._position[0] = n + 1
                return False
            if not self._tighten(keep):
                break
        return True

    def _tilt(self) -> None:
        """Price the ends of the box that are active in the middle of the cell, affinely in t."""
        ray, prep, n = self.ray, self.ray.prep, self.ray.size
        low, high = self.low, self.high
        _, side = box_multipliers(prep.covariance, self.middle * ray.target, low, high, self._sides)
        self._sides = side
        constant, linear = np.zeros(n), np.zeros(n)
        for _ in range(SIGN_ROUNDS):
            active = np.flatnonzero(side)
            constant[:], linear[:] = 0.0, 0.0
            if not active.size:
                break
            ends = np.where(side[active] < 0, low[active], high[active])
            block = prep.covariance[np.ix_(active, active)]
            right = np.stack([ends - self.middle * ray.target[active], -ray.target[active]], axis=1)
            try:
                solved = np.linalg.solve(block, right)
            except np.linalg.LinAlgError:
                break
            constant[active], linear[active] = solved[:, 0], solved[:, 1]
            changes = self._changes_sign(constant, linear, side)
            if not changes.any():
                break
            side = np.where(changes, 0, side)
        wrong = self._changes_sign(constant, linear, side)
        constant[wrong], linear[wrong] = 0.0, 0.0
        self._set_root(constant, linear)
        self.tilts[0], self.tilts[1] = constant, linear

    def _changes_sign(self, constant: Float, linear: Float, side: Int) -> Bool:
        """Tilts that do not price their own end in the whole cell."""
        least = np.minimum(-side * (constant - self.half * linear), -side * (constant + self.half * linear))
        return np.asarray((side != 0) & ~(least >= 0.0))

    def _set_root(self, constant: Float, linear: Float) -> None:
        ray, prep, n = self.ray, self.ray.prep, self.ray.size
        gram, covariance = prep.gram, prep.covariance
        z, move = self.middle * ray.target, ray.target.copy()
        if np.any(constant) or np.any(linear):
            z = z + covariance @ constant
            move = move + covariance @ linear
            z = z - covariance @ (gram @ (z - self.middle * ray.target) - constant)
            move = move - covariance @ (gram @ (move - ray.target) - linear)
        deviation, turn = z - self.middle * ray.target, move - ray.target
        if np.any(constant) or np.any(linear):
            self.root_error = max(self.root_error, self._root_error(z, move, constant, linear))
        self._z[n], self._slope[n] = z, move
        far, tilt = np.abs(deviation) + self.half * np.abs(turn), np.abs(constant) + self.half * np.abs(linear)
        self.root_size = float(far @ (np.abs(gram) @ far)) + 2.0 * float(tilt @ (np.abs(z) + self.half * np.abs(move)))
        self.tilt_size = 2.0 * float(tilt @ np.maximum(np.abs(self.low), np.abs(self.high)))
        self._const[n] = deviation @ (gram @ deviation) - 2.0 * float(constant @ z)
        self._const[n] -= gamma(2 * n + 8) * self.root_size
        self._linear[n] = float(constant @ move + linear @ z - deviation @ (gram @ turn))
        self._quad[n] = float(turn @ (gram @ turn) - 2.0 * (linear @ move))
        slopes(prep.pivots, prep.shifts, prep.minorants, self._slope, self._quad, self._bend)
        cuts = self.cuts
        cuts.start(z)
        form_slopes(
            cuts.active,
            cuts.forms,
            cuts.units,
            cuts.weights,
            self._slope,
            self._quad,
            self._form_slope,
            self._form_bend,
        )
        self._tilted = np.flatnonzero((constant != 0.0) | (linear != 0.0))
        end = np.where(constant > 0, self.low, self.high)
        self._floors[0, 1:] = np.cumsum(2.0 * constant * end)
        self._floors[1, 1:] = np.cumsum(2.0 * linear * end)
        bend, slant = float(self._quad[n]), float(self._floors[1, n] - 2.0 * self._linear[n])
        at = [-self.half, self.half]
        if bend > 0.0:
            at.append(min(max(-0.5 * slant / bend, -self.half), self.half))
        least = float(self._const[n] + self._floors[0, n]) + min(t * (bend * t + slant) for t in at)
        self.deficit = max(-least, 0.0)

    def _root_error(self, z: Float, move: Float, constant: Float, linear: Float) -> float:
        """How far the root's centre is off, in the norm of the Gram matrix.

        For any z(τ), F − 2hᵀz exceeds psi by ρᵀH⁻¹ρ with ρ = H(z − tω) − h, convex in τ, and ρᵀH⁻¹ρ ≤ ‖S⁻¹ρ‖²·tr C⁻¹
        (docs/numerics.md).
        """
        prep, n = self.ray.prep, self.ray.size
        wide: Any = np.longdouble if n <= LONG_SIZE else np.float64
        unit = float(np.finfo(wide).eps)
        target, gram = self.ray.target.astype(wide), prep.gram.astype(wide)
        deviation, turn = z - wide(self.middle) * target, move - target
        size = np.abs(gram @ deviation - constant) + self.half * np.abs(gram @ turn - linear)
        bulk = np.abs(deviation) + self.half * np.abs(turn)
        bulk += 2.0 * (np.abs(z) + self.half * np.abs(move)) / (n + 8)
        size += 2.0 * (n + 8) * unit * (np.abs(gram) @ bulk + np.abs(constant) + self.half * np.abs(linear))
        scale = np.sqrt(np.diag(prep.gram))
        spread = 2.0 * float(np.sum(np.diag(prep.covariance) * scale**2))
        return float(np.linalg.norm((size / scale).astype(np.float64))) * float(np.sqrt(spread))

    def _levels_below_cut(self) -> Bool:
        """The levels, shape (levels, n), with which the root's bound is below the cut somewhere in the cell."""
        n, cut = self.ray.size, self.cut
        a, b = -self.half, self.half
        prep = self.ray.prep
        sums, terms = [], []
        for end in (a, b):
            h = self.tilts[0] + end * self.tilts[1]
            z = self._z[n] + end * self._slope[n]
            term = 2.0 * h * self.levels + prep.minorants[n] * (self.levels - z) ** 2
            least = term.min(axis=0)
            psi = self._const[n] + end * (self._quad[n] * end - 2.0 * self._linear[n])
            sums.append(psi + least.sum() - cut * (self.middle + end) ** 2)
            terms.append(term - least)
            base = psi + least.sum() - least[n - 1]
            if end == a:
                self._left[n], self._base_left[n] = a, base
            self._right[n], self._base_right[n] = end, base
        return _negative_somewhere(sums[0] + terms[0], sums[1] + terms[1], (self._bend[n] - cut) * (b - a) ** 2)

    def _tighten(self, keep: Bool) -> bool:
        """Drop the end levels that need not be kept; True when there were any."""
        first = np.argmax(keep, axis=0)
        last = np.minimum(len(keep) - 1 - np.argmax(keep[::-1], axis=0), self.count - 1)
        if np.all(first == 0) and np.all(last == self.count - 1):
            return False
        rows = np.minimum(first + np.arange(int((last - first).max()) + 1)[:, None], last)
        self.levels = np.ascontiguousarray(self.levels[rows, np.arange(self.ray.size)])
        self.count = last - first + 1
        self.low, self.high = self.levels[0].copy(), self.levels[-1].copy()
        self._first = self._first + first
        return True

    def run(self, max_nodes: int, collect: bool = False) -> bool:
        """Go on for some nodes; True when nothing of the cell below the cut is left.

        With ``collect`` every leaf below the cut ends the call and the cut stays; see `take`.
        """
        ray, prep, cuts = self.ray, self.ray.prep, self.cuts
        return bool(
            enumerate_rays(
                max_nodes, collect, ray.uniform, self.middle, self._span, prep.pivots, prep.shifts, prep.minorants,
                ray.inverses, self.levels, self.count, self.low, self.high, self._slope, self._quad, self._bend,
                self.tilts, self._tilted, self._floors, self._z, self._const, self._linear, self._lo, self._hi,
                self._left, self._right, self._base_left, self._base_right, self._centre, self._chosen, self._lower,
                self._upper, self._position, self._cut, self._best, self.nodes, self.extreme, self.reach, self.wide,
                cuts.active, cuts.forms, cuts.moves, cuts.units, cuts.inverses, cuts.weights, self._form_slope,
                self._form_bend, cuts.values,
            )
        )  # fmt: skip

    @property
    def root_centre(self) -> tuple[Float, Float]:
        """The root's centre in the middle of the cell, and the slopes of the centres of all depths."""
        return self._z[self.ray.size], self._slope

    @property
    def cut(self) -> float:
        """Everything below is being searched; falls when a better point is found."""
        return float(self._cut[0])

    @property
    def found(self) -> Float | None:
        """Codes of the best point found since the cell was entered."""
        if self._best[0] < 0:
            return None
        return np.asarray(self.ray.codes[self._best + self._first])

    def take(self) -> Float | None:
        """Codes of the leaf that ended a collecting call, once."""
        leaf = self.found
        self._best[0] = -1
        return leaf


def _negative_somewhere(left: Float, right: Float, bend: float) -> Bool:
    """Whether parabolas of a common curvature (times the squared width) through two values are negative in between."""
    falls, rises = left - right + bend, right - left + bend
    valley = (bend > 0) & (falls > 0) & (rises > 0) & (falls**2 > 4.0 * bend * left)
    return np.asarray((left < 0) | (right < 0) | valley)
