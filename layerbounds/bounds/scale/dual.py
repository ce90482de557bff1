"""Lower bounds over all scales, derived from dual points that each bound a range of scales (docs/scales.md).

Extended precision; every rounding error is charged (docs/numerics.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.bounds.quantization.cuts import certified_weights
from layerbounds.bounds.scale.profile import Profile, padded
from layerbounds.bounds.scale.projection import project
from layerbounds.exceptions import CertificationError
from layerbounds.kernels.factorization import UNIT
from layerbounds.proofs import ScaleDual, ScaleMinorant, ScalePoint

Wide = npt.NDArray[Any]

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)
#: Float64 sums of magnitudes are raised by this.
_UP = 1.01


@dataclass(frozen=True, eq=False)
class Rays:
    """What scales and codes there are: v_i = s·c, s > 0 the scale of the group of i, c a code of one of the lists.

    Attributes
    ----------
    boxes : sequence of ndarray of shape (codes,)
        Sorted; every group takes one of the lists.
    group : ndarray of int64, shape (n,)
        0, 1, ….
    limit : float
        Largest |v_i| allowed.
    powers_of_two : bool
        Whether scales are powers of two only.
    """

    boxes: Sequence[Float]
    group: Int
    limit: float = np.inf
    powers_of_two: bool = False


@dataclass(frozen=True, eq=False)
class _Proven:
    """A minorant proven for the Gram matrix with its shift."""

    d: Float
    forms: Float
    weights: Float

    @functools.cached_property
    def wide_forms(self) -> Wide:
        """The forms in extended precision."""
        return self.forms.astype(_LONG)


@dataclass(frozen=True, eq=False)
class _Bound:
    """A dual point's bound as a function of the scales, and what rounding may have hidden of it.

    Attributes
    ----------
    constant : float
        F, rounded down.
    profile : callable
        From a group and a list of codes, by their numbers, to a `Profile`.
    groups : int
    slope : ndarray of shape (rows, n)
        The bound is too high by at most Σ slope·|v|.
    reach : ndarray of shape (rows, n)
        |z|.
    """

    constant: float
    profile: Callable[[int, int], Profile]
    groups: int
    slope: Float
    reach: Float

    def least(self, boxes: Sequence[int], low: Float, high: Float, powers_of_two: bool) -> float:
        """Minimum over some lists of codes and scales between low and high."""
        total, size = self.constant, abs(self.constant)
        for group in range(self.groups):
            of = (self.profile(group, box) for box in boxes)
            if powers_of_two:
                term = min(profile.least_power(low[group], high[group]) for profile in of)
            else:
                term = min(profile.minimum(low[group], high[group])[0] for profile in of)
            total, size = total + term, size + abs(term)
        return total - 2 * UNIT * (self.groups + 2) * size


def scale_bound(gram: Float, target: Float, rays: Rays, dual: ScaleDual) -> float:
    """Lower bound on Σ (v − w)ᵀH(v − w) over the rows, for all scales and codes, and for v rounded to float64.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,) or (rows, n)
    rays : Rays
        With real zero points the lists are the codes counted from the zero.
    dual : ScaleDual
        Its trees cover all scales by construction.

    Returns
    -------
    float
        0 where nothing can be proven.

    Raises
    ------
    CertificationError
        If the dual's parts do not fit the groups and lists.
    """
    rows = np.atleast_2d(target)
    check_dual(rays, dual, len(rows))
    if dual.dropped and len(rows) > 1:
        # The codes of each row count from one of their own, so that rows have different lists.
        return 0.0
    charge = Charge(gram, rows, rays)
    reduced = charge.project(dual.dropped) if dual.dropped else charge
    shifted = None if reduced is None else semidefinite_shift(reduced.gram)
    if reduced is None or shifted is None:
        return 0.0
    matrix, shift = shifted
    used = sorted({int(k) for k in dual.child[dual.axis < 0]})
    minorants = {k: _prove(matrix, dual.minorants[k]) for k in {dual.points[p].minorant for p in used}}
    bounds = _point_bounds(reduced, [dual.points[p] for p in used], minorants)
    place = {p: bound for p, bound in zip(used, bounds, strict=True)}
    value = np.inf
    for boxes, point, low, high in leaves(dual, reduced.groups, len(rays.boxes)):
        value = min(value, place[point].least(boxes, low, high, rays.powers_of_two))
    if not 0 < value < np.inf:
        return 0.0
    diagonal = np.max([m.d for m in minorants.values()], axis=0)
    reach = reduced.reach(value, diagonal, shift)
    if reach is None:
        return 0.0
    value -= max(2 * _UP * float(np.sum(b.slope * reach)) + _UP * _weighted(shift, reach + b.reach) for b in bounds)
    value = reduced.rounded_target(value, reach, shift) if dual.dropped else value
    return max(charge.rounded_weights(value, None if dual.dropped else (reach, shift)), 0.0)


def rounding_charge(gram: Float, target: Float, limit: float, cut: float) -> float:
    """What rounding each weight once can lower errors just below a cut, at most all of it.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    limit : float
        Largest weight that is allowed.
    cut : float
    """
    rays = Rays([], np.zeros(len(gram), dtype=np.int64), limit)
    return float(np.nextafter(cut - Charge(gram, np.atleast_2d(target), rays).rounded_weights(cut, None), np.inf))


def leaves(dual: ScaleDual, groups: int, boxes: int) -> Iterator[tuple[list[int], int, Float, Float]]:
    """What the dual's trees divide all scales into: lists of codes, point, lowest and highest scales of the groups."""
    shared = len(dual.root) == 1
    for number, root in enumerate(dual.root):
        which = list(range(boxes)) if shared else [number]
        open_nodes = [(int(root), np.zeros(groups), np.full(groups, np.inf))]
        while open_nodes:
            node, low, high = open_nodes.pop()
            axis, child = int(dual.axis[node]), int(dual.child[node])
            if axis < 0:
                if np.all(low <= high):
                    yield which, child, low, high
                continue
            at = float(dual.at[node])
            below, above = high.copy(), low.copy()
            below[axis], above[axis] = min(at, high[axis]), max(at, low[axis])
            open_nodes += [(child, low, below), (child + 1, above, high)]


def check_dual(rays: Rays, dual: ScaleDual, rows: int) -> None:
    """Raise CertificationError if the dual's parts do not fit the scales and codes."""
    groups = int(rays.group.max(initial=-1)) + 1
    fits = (
        np.all(dual.axis < groups) and len(dual.root) in (1, len(rays.boxes)) and (groups == 1 or len(dual.root) == 1)
    )
    fits = fits and (not dual.dropped or [int(rays.group[i]) for i in dual.dropped] == list(range(groups)))
    fits = fits and all(len(point.z) == rows for point in dual.points)
    left = np.delete(rays.group, list(dual.dropped))
    whole = all(bool(np.all(box == np.rint(box))) for box in rays.boxes)
    for minorant in dual.minorants:
        for form in minorant.forms.T:
            members = left[form != 0]
            fits = fits and whole and bool(np.all(members == members[:1]))
    if not fits:
        raise CertificationError(
            "the backend returned an invalid dual point: its parts do not fit the scales and codes."
        )


class Charge:
    """A Gram matrix and targets, and what rounding of them costs.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n)
    rays : Rays
    """

    def __init__(self, gram: Float, target: Float, rays: Rays) -> None:
        self.gram, self.target, self.rays = gram, target, rays

    @property
    def groups(self) -> int:
        """Number of scales."""
        return int(self.rays.group.max(initial=-1)) + 1

    def project(self, dropped: tuple[int, ...]) -> Charge | None:
        """With real zero points: the best ones put in, the inputs that are left; None where that cannot be proven."""
        found = project(self.gram, self.rays.group, dropped)
        if found is None:
            return None
        matrix, left = found
        group = self.rays.group[left]
        base = np.array(dropped)[group]
        rays = Rays(self.rays.boxes, group, 2 * self.rays.limit, self.rays.powers_of_two)
        return Charge(matrix, self.target[:, left] - self.target[:, base], rays)

    def reach(self, value: float, d: Float, shift: Float) -> Float | None:
        """Largest |v| of weights whose error is below a value; None where it cannot be bounded.

        From f(v) ≥ Σ d (v − w)², or, where the matrix needs a shift, from the limit.
        """
        if np.any(shift > 0):
            known = np.isfinite(self.rays.limit)
            return np.full_like(self.target, self.rays.limit * (1 + 8 * UNIT)) if known else None
        with np.errstate(divide="ignore"):
            own = np.abs(self.target) + np.sqrt(value / d)
        reach = np.minimum(own, self.rays.limit) * (1 + 16 * UNIT)
        return reach if np.all(np.isfinite(reach)) else None

    def rounded_target(self, value: float, reach: Float, shift: Float) -> float:
        """The bound for the exact differences of the targets, of which this has the rounded ones."""
        return self._moved(value, UNIT * np.abs(self.target), reach, shift)

    def rounded_weights(self, value: float, known: tuple[Float, Float] | None) -> float:
        """The bound for weights s·c rounded to float64: each is off by at most u|v|."""
        if not value > 0:
            return 0.0
        if known is None:
            shifted = semidefinite_shift(self.gram)
            if shifted is None:
                return 0.0
            d = certified_minorant(shifted[0], interior_start(shifted[0]))
            reach = self.reach(value, d, shifted[1])
            if reach is None:
                return 0.0
            known = reach, shifted[1]
        reach, shift = known
        return self._moved(value, 2 * UNIT * reach, reach, shift)

    def _moved(self, value: float, move: Float, reach: Float, shift: Float) -> float:
        """A bound that holds for points, for points moved by so much: √f changes by the norm of the move."""
        if not value > 0:
            return 0.0
        norm = _UP * float(np.sum(move * np.sqrt(np.diag(self.gram) + shift)))
        root = np.sqrt(value) * (1 - 2 * UNIT) - norm
        if not root > 0:
            return 0.0
        charged = root * root * (1 - 4 * UNIT) - _UP * _weighted(shift, reach + np.abs(self.target))
        return float(np.nextafter(charged, -np.inf))


def _weighted(weights: Float, values: Float) -> float:
    """Σ weights·values², multiplied so that the square of a small number does not underflow."""
    return float(np.sum(weights * values * values))


def _prove(matrix: Float, minorant: ScaleMinorant) -> _Proven:
    forms = np.asarray(minorant.forms, dtype=np.float64)
    d, weights = np.asarray(minorant.d, dtype=np.float64), np.asarray(minorant.weights, dtype=np.float64)
    if not weights.size:
        return _Proven(certified_minorant(matrix, d), forms, weights)
    d, weights = certified_weights(matrix, forms, d, weights)
    return _Proven(d, forms, weights)


def _point_bounds(charge: Charge, points: list[ScalePoint], minorants: dict[int, _Proven]) -> list[_Bound]:
    """The bounds of all points.

    f(v) ≥ F + vᵀ(D + VGVᵀ)v − 2bᵀv − 2βᵀVᵀv with h = H(z − w), b = Dz − h + Vρ, β = GVᵀz − ρ and
    F = zᵀ(D + VGVᵀ)z − hᵀ(z + w).
    """
    n = len(charge.gram)
    wide, size = charge.gram.astype(_LONG), np.abs(charge.gram)
    result = []
    for point in points:
        proven = minorants[point.minorant]
        z, w = np.asarray(point.z, dtype=np.float64).astype(_LONG), charge.target.astype(_LONG)
        rho = np.asarray(point.multipliers, dtype=np.float64).astype(_LONG)
        d, g, forms = proven.d.astype(_LONG), proven.weights.astype(_LONG), proven.wide_forms
        deviation = z - w
        h = deviation @ wide
        spread = _UP * (np.abs(deviation).astype(np.float64) @ size)
        y = z @ forms
        b, beta = d * z - h + rho @ forms.T, g * y - rho
        constant = np.sum(d * z * z) + np.sum(g * y * y) - np.sum(h * (z + w))
        # Sizes of what was added up, in float64.
        reach, steepness = np.abs(z).astype(np.float64), np.abs(rho).astype(np.float64)
        sizes = np.abs(proven.forms)
        of_forms = reach @ sizes
        slope = spread + proven.d * reach + steepness @ sizes.T
        form_slope = proven.weights * of_forms + steepness
        total = np.sum(spread * (reach + np.abs(charge.target))) + _weighted(proven.d, reach)
        total += _weighted(proven.weights, of_forms)
        roundings = (2 * n + 2 * len(g) + 2 * z.size + 32) * _UNIT_LONG * _UP
        low = float(constant - roundings * float(total))
        slope = roundings * (slope + form_slope @ sizes.T)
        profile = _profiles(charge.rays, proven, np.concatenate([d, g]), np.concatenate([b, beta], axis=1))
        result.append(_Bound(float(np.nextafter(low, -np.inf)), profile, charge.groups, slope, reach))
    return result


def _profiles(rays: Rays, proven: _Proven, d: Wide, b: Wide) -> Callable[[int, int], Profile]:
    """Profiles of units and forms, made when they are asked for.

    Parameters
    ----------
    d : ndarray of shape (n + cuts,)
    b : ndarray of shape (rows, n + cuts)
    """
    forms = proven.forms
    # Every form has a variable, and all of them in one group.
    home = np.concatenate([rays.group, rays.group[np.argmax(forms != 0, axis=0)] if forms.shape[1] else []])

    @functools.cache
    def profile(group: int, box: int) -> Profile:
        inside = home == group
        codes = item_codes(rays.boxes[box], int(np.sum(rays.group == group)), forms[:, inside[len(rays.group) :]])
        rows = len(b)
        return Profile(np.tile(d[inside], rows), b[:, inside].ravel(), np.tile(codes, (rows, 1)))

    return profile


def item_codes(box: Float, units: int, forms: Float) -> Float:
    """What single codes and forms can be: rows padded with their last entries, shape (units + cuts, codes)."""
    if not forms.shape[1]:
        return padded(box, units)
    ends = forms * box[0], forms * box[-1]
    low, high = np.minimum(*ends).sum(axis=0), np.maximum(*ends).sum(axis=0)
    most = max(int((high - low).max()) + 1, len(box))
    result = np.empty((units + forms.shape[1], most))
    result[:units, : len(box)], result[:units, len(box) :] = box, box[-1]
    result[units:] = np.minimum(low[:, None] + np.arange(most), high[:, None])
    return result
