"""Newton's method on the smoothed block relaxation of a node (docs/joint-blocks.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack
from scipy.sparse import csr_array

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.joint.views import AllowedView
from layerbounds.kernels.factorization import UNIT, cholesky
from layerbounds.kernels.joint.blocks import sweep_blocks

#: Choices that are so many widths above the least cost have no weight.
CUTOFF = 9.0
#: Nodes that one search over a block's choices may take, and those of a pass over all blocks.
MOST_NODES, BUDGET = 4_000, 1 << 21
#: Change of a price, in widths, that ends the search for the best one.
PRICE = 0.05
#: Nodes of one run of Newton's method.
WORK = 1 << 23
#: Share of the diagonal that is added where H − B is nearly singular.
RIDGE = 1e-3
#: Lengths of a Newton step that are tried.
LENGTHS = (1.0, 0.4, 0.16, 0.05)
#: Where the start is too far, Newton's method begins with a wider smoothing: the gain that a step promises, in widths,
#: above which it is, the factor, and how often.
FAR, WIDER, WIDENINGS = 60.0, 4.0, 6
#: The smoothing becomes narrower by a factor after a full step and one that promises less than so many widths; the
#: mildest factor. Gain, in parts of what the smoothing costs, below which the method has converged.
NEAR, COOLING, MILDEST, SETTLED = 10.0, 0.25, 0.6, 0.05
#: Directions of less variance, relative to the largest of the block's, count as decided.
DECIDED = 1e-9
#: Inputs from which block-diagonal factors are multiplied as sparse matrices.
SPARSE = 200


@dataclass
class _Point:
    """What a pass over the blocks says at a point."""

    z: Float
    price: Float
    h: Float
    base: float
    value: float
    smooth: float
    mean: Float
    second: Float
    cross: Float
    number: Float
    centre: Float
    tilt: Float


class BlockNewton:
    """Newton's method on the smoothed bound of a node.

    Parameters
    ----------
    view : AllowedView
        With factored blocks.
    z : ndarray of shape (n,)
        Where to start; fixed inputs are moved to their values.
    price : ndarray of shape (groups,)
    """

    def __init__(self, view: AllowedView, z: Float, price: Float, work: int = WORK, most: int = MOST_NODES) -> None:
        self.view, self.work, self.most = view, work, most
        self.rest: Float | None = None
        self.start = self._moved(z)
        self.price = np.where(view.counted.any(), np.maximum(price[view.priced], 0.0), 0.0)
        self.best: tuple[float, Float, Float] = (-np.inf, self.start, self.price)
        self.blocks = view.block, view.factor

    def _moved(self, z: Float) -> Float:
        """Fixed inputs at their values, the free ones so that no choice of theirs becomes cheaper than the others."""
        view = self.view
        moved = np.where(view.free, z, view.fixed_values)
        change = moved - z
        if not np.any(change) or not view.inputs.size:
            return moved
        self.rest = view.rest()
        factor = cholesky(self.rest + np.diag(RIDGE * np.diag(view.gram)[view.inputs]))
        if factor is not None:
            moved[view.inputs] -= lapack.dpotrs(factor, (view.gram @ change)[view.inputs], lower=1)[0]
        return moved

    def prices(self, price: Float | None = None) -> Float:
        """Prices of all groups, by default the best point's."""
        result = np.zeros(len(self.view.room))
        result[self.view.priced] = self.best[2] if price is None else price
        return result

    def look(self, z: Float, price: Float, width: float) -> _Point | None:
        """A pass over all blocks; None where one has too many choices."""
        view = self.view
        deviation = z - view.target
        h_all = view.gram @ deviation
        h = h_all[view.inputs]
        groups, widest = self.view.inside.shape
        size = len(view.inputs)
        centre, tilt, mean, cross = np.zeros((4, size))
        least, smooth = np.zeros((2, groups))
        second, number = np.zeros((groups, widest, widest)), np.full((groups, widest + 1), -np.inf)
        marginal = np.zeros((1, 1))
        if self.work <= 0:
            return None
        self.work -= sweep_blocks(
            view.first, view.block, view.factor, view.levels, view.count, view.zero, view.unit, view.unit_prices(price),
            view.pool, view.counted, view.room.copy(), z[view.inputs], h, CUTOFF * width, width, self.most,
            min(BUDGET, self.work), centre, tilt, least, smooth, mean, second, cross, number, marginal,
        )  # fmt: skip
        if np.isnan(least).any():
            return None
        base = float(deviation @ h_all)
        spent = float(price @ view.room[view.priced])
        point = _Point(
            z, price, h, base, base + float(least.sum()) - spent, base + float(smooth.sum()) - spent, mean, second,
            cross, number, centre, tilt,
        )  # fmt: skip
        if point.value > self.best[0]:
            value = point.value - self.charge(point)
            if value > self.best[0]:
                self.best = value, z, price
        # Where rounding is larger than the span, a block's search comes to no choice at all: nothing to average.
        return point if np.isfinite(smooth).all() else None

    def priced(self, z: Float, price: Float, width: float, passes: int = 3) -> _Point | None:
        """A pass at the prices that are best for the smoothed bound at z, as far as a few passes find them."""
        point = self.look(z, price, width)
        view = self.view
        for _ in range(passes if len(view.priced) else 0):
            if point is None:
                return None
            following = self._best_prices(point, width)
            if np.all(np.abs(following - point.price) <= PRICE * width):
                break
            trial = self.look(z, following, width)
            if trial is None or trial.smooth <= point.smooth:
                break
            point = trial
        return point

    def _best_prices(self, point: _Point, width: float) -> Float:
        """Prices at which the numbers of kept units meet the room, from the weights of the last pass."""
        view = self.view
        price, room = point.price.copy(), view.room[view.priced]
        low, high = np.zeros(len(price)), np.full(len(price), np.inf)
        at = np.arange(point.number.shape[1])
        counted = view.block_slot >= 0
        slot = view.block_slot[counted]
        logs = point.number[counted]
        most = point.price + 1e5 * width
        for _ in range(40):
            moved = logs - np.minimum((price - point.price)[slot] / width, 1e6)[:, None] * at
            moved -= moved.max(axis=1, keepdims=True)
            weight = np.exp(moved)
            weight /= weight.sum(axis=1, keepdims=True)
            mean = weight @ at
            variance = np.maximum(weight @ at**2 - mean**2, 0.0)
            excess = np.bincount(slot, mean, len(price)) - room
            spread = np.bincount(slot, variance, len(price)) / width
            low, high = np.where(excess > 0, price, low), np.where(excess < 0, price, high)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                following = np.minimum(price + excess / spread, most)
            middle = np.where(np.isfinite(high), 0.5 * (low + high), np.minimum(2.0 * price + width, most))
            following = np.where(np.isfinite(following) & (following > low) & (following < high), following, middle)
            following = np.where(
                (excess <= 0) & (price == 0.0), 0.0, np.where((excess < 0) & (high < 1e-3 * width), 0.0, following)
            )
            settled = np.all(np.abs(following - price) <= 0.1 * PRICE * width)
            price = following
            if settled:
                break
        return np.asarray(price)

    def reduce(self, cut: float, nodes: int) -> Bool:
        """The values of the free inputs with which the bound of the best point stays below the cut.

        Parameters
        ----------
        cut : float
        nodes : int
            Of the search of a block, in which nothing is left out where it takes more.
        """
        view = self.view
        value, z, price = self.best
        size, longest = view.levels.shape
        groups, widest = view.inside.shape
        h = (view.gram @ (z - view.target))[view.inputs]
        centre, tilt, mean, cross = np.zeros((4, size))
        least, smooth = np.zeros((2, groups))
        marginal = np.zeros((size, longest))
        sweep_blocks(
            view.first, view.block, view.factor, view.levels, view.count, view.zero, view.unit, view.unit_prices(price),
            view.pool, view.counted, view.room.copy(), z[view.inputs], h, (cut - value) * (1.0 + 1e-6), 0.0, nodes,
            BUDGET, centre, tilt, least, smooth, mean, np.zeros((groups, widest, widest)), cross,
            np.zeros((groups, widest + 1)), marginal,
        )  # fmt: skip
        # What was too long to search says nothing.
        unknown = np.repeat(~np.isfinite(least), view.size)
        return np.asarray((value + marginal * (1.0 - 1e-12) < cut) | unknown[:, None])

    def charge(self, point: _Point) -> float:
        """How much rounding the bound at a point may hold, and what the shift of the Gram matrix adds."""
        view = self.view
        deviation = np.abs(point.z - view.target)
        norm = view.norm
        total = float(norm @ deviation)
        i = view.inputs
        at = point.z[i]
        reach = np.maximum(np.abs(view.high - at), np.abs(view.low - at))
        around = np.maximum(view.high - point.centre, point.centre - view.low)
        move = np.abs(point.centre - at)
        spread = norm[i] * total
        padded = np.zeros(view.inside.shape)
        padded[view.inside] = around + np.abs(point.centre)
        partial = np.einsum("gij,gj->gi", np.abs(view.factor), padded)
        size = total * total + float(np.sum(2.0 * (spread + np.abs(point.tilt)) * (around + move + reach)))
        size += float(np.sum(partial**2)) + float(point.price @ (view.room[view.priced] + len(view.units)))
        rounding = 4.0 * (len(deviation) + 16) * UNIT * size
        return rounding + float(np.sum(view.shift[i] * reach**2)) * (1.0 + 1e-12)

    def step(self, point: _Point, width: float) -> tuple[Float, Float, float] | None:
        """The Newton step of the free inputs and of the prices, and what it promises to gain."""
        view = self.view
        if self.rest is None:
            self.rest = view.rest()
        padded = np.zeros(view.inside.shape)
        padded[view.inside] = point.mean
        covariance = point.second - padded[:, :, None] * padded[:, None, :]
        covariance[~view.pair] = 0.0
        try:
            variance, vectors = np.linalg.eigh(covariance)
        except np.linalg.LinAlgError:
            return None
        least = DECIDED * float(variance.max(initial=0.0))
        g, k = np.nonzero(variance > max(least, np.finfo(np.float64).tiny))
        columns = vectors[g, :, k] * np.sqrt(2.0 / width * variance[g, k])[:, None]
        inside = view.inside[g]
        at = (view.first[g][:, None] + np.arange(inside.shape[1]))[inside]
        which = np.broadcast_to(np.arange(len(g))[:, None], inside.shape)[inside]
        half = csr_array((columns[inside], (which, at)), shape=(len(g), len(view.inputs)))
        root = half.T.tocsr() if len(view.inputs) >= SPARSE else half.toarray().T
        half = half if len(view.inputs) >= SPARSE else root.T
        # Prices that are zero and would fall stay there.
        slots = len(view.priced)
        numbers = view.counts(point.number)
        excess = numbers[:, 0] - view.room[view.priced]
        active = np.flatnonzero((numbers[:, 1] > 1e-9) & ((point.price > 0) | (excess > 0)))
        cross = np.zeros((len(view.inputs), len(active)))
        for column, s in enumerate(active):
            # All inputs of the block move with the number.
            mine = (view.block_slot == s)[np.repeat(np.arange(len(view.size)), view.size)]
            cross[mine, column] = point.cross[mine]
        right = np.column_stack([point.mean, cross / width])
        pushed = self.rest @ right
        product = half @ self.rest
        system = (half @ product.T).T
        system[np.diag_indices(len(g))] += 1.0
        factor, info = lapack.dpotrf(system, lower=1, clean=0)
        if info != 0:
            return None
        solved = right - root @ lapack.dpotrs(factor, half @ pushed, lower=1)[0] if len(g) else right
        move_price = np.zeros(slots)
        move = solved[:, 0]
        if active.size:
            back = self.rest @ solved
            schur = np.diag(numbers[active, 1] / width) - 2.0 / width * cross.T @ back[:, 1:]
            wanted = excess[active] - 2.0 / width * cross.T @ back[:, 0]
            try:
                change = np.linalg.solve(schur, wanted)
            except np.linalg.LinAlgError:
                return None
            move_price[active] = change
            move = move - solved[:, 1:] @ change
        if not (np.all(np.isfinite(move)) and np.all(np.isfinite(move_price))):
            return None
        return move, move_price, float(move @ (self.rest @ point.mean))

    def _search(self, point: _Point, move: Float, move_price: Float, width: float) -> tuple[_Point | None, float]:
        """The first of some lengths of a step that raises the smoothed bound."""
        for length in LENGTHS:
            z = point.z.copy()
            z[self.view.inputs] += length * move
            trial = self.priced(z, np.maximum(point.price + length * move_price, 0.0), width, 1)
            if trial is not None and trial.smooth > point.smooth:
                return trial, length
        return None, 0.0

    def run(
        self,
        width: float,
        final: float,
        rounds: int,
        enough: float = np.inf,
        stop: Callable[[], bool] = lambda: False,
        worth: float = 0.0,
    ) -> _Point | None:
        """Newton steps, the width falling to ``final``; returns the last point, None where a pass failed.

        Where the start is too far for a step to raise the smoothed bound, a wider smoothing has a larger region where
        Newton's method converges.
        """
        point = self.priced(self.start, self.price, width)
        widenings, near, cooling = 0, False, COOLING
        for _ in range(rounds):
            if point is None or self.best[0] >= enough or stop():
                break
            found = self.step(point, width)
            if found is None:
                break
            move, move_price, promise = found
            if width <= final and promise < worth:
                break
            wider = not near and promise > FAR * width
            if not wider:
                near = True
                accepted, length = self._search(point, move, move_price, width)
                if accepted is None:
                    wider = True
                else:
                    gain, point = accepted.smooth - point.smooth, accepted
                    if length < 0.2:
                        cooling = min(cooling**0.7, MILDEST)
            if wider:
                widenings += 1
                if widenings > WIDENINGS:
                    break
                width *= WIDER
            elif width > final:
                if length < 1.0 and promise > NEAR * width:
                    continue
                width = max(cooling * width, final)
            elif gain <= SETTLED * (point.value - point.smooth):
                break
            else:
                continue
            fresh = self.priced(point.z, point.price, width)
            if fresh is None:
                break
            point = fresh
        if point is not None:
            self.start, self.price = point.z, point.price
        self.width = width
        return point
