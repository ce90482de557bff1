"""Sets of kept inputs for all rows: refits by conjugate gradients, then exchanges among each row's doubtful inputs.

Inputs stand in the order of a layout, scaled to a unit diagonal, weights in units of the row's energy
(docs/batched-pruning.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.arithmetic import Arithmetic, Single
from layerbounds.kernels.pruning import subset
from layerbounds.kernels.pruning.masks import descend_mask
from layerbounds.search.pruning.correlated_inputs import nearest_inputs
from layerbounds.solvers.batched.support_layout import Layout

#: Inputs, or units, of a row that exchanges choose from, and kicks of the local search among them: more among fewer.
DOUBTFUL, KICKS, MOST_KICKS = 96, 12, 120
#: The same for masks, where nothing has to be factorized, and about how many moves follow a kick.
DOUBTFUL_MASKS, MOVES_AFTER = 256, 10
#: Rounds of exchanges, and the gain, relative to the error, below which a row is left as it is.
ROUNDS, LEAST_GAIN = 5, 1e-3
#: Multiplications that all exchanges of a layer may cost.
WORK = 5e11
#: Rounds of swaps in all rows, the share of the kept inputs that the first ones swap, the least share, products after
#: each, and the gain, relative to the error, below which a row swaps half as many.
SWAPS, FIRST_SWAPS, LEAST_SWAPS, SWAP_PRODUCTS, SWAP_GAIN = 20, 0.25, 0.002, 12, 0.02
#: Multiplications that all swaps of a layer may cost.
SWAP_WORK = 5e12
#: Products for refits, and the gain, relative to the error, below which they end.
PRODUCTS, GAIN = 40, 1e-4
#: Best single moves and exchanges of masks in a round.
MOVES = 400


class SetSearch:
    """Sets for the rows of a layer.

    Parameters
    ----------
    matrix : ndarray of float32, shape (n, n)
        With unit diagonal.
    there : array
        The same, where the arithmetic's arrays live.
    layout : Layout
    d : ndarray of shape (n,)
        A minorant: about what an input is worth that others stand in for.
    arithmetic : Arithmetic
    seed : int
    stop : callable
    """

    def __init__(
        self, matrix: Single, there: Any, layout: Layout, d: Float, arithmetic: Arithmetic, seed: int,
        stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.matrix, self.there, self.layout, self.arithmetic, self.stop = matrix, there, layout, arithmetic, stop
        self.root = np.sqrt(np.maximum(d, 0.0)).astype(np.float32) + np.float32(1e-6)
        self.group = np.repeat(np.arange(len(layout.capacity)), np.diff(layout.units))
        self.random = np.random.default_rng(seed)
        self.state = np.array([np.random.SeedSequence([seed]).generate_state(1, np.uint64)[0] | 1])
        self.work, self.swap_work = WORK, SWAP_WORK

    def product(self, rows: Single) -> Single:
        """Rows times H."""
        return self.arithmetic.product(rows, self.there)

    def refitted(self, w: Single, score: Single, start: Single) -> tuple[Bool, Single]:
        """Sets of inputs, and the deviations of their refitted weights from the targets.

        Parameters
        ----------
        w : ndarray of float32, shape (rows, n)
        score : ndarray of float32, shape (rows, units)
            The units of largest score are the first sets.
        start : ndarray of float32, shape (rows, n)
            Weights from which refits begin.
        """
        kept = largest_units(score, self.layout)[:, self.layout.unit]
        e, h = refit_rows(w, kept, start, self.product, self.stop)
        if len(self.layout.inputs) == w.shape[1] + 1:
            self._swap(w, kept, e, h)
        self._exchange(w, kept, e, h)
        return kept, e

    def _swap(self, w: Single, kept: Bool, e: Single, h: Single) -> None:
        """Rounds of many swaps at once in all rows, each followed by a few products, in place."""
        error = _dots(e, h)
        share = np.full(len(w), FIRST_SWAPS)
        for _ in range(SWAPS):
            active = np.flatnonzero((share >= LEAST_SWAPS) & (error > 0))
            self.swap_work -= float(SWAP_PRODUCTS * len(active) * w.shape[1] ** 2)
            if not len(active) or self.swap_work < 0 or self.stop():
                return
            v = w[active] + e[active]
            loss, gain = v**2 * self.root, h[active] ** 2 / self.root
            trial = kept[active]
            for place, row in enumerate(active):
                pick = doubtful(
                    loss[place], gain[place], kept[row], self.group, 2 * max(int(share[row] * kept[row].sum()), 1)
                )
                trial[place, pick] ^= True
            found, slopes = refit_rows(w[active], trial, v, self.product, self.stop, SWAP_PRODUCTS)
            errors = _dots(found, slopes)
            better = errors < error[active]
            rows = active[better]
            kept[rows], e[rows], h[rows] = trial[better], found[better], slopes[better]
            share[active[errors > (1.0 - SWAP_GAIN) * error[active]]] *= 0.5
            error[rows] = errors[better]

    def _exchange(self, w: Single, kept: Bool, e: Single, h: Single) -> None:
        """Rounds of exchanges among the doubtful inputs of each row, in place."""
        error = _dots(e, h)
        active = np.flatnonzero((error > 0) & kept.any(axis=1) & ~kept.all(axis=1))
        # The largest errors first, should the work not suffice for all.
        active = active[np.argsort(-error[active], kind="stable")]
        for _ in range(ROUNDS):
            size = float(kept[active].sum(axis=1).max(initial=0))
            cost = size**3 / 6 + size**2 * DOUBTFUL + 2e6
            active = active[: int(max(self.work, 0.0) / cost)]
            if not len(active) or self.stop():
                return
            self.work -= len(active) * cost
            v = w[active] + e[active]
            loss, gain = v**2 * self.root, h[active] ** 2 / self.root
            picks = [self._doubtful(*row) for row in zip(loss, gain, kept[active], strict=True)]
            outside = np.where(kept[active], np.float32(0.0), w[active])
            for place, (row, pick) in enumerate(zip(active, picks, strict=True)):
                outside[place, pick] = w[row, pick]
            images = self.product(outside)
            better, deviations = kept[active], e[active]
            for place, (row, pick) in enumerate(zip(active, picks, strict=True)):
                if self.stop():
                    break
                found = exchange_row(
                    self.matrix, w[row], kept[row], pick, images[place], float(error[row]), self.layout, self.state
                )
                if found is not None:
                    better[place], deviations[place] = found
            slopes = self.product(deviations)
            errors = _dots(deviations, slopes)
            # In single precision a refit of nearly dependent inputs may come out worse.
            gained = errors < error[active]
            rows = active[gained]
            kept[rows], e[rows], h[rows] = better[gained], deviations[gained], slopes[gained]
            worth = errors < (1.0 - LEAST_GAIN) * error[active]
            error[rows] = errors[gained]
            active = active[worth]

    def _doubtful(self, loss: Single, gain: Single, kept: Bool) -> Int:
        """The inputs of the units that exchanges should choose from."""
        inputs = self.layout.inputs
        begins = inputs[:-1]
        if len(begins) == len(kept):
            return doubtful(loss, gain, kept, self.group, DOUBTFUL)
        many = max(DOUBTFUL * len(begins) // len(kept), 4)
        units = doubtful(np.add.reduceat(loss, begins), np.add.reduceat(gain, begins), kept[begins], self.group, many)
        return np.concatenate([np.arange(inputs[u], inputs[u + 1]) for u in units]) if len(units) else units

    def masks(self, w: Single, original: Single, score: Single) -> Bool:
        """Inputs that are kept as they are; shape (rows, n).

        Parameters
        ----------
        w, original : ndarray of float32, shape (rows, n)
        score : ndarray of float32, shape (rows, units)
            The units of largest positive score are the first sets.
        """
        layout, unit = self.layout, self.layout.unit
        begins = layout.inputs[:-1]
        alone = np.add.reduceat(original**2, begins, axis=1)
        if len(begins) < len(unit):
            for u in range(len(begins)):
                part = slice(layout.inputs[u], layout.inputs[u + 1])
                alone[:, u] = _dots(original[:, part] @ self.matrix[part, part], original[:, part])
        best = np.zeros((len(w), len(begins)), dtype=bool)
        least = np.full(len(w), np.inf)
        for kept in (largest_units(score, layout) & (score > 0), largest_units(alone, layout)):
            errors = self._improve_masks(w, original, kept, alone)
            better = errors < least
            best[better], least[better] = kept[better], errors[better]
        return best[:, unit]

    def _improve_masks(self, w: Single, original: Single, kept: Bool, alone: Single) -> Float:
        """Rounds of exchanges of masks, in place; the errors. ``alone`` are the energies of the units alone."""
        layout, unit = self.layout, self.layout.unit
        begins = layout.inputs[:-1]
        active, errors = np.arange(len(w)), np.empty(len(w))
        for number in range(ROUNDS + 1):
            e = np.where(kept[active][:, unit], original[active], np.float32(0.0)) - w[active]
            h = self.product(e)
            errors[active] = _dots(e, h)
            many = min(DOUBTFUL_MASKS, len(begins))
            self.work -= float(len(active) * MOVES_AFTER * (KICKS + 1) * many**2)
            if number == ROUNDS or self.work < 0 or self.stop():
                break
            slope = 2.0 * np.add.reduceat(original[active] * h, begins, axis=1)
            changed = np.zeros(len(active), dtype=bool)
            for place, row in enumerate(active):
                # Exact for one change at a time.
                loss, gain = alone[row] - slope[place], -alone[row] - slope[place]
                pick = doubtful(loss, gain, kept[row], self.group, DOUBTFUL_MASKS)
                pick = np.union1d(pick, promising(loss, gain, kept[row], DOUBTFUL_MASKS // 8))
                found = exchange_mask(self.matrix, original[row], kept[row], pick, h[place], layout, self.random)
                changed[place] = not np.array_equal(found, kept[row])
                kept[row] = found
            active = active[changed]
            if not len(active):
                break
        return errors


def _kicks(choices: int, usual: int) -> int:
    """How many kicks a local search among so many units makes: more where these are fewer than usual."""
    return min(max(int(KICKS * (usual / max(choices, 1)) ** 2), KICKS), MOST_KICKS)


def _dots(one: Single, other: Single) -> Float:
    """Row by row."""
    return np.asarray(np.einsum("ri,ri->r", one, other, dtype=np.float64))


def promising(loss: Single, gain: Single, kept: Bool, many: int) -> Int:
    """Units whose change alone would be best, sorted."""
    change = np.where(kept, loss, -gain)
    return np.sort(np.argsort(change, kind="stable")[:many])


def largest_units(score: Single, layout: Layout) -> Bool:
    """The units of largest score that each group may keep; arrays of shape (rows, units)."""
    kept = np.zeros(score.shape, dtype=bool)
    sizes = np.diff(layout.units)
    for size, capacity in np.unique(np.stack([sizes, layout.capacity], axis=1), axis=0).tolist():
        groups = np.flatnonzero((sizes == size) & (layout.capacity == capacity))
        index = layout.units[groups][:, None] + np.arange(size)
        part = score[:, index.ravel()].reshape(len(score), *index.shape)
        chosen = np.zeros(part.shape, dtype=bool)
        if capacity:
            best = np.argpartition(-part, min(capacity, size - 1), axis=2)[:, :, :capacity]
            np.put_along_axis(chosen, best, True, axis=2)
        kept[:, index.ravel()] = chosen.reshape(len(score), -1)
    return kept


def refit_rows(
    w: Single,
    kept: Bool,
    start: Single,
    product: Callable[[Single], Single],
    stop: Callable[[], bool],
    most: int = PRODUCTS,
) -> tuple[Single, Single]:
    """Deviations e = v − w of least error with v = 0 outside of the sets, by conjugate gradients; and H e.

    Parameters
    ----------
    w, start : ndarray of float32, shape (rows, n)
        Targets, and weights to start from.
    kept : ndarray of bool, shape (rows, n)
    product : callable
        Rows times H.
    stop : callable
    most : int
        Products at most.
    """
    e = np.where(kept, start - w, -w)
    h = product(e)
    r = np.where(kept, -h, np.float32(0.0))
    p = r.copy()
    last = _dots(r, r)
    error = np.maximum(_dots(e, h), 0.0)
    for _ in range(most):
        if stop():
            break
        q = product(p)
        curve = _dots(p, q)
        length = np.divide(last, curve, out=np.zeros_like(last), where=curve > 0)
        step = length.astype(np.float32)[:, None]
        e += step * p
        h += step * q
        r -= step * np.where(kept, q, np.float32(0.0))
        now = _dots(r, r)
        gain = length * last
        error -= gain
        if np.all(gain <= GAIN * np.maximum(error, 0.0)):
            break
        turn = np.divide(now, last, out=np.zeros_like(now), where=last > 0)
        p = r + turn.astype(np.float32)[:, None] * p
        last = now
    return e, h


def doubtful(loss: Single, gain: Single, kept: Bool, group: Int, many: int) -> Int:
    """Inputs, or units, that exchanges should choose from, sorted.

    The kept one of a group whose loss is smallest meets the dropped one whose gain is largest, the second the second,
    and the pairs of largest difference count.

    Parameters
    ----------
    loss, gain : ndarray, shape (n,)
        Estimates of what dropping costs, and of what keeping saves.
    kept : ndarray of bool, shape (n,)
    group : ndarray of int64, shape (n,)
        Sorted.
    many : int
    """
    inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
    inside = inside[np.lexsort((loss[inside], group[inside]))]
    outside = outside[np.lexsort((-gain[outside], group[outside]))]
    ranks = []
    for part in (inside, outside):
        ranks.append(group[part] * len(kept) + np.arange(len(part)) - np.searchsorted(group[part], group[part]))
    _, first, second = np.intersect1d(ranks[0], ranks[1], assume_unique=True, return_indices=True)
    first, second = inside[first], outside[second]
    score = gain[second] - loss[first]
    best = np.argsort(-score, kind="stable")[: many // 2]
    return np.sort(np.concatenate([first[best], second[best]]))


def exchange_row(
    gram: Single, w: Single, kept: Bool, chosen: Int, image: Single, error: float, layout: Layout, state: Int
) -> tuple[Bool, Single] | None:
    """A better set of one row, and the refitted deviation; None where the kept inputs are dependent.

    All kept inputs but the chosen ones are minimised out; among the chosen ones local search goes on.

    Parameters
    ----------
    gram : ndarray of float32, shape (n, n)
    w : ndarray of float32, shape (n,)
    kept : ndarray of bool, shape (n,)
    chosen : ndarray of int64, shape (m,)
    image : ndarray of float32, shape (n,)
        H u, u the target outside of the kept inputs that are not chosen.
    error : float
        Of the refitted set.
    layout : Layout
    state : ndarray
        Of the random numbers; it moves on.
    """
    base = kept.copy()
    base[chosen] = False
    fixed = np.flatnonzero(base)
    rows = gram[fixed]
    block, pull = gram[np.ix_(chosen, chosen)].astype(np.float64), image[chosen].astype(np.float64)
    factor = np.zeros((0, 0), dtype=np.float32)
    half = np.zeros((0, len(chosen) + 1), dtype=np.float32)
    if len(fixed):
        factor, info = lapack.spotrf(rows[:, fixed].T, lower=1, clean=0, overwrite_a=1)
        if info != 0 or not np.isfinite(factor[-1, -1]):
            return None
        right = np.empty((len(fixed), len(chosen) + 1), dtype=np.float32, order="F")
        right[:, :-1] = rows[:, chosen]
        right[:, -1] = image[fixed]
        half = blas.strsm(1.0, factor, right, lower=1, overwrite_b=1)
        small = (half[:, :-1].T @ half).astype(np.float64)
        block -= small[:, :-1]
        pull -= small[:, -1]
    block = 0.5 * (block + block.T)
    try:
        if len(layout.inputs) == len(kept) + 1:
            found = _exchange_inputs(block, pull, kept[chosen], error, _Left(layout, chosen, fixed), state)
        else:
            found = _eliminate_units(block, pull, _Left(layout, chosen, fixed))
    except (ZeroDivisionError, np.linalg.LinAlgError):
        return None
    index = np.flatnonzero(found)
    values = np.zeros(len(chosen))
    if len(index):
        try:
            values[index] = np.linalg.solve(block[np.ix_(index, index)], pull[index])
        except np.linalg.LinAlgError:
            return None
    e = -w
    e[chosen] = values - w[chosen]
    if len(fixed):
        rest = half[:, -1] - half[:, :-1] @ values.astype(np.float32)
        e[fixed] = blas.strsm(1.0, factor, rest[:, None], lower=1, trans_a=1)[:, 0]
    result = base
    result[chosen] = found
    return result, e


class _Left:
    """What a structure leaves to some inputs beside others that are kept.

    Parameters
    ----------
    layout : Layout
    chosen : ndarray of int64
        Places, sorted, of whole units.
    fixed : ndarray of int64
        Places that are kept.

    Attributes
    ----------
    unit : ndarray of int64, shape (len(chosen),)
        Numbered from 0.
    group : ndarray of int64, shape (units,)
        Numbered from 0.
    capacity : ndarray of int64, shape (groups,)
    """

    def __init__(self, layout: Layout, chosen: Int, fixed: Int) -> None:
        units, unit = np.unique(np.searchsorted(layout.inputs, chosen, side="right") - 1, return_inverse=True)
        numbers, group = np.unique(np.searchsorted(layout.units, units, side="right") - 1, return_inverse=True)
        others = np.unique(np.searchsorted(layout.inputs, fixed, side="right") - 1)
        used = np.bincount(np.searchsorted(layout.units, others, side="right") - 1, minlength=len(layout.capacity))
        self.unit, self.group = unit.astype(np.int64), group.astype(np.int64)
        self.capacity = (layout.capacity[numbers] - used[numbers]).astype(np.int64)


def _exchange_inputs(block: Float, pull: Float, flags: Bool, error: float, left: _Left, state: Int) -> Bool:
    """Local search of single inputs, with kicks."""
    index, found = np.flatnonzero(flags), flags.copy()
    # What the kept ones of the chosen inputs save, and the error without them.
    saved = float(pull[index] @ np.linalg.solve(block[np.ix_(index, index)], pull[index]))
    subset.improve(
        block,
        pull,
        max(error + saved, saved),
        left.group,
        left.capacity,
        found,
        _kicks(len(pull), DOUBTFUL),
        nearest_inputs(block),
        state,
    )
    return found


def _eliminate_units(block: Float, pull: Float, left: _Left) -> Bool:
    """Backward elimination: of all units, those whose removal from what is left costs least."""
    kept = np.ones(len(left.group), dtype=bool)
    while True:
        full = np.bincount(left.group[kept], minlength=len(left.capacity)) > left.capacity
        if not np.any(full):
            return np.asarray(kept[left.unit])
        index = np.flatnonzero(kept[left.unit])
        inverse = np.linalg.inv(block[np.ix_(index, index)])
        v = inverse @ pull[index]
        unit = left.unit[index]
        least, worst = np.inf, -1
        for u in np.flatnonzero(kept & full[left.group]):
            own = np.flatnonzero(unit == u)
            loss = float(v[own] @ np.linalg.solve(inverse[np.ix_(own, own)], v[own]))
            if loss < least:
                least, worst = loss, int(u)
        if worst < 0:
            raise np.linalg.LinAlgError
        kept[worst] = False


def exchange_mask(
    gram: Single, original: Single, kept: Bool, chosen: Int, h: Single, layout: Layout, random: np.random.Generator
) -> Bool:
    """A set of one row, shape (units,), that is no worse where kept weights stay as they are.

    Parameters
    ----------
    gram : ndarray of float32, shape (n, n)
    original : ndarray of float32, shape (n,)
    kept : ndarray of bool, shape (units,)
    chosen : ndarray of int64
        Units.
    h : ndarray of float32, shape (n,)
        H (v − w) for the kept weights.
    layout : Layout
    random : Generator
    """
    if not len(chosen):
        return kept
    begins, ends = layout.inputs[chosen], layout.inputs[chosen + 1]
    places = np.concatenate([np.arange(a, b) for a, b in zip(begins, ends, strict=True)])
    runs = np.cumsum(ends - begins) - (ends - begins)
    weights = original[places].astype(np.float64)
    a = gram[np.ix_(places, places)] * np.outer(weights, weights)
    slope = weights * h[places]
    if len(places) > len(chosen):
        a = np.add.reduceat(np.add.reduceat(a, runs, axis=0), runs, axis=1)
        slope = np.add.reduceat(slope, runs)
    flags = kept[chosen]
    # The slope at the point where none of the chosen units is kept.
    beta = a[:, flags].sum(axis=1) - slope
    numbers, group = np.unique(np.searchsorted(layout.units, chosen, side="right") - 1, return_inverse=True)
    others = kept.copy()
    others[chosen] = False
    size = np.bincount(
        np.searchsorted(layout.units, np.flatnonzero(others), side="right") - 1, minlength=len(layout.capacity)
    )
    capacity = (layout.capacity[numbers] - size[numbers]).astype(np.int64)
    a = np.ascontiguousarray(a)
    numbered = group.astype(np.int64)
    found, least = flags, np.inf
    for kick in range(_kicks(len(chosen), DOUBTFUL_MASKS) + 1):
        trial = found.copy()
        if kick:
            # Some units change places with others; what is too much then is dropped at random.
            trial[random.integers(len(trial), size=2 + int(random.integers(3)))] ^= True
            order = random.permutation(len(trial))
            order = order[np.argsort(numbered[order], kind="stable")]
            order = order[trial[order]]
            rank = np.arange(len(order)) - np.searchsorted(numbered[order], numbered[order])
            trial[order[rank >= capacity[numbered[order]]]] = False
        value = float(descend_mask(a, beta, numbered, capacity, trial, MOVES)[0])
        if value < least:
            found, least = trial, value
    result = others
    result[chosen] = found
    return result
