"""Blocks of several units in place of a diagonal: the strongest roots of large masks (docs/pruning-bounds.md)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
from scipy.optimize import minimize

from layerbounds.arrays import Float, Int
from layerbounds.bounds.masks.clusters import block_sets, pad_blocks
from layerbounds.bounds.masks.form import MaskForm
from layerbounds.bounds.minorants.blocks import BlockMinorant, improve_blocks, make_minorant
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.factorization import cholesky
from layerbounds.proofs import MaskBlocksDual

#: Units of a block; larger groups of a pattern are left to the diagonal.
SIZE, LARGEST = 9, 12
#: Part of the root's diagonal that the blocks start from.
INSIDE = 0.98
#: Smoothing of the minimum over all blocks together, relative to the best mask's error; less where a bound stalls.
SMOOTHING = (6e-3, 4e-3, 2.5e-3)
#: Barrier weight of the blocks' improvements: first, factor, last.
MU_FIRST, MU_FACTOR, MU_LAST = 0.2, 0.7, 0.01
#: Steps of the point between two improvements; improvements in all; those that gain less than a share of the gap.
POINT_STEPS, MOST_STEPS, PROGRESS = 40, 60, 0.005


class ClusteredMasks:
    """Bounds of a form from blocks of its matrix, whose sets of units are all tried.

    For a point z and B ⪯ A, R = A − B, and prices λ ≥ 0 of the kept units of each group,
    f(y) ≥ c − zᵀRz − Σ λk + Σ_blocks min_y [2(Rz − β)ᵀy + yᵀBy + λᵀy], concave in (z, λ). In the search the minimum is
    smoothed, and z moves in coordinates in which R is the identity.

    Parameters
    ----------
    form : MaskForm
        Without idle units.
    parts : list of ndarray of int64
        The units of each block.
    goal : float
        A bound that ends the work: the error of the best mask.
    """

    def __init__(self, form: MaskForm, parts: list[Int], goal: float) -> None:
        self.form, self.parts, self.goal = form, parts, goal
        self.member = pad_blocks(parts)
        self.inside = self.member >= 0
        self.sets, self.forbidden = block_sets(self.member, form.group, form.capacity)
        #: One group has a price; several lie within blocks, whose sets obey their capacities.
        self.priced = len(form.capacity) == 1
        self.unit = goal / max(float(form.capacity.sum()), 1.0)
        self.smoothing = 0.0
        self.best = -np.inf
        self.dual: MaskBlocksDual | None = None

    def step(self, minorant: BlockMinorant, z: Float, price: float) -> tuple[Float, float, list[Float]] | None:
        """The best point and price for given blocks, and the blocks' supergradients; None where R is singular."""
        rest = self.form.a - minorant.matrix
        factor = cholesky(rest)
        if factor is None:
            return None
        own = minorant.matrix[np.maximum(self.member, 0)[:, :, None], np.maximum(self.member, 0)[:, None, :]]
        own = np.where(self.inside[:, :, None] & self.inside[:, None, :], own, 0.0)
        squares = np.sum((self.sets @ own) * self.sets, axis=2) + self.forbidden

        def value(x: Float) -> tuple[float, Float]:
            point = scipy.linalg.solve_triangular(factor, x[:-1], lower=True, trans=1, check_finite=False)
            soft, gradient, slope, _ = self._smooth(rest, squares, point, x[-1] * self.unit)
            back = scipy.linalg.solve_triangular(factor, gradient, lower=True, check_finite=False)
            return -soft / self.goal, np.append(-back, -slope * self.unit) / self.goal

        start = np.append(factor.T @ z, price / self.unit)
        free = (0.0, None if self.priced else 0.0)
        found = minimize(
            value, start, jac=True, method="L-BFGS-B", bounds=[(None, None)] * len(z) + [free],
            options={"maxiter": POINT_STEPS},
        )  # fmt: skip
        z = scipy.linalg.solve_triangular(factor, found.x[:-1], lower=True, trans=1, check_finite=False)
        price = float(found.x[-1]) * self.unit
        _, _, _, shares = self._smooth(rest, squares, z, price)
        hard = self._base(rest, z, price) + float(self._terms(rest @ z, squares, price).min(axis=1).sum())
        if hard > self.best:
            self.best = hard
            block = np.empty(len(z), dtype=np.int64)
            for number, part in enumerate(self.parts):
                block[part] = number
            prices = np.full(len(self.form.capacity), price if self.priced else 0.0)
            self.dual = MaskBlocksDual(z, block, minorant.matrix, prices)
        mean = shares @ self.sets
        spread = np.einsum("cs,si,sj->cij", shares, self.sets, self.sets, optimize=True)
        spread -= mean[:, :, None] * mean[:, None, :]
        return z, price, [s[: len(p), : len(p)] for s, p in zip(spread, self.parts, strict=True)]

    def _base(self, rest: Float, z: Float, price: float) -> float:
        return self.form.energy - float(z @ (rest @ z)) - (price * float(self.form.capacity[0]) if self.priced else 0.0)

    def _terms(self, product: Float, squares: Float, price: float) -> Float:
        """The value of each set of each block."""
        linear = np.append(2.0 * (product - self.form.beta) + price, 0.0)[self.member]
        return np.asarray(linear @ self.sets.T + squares)

    def _smooth(self, rest: Float, squares: Float, z: Float, price: float) -> tuple[float, Float, float, Float]:
        """The smoothed bound, its derivatives by the point and the price, and the weights of the sets."""
        product = rest @ z
        terms = self._terms(product, squares, price)
        least = terms.min(axis=1, keepdims=True)
        shares = np.exp((least - terms) / self.smoothing)
        total = shares.sum(axis=1, keepdims=True)
        shares /= total
        value = self.form.energy - float(z @ product) + float(np.sum(least - self.smoothing * np.log(total)))
        mean = np.zeros(len(z) + 1)
        mean[self.member] = shares @ self.sets
        slope = 0.0
        if self.priced:
            value -= price * float(self.form.capacity[0])
            slope = float(mean[:-1].sum()) - float(self.form.capacity[0])
        return value, 2.0 * (rest @ (mean[:-1] - z)), slope, shares


def cluster_root(
    form: MaskForm, z: Float, d: Float, goal: float, remaining: Callable[[], float]
) -> MaskBlocksDual | None:
    """The best dual point with blocks that there is time for.

    Parameters
    ----------
    form : MaskForm
    z, d : ndarray of shape (units,)
        Where to start: a point, and a diagonal below A.
    goal : float
        The error of the best mask.
    remaining : callable
        Seconds for it.

    Returns
    -------
    MaskBlocksDual or None
        None where A is singular, blocks would be too large, or there is no time.
    """
    active = np.flatnonzero(~form.idle)
    if not len(active):
        return None
    part = form.restricted(active)
    parts = make_clusters(part.a, SIZE, part.group, np.arange(len(active)))
    if parts is None or max(map(len, parts)) > LARGEST or not goal > 0.0:
        return None
    minorant = make_minorant(part.a, parts, np.diag(INSIDE * d[active]))
    if minorant is None:
        return None
    search = ClusteredMasks(part, parts, goal)
    _ascend(search, minorant, z[active], remaining)
    return None if search.dual is None else _spread(search.dual, active, len(z))


def _ascend(search: ClusteredMasks, minorant: BlockMinorant, z: Float, remaining: Callable[[], float]) -> None:
    """Improve the blocks and the point in turns."""
    price, mu, level, step = 0.01 * search.unit, MU_FIRST, 0, 0.0
    for _ in range(MOST_STEPS):
        checkpoint()
        left, before = remaining(), search.best
        if step > left:
            return
        search.smoothing = SMOOTHING[level] * search.goal / len(search.parts)
        moved = search.step(minorant, z, price)
        if moved is None or search.best >= search.goal:
            return
        z, price, gradients = moved
        if search.best <= before + PROGRESS * (search.goal - before):
            level += 1
            if level == len(SMOOTHING):
                return
        following = improve_blocks(search.form.a, search.parts, minorant, gradients, mu)
        if following is None:
            return
        minorant = following
        mu = max(MU_FACTOR * mu, MU_LAST)
        step = max(step, left - remaining()) if left < np.inf else 0.0


def _spread(dual: MaskBlocksDual, active: Int, units: int) -> MaskBlocksDual:
    """A dual point of some units as one of all; the others have blocks of their own."""
    if len(active) == units:
        return dual
    z, matrix = np.zeros(units), np.zeros((units, units))
    block = np.arange(units) + units
    z[active], block[active] = dual.z, dual.block
    matrix[np.ix_(active, active)] = dual.matrix
    return MaskBlocksDual(z, block, matrix, dual.price)
