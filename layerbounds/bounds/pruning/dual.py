"""Lower bounds of pruning problems, derived from a point and a block-diagonal minorant (docs/pruning-bounds.md).

For any z and any block-diagonal B ⪯ H, with h = H(z − w) and c = Bz − h,

    f(v) ≥ f(z) + Σ_blocks min_v [2hᵀ(v − z) + (v − z)ᵀB(v − z)],

and what a block saves by keeping the inputs S beside dropping all of it is c_Sᵀ B_SS⁻¹ c_S with refit, and a number
for each S without. Extended precision; every rounding error is charged.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, is_minorant
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, shrink_until
from layerbounds.kernels.factorization import UNIT, smallest_eigenvalues
from layerbounds.problems.patterns import Structure

#: Extended precision, which type checkers have no name for.
Wide = npt.NDArray[Any]

#: Blocks with more entries of their matrices than this, over all allowed choices, prove nothing.
MOST_ENTRIES = 2**23

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def is_block_minorant(gram: Float, matrix: Float) -> bool:
    """Prove matrix ⪯ gram."""
    return is_positive_semidefinite(gram - matrix)


def certified_block_minorant(gram: Float, matrix: Float) -> Float:
    """Shrink a positive semidefinite matrix until it is a proven minorant; zeros in the worst case."""
    return shrink_until(lambda candidate: is_block_minorant(gram, candidate), matrix)


def pruning_bound(
    gram: Float,
    target: Float,
    original: Float | None,
    structure: Structure,
    z: Float,
    block: Int,
    matrix: Float,
) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over the weights that fit a pattern.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    original : ndarray of shape (n,) or None
        Values of kept weights; None: any (refit).
    structure : Structure
    z : ndarray of shape (n,)
    block : ndarray of int64, shape (n,)
    matrix : ndarray of shape (n, n)

    Returns
    -------
    float
        −inf where no minorant is proven, or with refit where it is not positive definite on every block.
    """
    n = len(target)
    matrix = np.where(block[:, None] == block[None, :], 0.5 * (matrix + matrix.T), 0.0)
    matrix = certified_block_minorant(gram, matrix)
    if not np.any(matrix) and not is_block_minorant(gram, matrix):
        # A singular matrix as stored may have negative eigenvalues of rounding size: nothing is proven about it.
        return -np.inf
    if len(np.unique(block)) == n:
        return _single_bound(gram, target, original, structure, z, np.diag(matrix))
    value, h, h_error, magnitude = value_at(gram, target, z)
    total, kept, size = _block_savings(h, h_error, matrix, z, original, structure, block)
    return rounded_down(value + total, kept, magnitude + size, n)


def diagonal_bound(
    gram: Float, target: Float, original: Float | None, structure: Structure, z: Float, d: Float
) -> float:
    """The same from a diagonal of shape (n,)."""
    d = certified_minorant(gram, d)
    if not np.any(d) and not is_minorant(gram, d):
        return -np.inf
    return _single_bound(gram, target, original, structure, z, d)


def _single_bound(gram: Float, target: Float, original: Float | None, structure: Structure, z: Float, d: Wide) -> float:
    """The bound from a proven diagonal."""
    value, h, h_error, magnitude = value_at(gram, target, z)
    low, saving, size = _single_savings(h, h_error, d, z, original)
    kept = best_sum_of_units(structure, saving) if np.all(np.isfinite(saving)) else np.inf
    return rounded_down(value + low.sum(), kept, magnitude + size, len(target))


def value_at(gram: Float, target: Float, z: Float) -> tuple[Any, Wide, Wide, Any]:
    """f(z), h = H(z − w), the error of h, and the size of the terms of f(z)."""
    wide = gram.astype(_LONG)
    deviation = z.astype(_LONG) - target.astype(_LONG)
    h = wide @ deviation
    spread = np.abs(wide) @ np.abs(deviation)
    # Charged twice as much as the a-priori bound, here and below.
    h_error = 2 * (len(z) + 4) * _UNIT_LONG * spread
    return deviation @ h, h, h_error, np.abs(deviation) @ spread


def rounded_down(value: Any, kept: Any, magnitude: Any, n: int) -> float:
    """The bound less what rounding can have added to it."""
    bound = value - kept - 4 * (n + 16) * _UNIT_LONG * (magnitude + np.abs(kept))
    return float(np.nextafter(float(bound), -np.inf))


def _single_savings(h: Wide, h_error: Wide, d: Wide, z: Wide, original: Wide | None) -> tuple[Wide, Wide, float]:
    """Per input: the term of dropping it, the most that keeping it saves, and the size of the terms."""
    d, z = d.astype(_LONG), z.astype(_LONG)
    drop = -2 * h * z + d * z**2 - 2 * h_error * np.abs(z)
    size = float((2 * np.abs(h * z) + np.abs(d) * z**2).sum())
    if original is None:
        c = np.abs(d * z - h) + h_error + 8 * _UNIT_LONG * (np.abs(d * z) + np.abs(h))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Over the reals nothing bounds a concave term.
            saving = np.where(d < 0, np.inf, np.where(c == 0, 0, c**2 / d))
        return drop, saving * (1 + 16 * _UNIT_LONG), size
    step = original.astype(_LONG) - z
    keep = 2 * h * step + d * step**2 - 2 * h_error * np.abs(step)
    size += float((2 * np.abs(h * step) + np.abs(d) * step**2).sum())
    return drop, drop - keep, size


def best_sum_of_units(structure: Structure, saving: Wide) -> Any:
    """The largest total saving of a choice of units, each the sum over its inputs; saving nothing is allowed."""
    per_unit = np.zeros(len(structure.group), dtype=_LONG)
    np.add.at(per_unit, structure.unit, saving)
    per_unit = np.maximum(per_unit, 0)
    keep = np.zeros(len(per_unit), dtype=bool)
    order = np.lexsort((-per_unit.astype(np.float64), structure.group))
    first = np.searchsorted(structure.group[order], np.arange(len(structure.capacity)))
    for begin, capacity in zip(first, structure.capacity, strict=True):
        keep[order[begin : begin + capacity]] = True
    # Sorting in float64 can misplace near-equal savings: their difference is below this.
    return per_unit[keep].sum() + 4 * UNIT * np.abs(per_unit).sum()


def _block_savings(
    h: Wide, h_error: Wide, matrix: Wide, z: Wide, original: Wide | None, structure: Structure, block: Int
) -> tuple[Any, Any, float]:
    """Sum over the blocks of dropping everything, the most that an allowed choice saves, and the size of the terms."""
    total: Any = _LONG(0)
    kept: Any = _LONG(0)
    size = 0.0
    tables: dict[int, list[Wide]] = {}
    units_of_group = np.bincount(structure.group)
    for index in np.unique(block):
        members = np.flatnonzero(block == index)
        b = matrix[np.ix_(members, members)].astype(_LONG)
        zb, hb, eb = z[members].astype(_LONG), h[members], h_error[members]
        drop = -2 * hb @ zb + zb @ b @ zb
        size += float(2 * np.abs(hb) @ np.abs(zb) + np.abs(zb) @ np.abs(b) @ np.abs(zb))
        total += drop - 2 * eb @ np.abs(zb)
        units = np.unique(structure.unit[members])
        groups, inside = np.unique(structure.group[units], return_counts=True)
        whole_units = np.count_nonzero(np.isin(structure.unit, units)) == len(members)
        if not whole_units or (len(groups) > 1 and np.any(inside != units_of_group[groups])):
            return total, _LONG(np.inf), size
        sets = _choices(structure, units, groups, original is None, MOST_ENTRIES // len(members) ** 2)
        if sets is None:
            return total, _LONG(np.inf), size
        s = sets[:, np.searchsorted(units, structure.unit[members])]
        if original is None:
            saved = _refit_savings(b, zb, hb, eb, s)
        else:
            step = np.where(s, original[members].astype(_LONG), 0) - zb
            spread = np.abs(step) @ np.abs(b)
            saved = (
                drop - 2 * step @ hb - np.sum((step @ b) * step, axis=1)
                + 2 * (np.abs(step) + np.abs(zb)) @ eb
            )  # fmt: skip
            size += float(np.max(2 * np.abs(step) @ np.abs(hb) + np.sum(spread * np.abs(step), axis=1)))
        if len(groups) > 1:
            kept += saved.max()
            continue
        count = sets.sum(axis=1)
        table = np.array([saved[count == j].max() for j in range(int(count.max()) + 1)])
        tables.setdefault(int(groups[0]), []).append(np.maximum.accumulate(table))
    for group, parts in tables.items():
        kept += best_spread(parts, int(structure.capacity[group]))
    return total, kept * (1 + 4 * len(z) * _UNIT_LONG), size


def _choices(structure: Structure, units: Int, groups: Int, refit: bool, limit: int) -> Bool | None:
    """The sets of a block's units that are allowed, one a row; None where they are more than ``limit``.

    With refit keeping more never saves less: of several groups, whose capacities are their own, only the fullest
    choices matter.
    """
    rows: list[tuple[int, ...]] = [()]
    for group in groups:
        own = np.flatnonzero(structure.group[units] == group).tolist()
        most = min(len(own), int(structure.capacity[group]))
        least = most if refit and len(groups) > 1 else 0
        if len(rows) * sum(math.comb(len(own), j) for j in range(least, most + 1)) > limit:
            return None
        single = [subset for j in range(least, most + 1) for subset in combinations(own, j)]
        rows = [row + subset for row in rows for subset in single]
    sets = np.zeros((len(rows), len(units)), dtype=bool)
    for row, chosen in zip(sets, rows, strict=True):
        row[list(chosen)] = True
    return sets


def _refit_savings(b: Wide, z: Wide, h: Wide, h_error: Wide, sets: Bool) -> Wide:
    """Upper bounds of c_Sᵀ B_SS⁻¹ c_S with c = Bz − h for sets S, from approximate solutions t of B_SS t = c_S.

    The quadratic form is 2cᵀt − tᵀBt + rᵀB_SS⁻¹r with r = c − Bt on S, and the last term at most ‖r‖²/λ_min(B), as
    eigenvalues interlace.
    """
    c = b @ z - h
    error = h_error + 4 * (len(z) + 4) * _UNIT_LONG * (np.abs(b) @ np.abs(z) + np.abs(h))
    narrow = b.astype(np.float64)
    smallest = 0.5 * float(smallest_eigenvalues(narrow))
    if smallest <= 0 or not is_block_minorant(narrow, smallest * np.eye(len(z))):
        return np.where(sets.any(axis=1), _LONG(np.inf), _LONG(0))
    # Outside of a set the rows of the identity, so that all systems have one size.
    systems = np.where(sets[:, :, None] & sets[:, None, :], narrow, np.eye(len(z)))
    t = np.zeros(sets.shape, dtype=_LONG)
    for _ in range(2):
        rest = np.where(sets, c - t @ b, 0).astype(np.float64)
        try:
            t += np.linalg.solve(systems, rest[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            # Any t will do: one that solves nothing gives a weaker bound.
            break
    product, spread = t @ b, np.abs(t) @ np.abs(b)
    off = error + 4 * (len(z) + 4) * _UNIT_LONG * (spread + np.abs(c))
    residual = np.where(sets, np.abs(c - product) + off, 0)
    value = 2 * t @ c - np.sum(t * product, axis=1) + 2 * np.abs(t) @ error
    value += np.sum(residual**2, axis=1) / _LONG(smallest)
    rounding = 8 * (len(z) + 8) * _UNIT_LONG * (2 * np.abs(t) @ np.abs(c) + np.sum(np.abs(t) * spread, axis=1))
    return np.asarray(value * (1 + 16 * _UNIT_LONG) + rounding)


def best_spread(tables: list[Wide], capacity: int) -> Any:
    """Largest total saving when ``capacity`` units are spread over blocks with savings per count."""
    best = np.zeros(capacity + 1, dtype=_LONG)
    for table in tables:
        following = best.copy()
        for count in range(1, len(table)):
            following[count:] = np.maximum(following[count:], best[: capacity + 1 - count] + table[count])
        best = following
    return best[-1]
