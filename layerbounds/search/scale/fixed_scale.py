"""Dual points at fixed scales, of a Gram matrix whose minorants serve all scales.

In units of the weights neither a minorant nor an integer form of the codes depends on the scale, nor does the inverse
that alternating directions need: a new scale costs some products with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
from scipy.sparse import csr_array

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.alternating import AlternatingDirections, ascend, smooth_inverse
from layerbounds.bounds.minorants.diagonal import certified_minorant, maximize_minorant
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.bounds.quantization.relaxation import maximize_relaxation, refine
from layerbounds.bounds.quantization.split_relaxation import CYCLES, SplitWeights, refine_split
from layerbounds.bounds.scale.dual import Rays, item_codes
from layerbounds.bounds.scale.profile import Profile
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.kernels.quantization.relaxation import cells
from layerbounds.proofs import ScaleMinorant, ScalePoint
from layerbounds.search.quantization.preparation import SINGLE_START, SINGLE_STEPS, regularizations
from layerbounds.search.quantization.split_forms import LARGEST, find_split
from layerbounds.search.shared_results import Recent

#: With several groups of scales forms are used up to so many inputs: above, more boxes of scales are worth more.
GROUPED = 200
#: Larger Gram matrices get diagonals by a few steps in single precision.
REFIT_SIZE = 700
#: Share of their mean that the squared distances of such a refit are raised by.
LARGE_FLOOR = 0.1
#: Refits of a minorant at one scale.
REFITS = 6


@dataclass(frozen=True, eq=False)
class Minorant:
    """A proven minorant and the inverse that alternating directions need, in units of the weights."""

    split: SplitWeights
    inverse: Float

    @functools.cached_property
    def forms(self) -> csr_array:
        """The forms, sparse."""
        return csr_array(self.split.forms)


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Integer forms and weights, in units of the codes."""

    forms: csr_array
    units: Float
    weights: Float


@dataclass(frozen=True, eq=False)
class _CutPoint:
    """A dual point of them and its bound."""

    value: float
    z: Float
    multipliers: Float


@dataclass(frozen=True, eq=False)
class Start:
    """What dual points of a Gram matrix have in common.

    Attributes
    ----------
    gram, factor : ndarray of shape (n, n)
        With a shift of its diagonal where it is singular; its lower Cholesky factor.
    minorant : Minorant or None
        None where it has no inverse.
    """

    gram: Float
    factor: Float
    minorant: Minorant | None


_starts: Recent[Start | None] = Recent(4)


def consecutive(boxes: Sequence[Float]) -> bool:
    """Whether lists of codes are more than two consecutive integers each, so that integer forms serve them."""
    whole = all(bool(np.all(np.diff(box) == 1) and box[0] == np.rint(box[0])) for box in boxes)
    return whole and len(boxes[0]) > 2


def typical_diagonal(gram: Float) -> float:
    """The unit in which dual points are computed."""
    return max(float(np.mean(np.diag(gram))), float(np.finfo(np.float64).tiny))


def first_minorant(gram: Float, group: Int, with_forms: bool) -> Start | None:
    """Factorize a Gram matrix and find a minorant, with integer forms where they pay; once for all channels.

    None where it cannot be factorized.
    """

    def compute() -> Start | None:
        n = len(gram)
        shifted = ((m, cholesky(m)) for m in (gram + np.diag(s) for s in regularizations(gram)))
        found = next(((m, f) for m, f in shifted if f is not None), None)
        if found is None:
            return None
        matrix, factor = found
        ones = np.ones(n)
        units = (
            certified_minorant(matrix, ascend_newton(matrix, ones, steps=SINGLE_STEPS)) if n >= SINGLE_START else None
        )
        if units is None or n <= REFIT_SIZE:
            units = maximize_minorant(matrix, ones, units, relative_gap=0.3)
        pays = with_forms and 2 <= n <= (GROUPED if np.any(group) else LARGEST)
        split = find_split(matrix, units, lambda: False) if pays else None
        split = None if split is None else _within_groups(split, group)
        if split is None or not split.weights.size:
            split = SplitWeights.without_forms(units)
        return Start(matrix, factor, _minorant(matrix, split))

    return _starts.get((joblib.hash(gram), group.tobytes(), with_forms), compute, 1)


def prepare_points(gram: Float, group: Int, boxes: Sequence[Float]) -> None:
    """Do the work that dual points of all channels share."""
    first_minorant(gram / typical_diagonal(gram), group, consecutive(boxes))


def _minorant(gram: Float, split: SplitWeights) -> Minorant | None:
    """With its inverse; None where there is none."""
    inverse = smooth_inverse(gram, split.units, csr_array(split.forms), split.weights)
    return None if inverse is None or not np.any(split.units) else Minorant(split, inverse)


def _within_groups(split: SplitWeights, group: Int) -> SplitWeights:
    """Without forms across groups, which are no integers at all scales."""
    first = group[np.argmax(split.forms != 0, axis=0)]
    kept = ~np.any((split.forms != 0) & (group[:, None] != first), axis=0)
    return SplitWeights(np.ascontiguousarray(split.forms[:, kept]), split.units, split.weights[kept])


class FixedScale:
    """Dual points of some rows that share their scales.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n)
    rays : Rays

    Attributes
    ----------
    minorants : list of Minorant
        Proven for the Gram matrix, with a shift of its diagonal where it is singular.
    usable : bool
        False where the Gram matrix cannot be factorized.
    """

    def __init__(self, gram: Float, target: Float, rays: Rays) -> None:
        self.target, self.rays = target, rays
        self.minorants: list[Minorant] = []
        self._covariance: Float | None = None
        start = first_minorant(gram, rays.group, consecutive(rays.boxes))
        self.usable = start is not None
        if start is None:
            return
        self.gram, self._factor = start.gram, start.factor
        self.has_forms = start.minorant is not None and bool(start.minorant.split.weights.size)
        if start.minorant is not None:
            self.minorants.append(start.minorant)

    def _homes(self, forms: Float) -> Int:
        """The group of the first input of each form."""
        return np.asarray(self.rays.group[np.argmax(forms != 0, axis=0)])

    def _add(self, split: SplitWeights) -> int | None:
        """Number of a new minorant; None where there is no inverse."""
        found = _minorant(self.gram, split)
        if found is None:
            return None
        self.minorants.append(found)
        return len(self.minorants) - 1

    def point(self, minorant: int, scale: Float, box: int, start: Float, stop: Callable[[], bool]) -> ScalePoint:
        """The best dual point at some scales, one for each group.

        Parameters
        ----------
        minorant : int
        scale : ndarray of shape (groups,)
        box : int
            List of codes.
        start : ndarray of shape (rows, n)
            A point to start from.
        stop : callable
        """
        chosen = self.minorants[minorant]
        s = scale[self.rays.group]
        outer = np.outer(s, s)
        gram, inverse = self.gram * outer, chosen.inverse / outer
        levels, count = self._levels(box)
        split, forms = chosen.split, chosen.forms
        own = scale[self._homes(split.forms)]
        z, multipliers = np.empty_like(start), np.empty((len(start), split.weights.size))
        for row, w in enumerate(self.target):
            if split.weights.size:
                cuts = _Cuts(forms, split.units * s**2, split.weights * own**2)
                best = _ascend_cuts(gram, w / s, levels, cuts, start[row] / s, inverse, stop)
                z[row], multipliers[row] = best.z * s, best.multipliers / own
            else:
                diagonal = maximize_relaxation(
                    gram, w / s, levels, count, split.units * s**2, start[row] / s, stop, inverse
                )
                z[row] = diagonal.z * s
        return ScalePoint(z, minorant, multipliers)

    def refit(self, minorant: int, scale: Float, box: int, start: Float, stop: Callable[[], bool]) -> ScalePoint | None:
        """A dual point with a minorant of its own, learned at some scales from the first row."""
        if len(self.target) > 1:
            return None
        s = scale[self.rays.group]
        if len(self.gram) > REFIT_SIZE:
            return self._refit_large(scale, box, start, stop)
        gram = self.gram * np.outer(s, s)
        levels, count = self._levels(box)
        split, origin = self.minorants[minorant].split, self.target[0] / s
        if self.has_forms:
            if self._covariance is None:
                self._covariance = symmetric_inverse(self._factor)
            unit = SplitWeights(split.forms, split.units * s**2, split.weights * scale[self._homes(split.forms)] ** 2)
            covariance = self._covariance / np.outer(s, s)
            better = refine_split(gram, covariance, origin, levels, unit, start[0] / s, REFITS, stop)
            learned = _within_groups(better.split, self.rays.group)
            own = scale[self._homes(learned.forms)]
            found = SplitWeights(learned.forms, learned.units / s**2, learned.weights / own**2)
            if learned.weights.size < better.split.weights.size:
                number = self._add(found)
                return None if number is None else self.point(number, scale, box, better.z[None] * s, stop)
            z, multipliers = better.z * s, better.multipliers / own
        else:
            single = refine(gram, origin, levels, count, split.units * s**2, start[0] / s, REFITS, stop)
            found = SplitWeights(split.forms, single.d / s**2, split.weights)
            z, multipliers = single.z * s, np.zeros(0)
        number = self._add(found)
        return None if number is None else ScalePoint(z[None], number, multipliers[None])

    def _refit_large(self, scale: Float, box: int, start: Float, stop: Callable[[], bool]) -> ScalePoint | None:
        """The same in single precision."""
        levels, count = self._levels(box)
        s = scale[self.rays.group]
        z = np.clip(start[0] / s, levels[0], levels[-1])
        low, high = np.empty_like(z), np.empty_like(z)
        cells(levels, count, z, low, high)
        distance = s**2 * (z - low) * (high - z)
        weights = distance + LARGE_FLOOR * np.mean(distance)
        d = certified_minorant(self.gram, ascend_newton(self.gram, weights, steps=SINGLE_STEPS, stop=stop))
        number = self._add(SplitWeights.without_forms(d))
        return None if number is None or stop() else self.point(number, scale, box, start, stop)

    def _levels(self, box: int) -> tuple[Float, Int]:
        codes = self.rays.boxes[box]
        n = len(self.gram)
        return np.repeat(codes[:, None], n, axis=1), np.full(n, len(codes), dtype=np.int64)

    def constant(self, point: ScalePoint) -> float:
        """The bound of a point is this and its profiles of all groups, see `layerbounds.bounds.scale.dual`."""
        split = self.minorants[point.minorant].split
        h = (point.z - self.target) @ self.gram
        squares = np.sum(split.units * point.z**2) + np.sum(split.weights * (point.z @ split.forms) ** 2)
        return float(squares - np.sum(h * (point.z + self.target)))

    def profile(self, point: ScalePoint, group: int, box: int) -> Profile:
        """The bound of a point as a function of the scale of one group."""
        split = self.minorants[point.minorant].split
        inside = self.rays.group == group
        own = np.any(split.forms[inside] != 0, axis=0)
        h = (point.z - self.target) @ self.gram
        b = split.units * point.z - h + point.multipliers @ split.forms.T
        beta = split.weights * (point.z @ split.forms) - point.multipliers
        weights = np.concatenate([split.units[inside], split.weights[own]])
        slopes = np.concatenate([b[:, inside], beta[:, own]], axis=1)
        codes = item_codes(self.rays.boxes[box], int(np.sum(inside)), split.forms[:, own])
        rows = len(slopes)
        return Profile(np.tile(weights, rows), slopes.ravel(), np.tile(codes, (rows, 1)))


def _ascend_cuts(
    gram: Float, origin: Float, levels: Float, cuts: _Cuts, start: Float, inverse: Float, stop: Callable[[], bool]
) -> _CutPoint:
    """Best z and multipliers for fixed weights of units and forms, by alternating directions."""
    low, high = levels[0], levels[-1]
    transposed = csr_array(cuts.forms.T)
    positive, negative = transposed.maximum(0.0), transposed.minimum(0.0)
    lowest, highest = positive @ low + negative @ high, positive @ high + negative @ low
    z = np.clip(start, low, high)
    method = AlternatingDirections(gram, origin, levels, cuts.units, z, cuts.forms, cuts.weights, inverse)

    def evaluate() -> _CutPoint:
        """The bound as in `layerbounds.bounds.quantization.split_relaxation.evaluate_split`, without its rounding."""
        z, multipliers = method.z, method.multipliers
        deviation = z - origin
        linear = gram @ deviation
        step = levels - z
        value = float(deviation @ linear)
        value += float(np.sum((2.0 * (linear - cuts.forms @ multipliers) * step + cuts.units * step**2).min(axis=0)))
        y = transposed @ z
        vertex = y - np.divide(multipliers, cuts.weights, out=np.zeros_like(y), where=cuts.weights > 0)
        points = np.clip(np.stack([lowest, highest, np.floor(vertex), np.ceil(vertex)]), lowest, highest) - y
        value += float(np.sum((2.0 * multipliers * points + cuts.weights * points**2).min(axis=0)))
        return _CutPoint(value, z, multipliers)

    first = _CutPoint(-np.inf, z, np.zeros_like(cuts.weights))
    return ascend(method, first, evaluate, CYCLES, stop)


def in_units(
    minorants: Sequence[Minorant], points: Sequence[ScalePoint], gram: float, scale: float
) -> tuple[tuple[ScaleMinorant, ...], tuple[ScalePoint, ...]]:
    """Dual points and the minorants that they use, for certification: times the units of Gram matrix and scale."""
    kept = sorted({point.minorant for point in points})
    scaled = tuple(
        ScaleMinorant(split.units * gram, split.forms, split.weights * gram)
        for split in (minorants[number].split for number in kept)
    )
    return scaled, tuple(
        ScalePoint(point.z * scale, kept.index(point.minorant), point.multipliers * (gram * scale)) for point in points
    )
