"""Certified minima over all scales for many rows, in double precision (docs/numerics.md, "Many rows, all scales").

With h = H(z − w), D ⪯ H + diag(e) proven once for all rows, b = Dz − h and F = zᵀDz − hᵀ(z + w),

    f(v) ≥ F + Σ_i [d_i v_i² − 2 b_i v_i] − Σ e_i (v_i − z_i)²,

at v = s·c a sum over the groups of s·r(s), r concave: its least value over an interval is bounded by chords.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.bounds.objective import SLOPE_UNDERFLOW, UNDERFLOW, entry_sizes
from layerbounds.bounds.scale.dual import Charge, Rays, check_dual, leaves
from layerbounds.bounds.scale.least import over_scales, rays_of
from layerbounds.kernels.batched.profiles import least_between
from layerbounds.kernels.factorization import UNIT, gamma
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.proofs import ScaleDual

#: Numbers in the points of the rows that are treated together.
MOST_NUMBERS = 1 << 23
#: Scales of an interval: at first, and at most; what may be lost to chords, relative to the bound.
FEW, MOST, LOSS = 4, 96, 1e-4
#: Float64 sums of magnitudes are raised by this.
_UP = 1.01


@dataclass(frozen=True, eq=False)
class _Leaves:
    """Intervals of scales.

    Attributes
    ----------
    point : ndarray of int64, shape (leaves,)
        What bounds each.
    low, high : ndarray of shape (leaves, groups)
    leaf, box : ndarray of int64, shape (pairs,)
        The leaves with each of the lists of codes that they are for.
    """

    point: Int
    low: Float
    high: Float
    leaf: Int
    box: Int


@dataclass(frozen=True, eq=False)
class _Proven:
    """What all rows share.

    Attributes
    ----------
    gram : ndarray of shape (n, n)
        Without the shift; with real zero points the projected one of the inputs that are left.
    shift : ndarray of shape (n,)
    d : ndarray of shape (minorants, n)
        Proven below the shifted matrix.
    size : ndarray of shape (n,)
        See `entry_sizes`.
    group : ndarray of int64, shape (n,)
    left : ndarray of int64, shape (n,)
        The inputs.
    known : tuple or None
        With real zero points a diagonal below the whole Gram matrix, and its shift.
    """

    gram: Float
    shift: Float
    d: Float
    size: Float
    group: Int
    left: Int
    known: tuple[Float, Float] | None


def scale_rows(gram: Float, targets: Float, allowed: Sequence[ScaledLevels], duals: Sequence[ScaleDual]) -> Float:
    """From dual points of each row that share their diagonals; others are bounded one by one."""
    first = duals[0]
    plain = all(not minorant.weights.size for minorant in first.minorants)
    if not plain or targets.ndim != 2 or any(dual.dropped != first.dropped for dual in duals):
        triples = zip(targets, allowed, duals, strict=True)
        return np.array([over_scales(gram, target, one, dual) for target, one, dual in triples])
    bound = np.zeros(len(targets))
    proven: _Proven | None = None
    begin = 0
    while begin < len(targets):
        sets, parts, numbers, end = [], [], 0, begin
        while end < len(targets) and (end == begin or numbers < MOST_NUMBERS):
            one = allowed[end]
            rays = rays_of(one, duals[end])
            check_dual(rays, duals[end], 1)
            sets.append(rays)
            parts.append(_leaves(duals[end], rays))
            numbers += len(np.unique(parts[-1].point)) * targets.shape[1]
            end += 1
        if begin == 0:
            proven = _prove(gram, targets, sets[0], first)
        if proven is None:
            return bound
        bound[begin:end] = _bounds(gram, targets[begin:end], sets, duals[begin:end], parts, proven)
        begin = end
    return bound


def _leaves(dual: ScaleDual, rays: Rays) -> _Leaves:
    """The leaves of a row's trees; powers of two move their ends inward."""
    groups = int(rays.group.max(initial=-1)) + 1
    found = list(leaves(dual, groups, len(rays.boxes)))
    if rays.powers_of_two:
        inner = ((boxes, point, _powers(low, np.ceil), _powers(high, np.floor)) for boxes, point, low, high in found)
        found = [one for one in inner if np.all(one[2] <= one[3])]
    pairs = [(leaf, box) for leaf, one in enumerate(found) for box in one[0]]
    leaf, box = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    low, high = (np.array([one[k] for one in found]).reshape(-1, groups) for k in (2, 3))
    return _Leaves(np.array([one[1] for one in found], dtype=np.int64), low, high, leaf, box)


def _powers(scale: Float, rounding: Callable[[Float], Float]) -> Float:
    inner = (scale > 0) & np.isfinite(scale)
    return np.where(inner, 2.0 ** rounding(np.log2(np.where(inner, scale, 1.0))), scale)


def _prove(gram: Float, targets: Float, rays: Rays, dual: ScaleDual) -> _Proven | None:
    """Prove the diagonals once; None where nothing can be proven."""
    charge = Charge(gram, targets, rays)
    reduced = charge.project(dual.dropped) if dual.dropped else charge
    shifted = None if reduced is None else semidefinite_shift(reduced.gram)
    if reduced is None or shifted is None:
        return None
    matrix, shift = shifted
    d = np.stack([certified_minorant(matrix, np.asarray(m.d, dtype=np.float64)) for m in dual.minorants])
    known = None
    if dual.dropped:
        whole = semidefinite_shift(gram)
        if whole is None:
            return None
        known = certified_minorant(whole[0], interior_start(whole[0])), whole[1]
    left = np.setdiff1d(np.arange(len(gram)), dual.dropped)
    if not (np.all(d > 0) and np.all(np.diag(reduced.gram) > 0)):
        return None
    return _Proven(reduced.gram, shift, d, entry_sizes(reduced.gram), reduced.rays.group, left, known)


def _bounds(
    gram: Float, targets: Float, sets: list[Rays], duals: Sequence[ScaleDual], parts: list[_Leaves], proven: _Proven
) -> Float:
    """The bounds of some rows."""
    n = len(proven.gram)
    inner = targets[:, proven.left]
    if duals[0].dropped:
        inner = inner - targets[:, np.array(duals[0].dropped)[proven.group]]
    used = [np.unique(part.point) for part in parts]
    row = np.repeat(np.arange(len(parts)), [len(u) for u in used])
    points = [duals[r].points[k] for r, u in enumerate(used) for k in u]
    z = np.concatenate([np.asarray(point.z, dtype=np.float64) for point in points])
    minorant = np.array([point.minorant for point in points])
    d, w = proven.d[minorant], inner[row]
    deviation = z - w
    h = deviation @ proven.gram
    error = 2 * gamma(n + 8) * (np.abs(deviation) @ proven.size)[:, None] * proven.size + SLOPE_UNDERFLOW
    b = d * z - h
    reach_z = np.abs(z)
    squares, products = d * z * z, np.abs(h) * (reach_z + np.abs(w))
    constant = np.sum(squares, axis=1) - np.einsum("ij,ij->i", h, z + w)
    constant -= 4 * (n + 32) * UNIT * np.sum(squares + products, axis=1)
    constant -= _UP * np.sum(error * (reach_z + np.abs(w)), axis=1) + UNDERFLOW
    error += 4 * UNIT * (d * reach_z + np.abs(h))
    start = np.cumsum([0, *(len(u) for u in used)])
    place = [start[r] + np.searchsorted(used[r], part.point) for r, part in enumerate(parts)]
    owner = np.repeat(np.arange(len(parts)), [len(part.point) for part in parts])
    value = _least(proven, b, place, minorant, sets[0], parts, constant, owner)
    # Beyond the limit every weight is 0.
    smallest = min(float(np.abs(codes[codes != 0]).min(initial=np.inf)) for codes in sets[0].boxes)
    limit = np.array([rays.limit if proven.known is None else 2 * rays.limit for rays in sets])
    low = np.concatenate([part.low.min(axis=1) for part in parts])
    beyond = low * smallest > limit[owner] * (1 + 8 * UNIT)
    value[beyond] = _energy(proven, inner)[owner[beyond]]
    least = np.full(len(parts), np.inf)
    np.minimum.at(least, owner, value)
    farthest = max(float(np.abs(codes).max()) for codes in sets[0].boxes) * (1 + 8 * UNIT)
    bound = np.zeros(len(parts))
    for r, (part, rays) in enumerate(zip(parts, sets, strict=True)):
        if not 0 < least[r] < np.inf:
            continue
        charge = Charge(proven.gram, inner[r : r + 1], Rays(rays.boxes, proven.group, float(limit[r])))
        diagonal = proven.d[np.unique(minorant[place[r]])].max(axis=0)
        reach = charge.reach(float(least[r]), diagonal, proven.shift)
        if reach is None:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            widest = part.high[:, proven.group] * farthest
        off = 2 * _UP * np.sum(error[place[r]] * np.minimum(reach, widest), axis=1)
        away = reach + reach_z[place[r]]
        # In this order the square of a small weight does not underflow.
        off += _UP * np.sum(proven.shift * away * away, axis=1)
        found = float(np.min(value[owner == r] - np.where(beyond[owner == r], 0.0, off)))
        if proven.known is not None:
            found = charge.rounded_target(found, reach, proven.shift)
        bound[r] = _for_rounded_weights(gram, targets[r : r + 1], rays, found, reach, proven)
    return bound


def _energy(proven: _Proven, targets: Float) -> Float:
    """Numbers below f(0)."""
    charge = 4 * (len(proven.gram) + 16) * UNIT * (np.abs(targets) @ proven.size) ** 2 + UNDERFLOW
    return np.asarray(np.einsum("ij,ij->i", targets @ proven.gram, targets) - charge)


def _for_rounded_weights(gram: Float, target: Float, rays: Rays, value: float, reach: Float, proven: _Proven) -> float:
    """The bound for weights that were rounded to float64."""
    if not value > 0:
        return 0.0
    charge = Charge(gram, target, rays)
    if proven.known is None:
        return max(charge.rounded_weights(value, (reach, proven.shift)), 0.0)
    d, shift = proven.known
    whole = charge.reach(value, d, shift)
    return 0.0 if whole is None else max(charge.rounded_weights(value, (whole, shift)), 0.0)


def _least(
    proven: _Proven,
    b: Float,
    place: list[Int],
    minorant: Int,
    rays: Rays,
    parts: list[_Leaves],
    constant: Float,
    owner: Int,
) -> Float:
    """Of every leaf the constant and the least terms of all groups: roughly at first, then where that decides."""
    groups = int(rays.group.max(initial=-1)) + 1
    codes = np.stack([np.asarray(c, dtype=np.float64) for c in rays.boxes])
    uniform = codes.shape[1] > 1 and bool(np.all(np.diff(codes, axis=1) == 1) and np.all(codes == np.rint(codes)))
    first = np.cumsum([0, *(len(part.point) for part in parts)])
    leaf = np.concatenate([part.leaf + begin for part, begin in zip(parts, first, strict=False)])
    box = np.concatenate([part.box for part in parts])
    low, high = (np.concatenate([getattr(part, name) for part in parts]) for name in ("low", "high"))
    where = np.concatenate(place)
    base = constant[where]
    value, met = np.full((2, groups, len(base)), np.inf)

    def sweep(chosen: Int, enough: Float, share: Float, most: int) -> None:
        pairs = np.flatnonzero(np.isin(leaf, chosen))
        of = leaf[pairs]
        point = np.stack([where[of], minorant[where[of]]], axis=1)
        for g in range(groups):
            members = proven.group == g
            if not members.any():
                # Its only input was left out.
                value[g], met[g] = 0.0, 0.0
                continue
            d = proven.d if groups == 1 else np.ascontiguousarray(proven.d[:, members])
            inside = b if groups == 1 else np.ascontiguousarray(b[:, members])
            found, seen = np.empty((2, len(pairs)))
            least_between(
                d, inside, point, codes, box[pairs], uniform, np.ascontiguousarray(low[of, g]),
                np.ascontiguousarray(high[of, g]), enough[of], share[of], most, found, seen,
            )  # fmt: skip
            for array, new in ((value, found), (met, seen)):
                array[g, chosen] = np.inf
                np.minimum.at(array[g], of, new)

    every = np.arange(len(base))
    nothing = np.full(len(base), np.inf)
    sweep(every, nothing, np.zeros(len(base)), FEW)
    goal = np.full(len(parts), np.inf)
    np.minimum.at(goal, owner, base + met.sum(axis=0))
    # A bound above what was met within a leaf closes it.
    goal = np.maximum(goal, 0.0)[owner]
    share = LOSS * goal / groups
    weak = np.flatnonzero((base + value.sum(axis=0) < goal - share) & (goal > 0))
    if len(weak):
        sweep(weak, goal - base if groups == 1 else nothing, share, MOST)
    total = base + value.sum(axis=0)
    with np.errstate(invalid="ignore"):
        total = total - 4 * UNIT * (groups + 2) * (np.abs(base) + np.abs(value).sum(axis=0))
    return np.where(np.isnan(total), -np.inf, total)


ROWS = {(ScaledLevels, ScaleDual): scale_rows}
