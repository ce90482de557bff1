"""Lower bounds of pruning problems, derived from a point and a block-diagonal minorant (docs/pruning-bounds.md).

For any z and any block-diagonal B ⪯ H, with h = H(z − w) and c = Bz − h,

    f(v) ≥ f(z) + Σ_blocks min_v [2hᵀ(v − z) + (v − z)ᵀB(v − z)],

and what a block saves by keeping the inputs S beside dropping all of it is c_Sᵀ B_SS⁻¹ c_S with refit, and a number
for each S without. Extended precision; every rounding error is charged.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.bounds.diagonal import UNIT, is_positive_semidefinite, shrink_until
from layerbounds.patterns import Structure

#: Extended precision, which type checkers have no name for.
Wide = npt.NDArray[Any]

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
    wide = gram.astype(_LONG)
    deviation = z.astype(_LONG) - target.astype(_LONG)
    h = wide @ deviation
    spread = np.abs(wide) @ np.abs(deviation)
    # Charged twice as much as the a-priori bound, here and below.
    h_error = 2 * (n + 4) * _UNIT_LONG * spread
    value: Any = deviation @ h
    magnitude = np.abs(deviation) @ spread
    single = len(np.unique(block)) == n
    if single:
        low, saving, size = _single_savings(h, h_error, np.diag(matrix), z, original)
        value += low.sum()
        magnitude += size
        kept = _best_sum_single(structure, saving) if np.all(np.isfinite(saving)) else np.inf
    else:
        total, kept, size = _block_savings(h, h_error, matrix, z, original, structure, block)
        value += total
        magnitude += size
    bound = value - kept - 4 * (n + 16) * _UNIT_LONG * (magnitude + np.abs(kept))
    return float(np.nextafter(float(bound), -np.inf))


def _single_savings(h: Wide, h_error: Wide, d: Wide, z: Wide, original: Wide | None) -> tuple[Wide, Wide, float]:
    """Per input: the term of dropping it, the most that keeping it saves, and the size of the terms."""
    d, z = d.astype(_LONG), z.astype(_LONG)
    drop = -2 * h * z + d * z**2 - 2 * h_error * np.abs(z)
    size = float((2 * np.abs(h * z) + d * z**2).sum())
    if original is None:
        c = np.abs(d * z - h) + h_error + 8 * _UNIT_LONG * (np.abs(d * z) + np.abs(h))
        with np.errstate(divide="ignore", invalid="ignore"):
            saving = np.where(c == 0, 0, c**2 / d)
        return drop, saving * (1 + 16 * _UNIT_LONG), size
    step = original.astype(_LONG) - z
    keep = 2 * h * step + d * step**2 - 2 * h_error * np.abs(step)
    size += float((2 * np.abs(h * step) + d * step**2).sum())
    return drop, drop - keep, size


def _best_sum_single(structure: Structure, saving: Wide) -> Any:
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
    size = 0.0
    tables: dict[int, list[Wide]] = {g: [] for g in range(len(structure.capacity))}
    for index in np.unique(block):
        members = np.flatnonzero(block == index)
        b = matrix[np.ix_(members, members)].astype(_LONG)
        zb, hb, eb = z[members].astype(_LONG), h[members], h_error[members]
        drop = -2 * hb @ zb + zb @ b @ zb
        size += float(2 * np.abs(hb) @ np.abs(zb) + np.abs(zb) @ np.abs(b) @ np.abs(zb))
        total += drop - 2 * eb @ np.abs(zb)
        units = np.unique(structure.unit[members])
        groups = np.unique(structure.group[units])
        if len(groups) != 1 or np.count_nonzero(np.isin(structure.unit, units)) != len(members):
            return total, _LONG(np.inf), size
        group = int(groups[0])
        most = int(min(len(units), structure.capacity[group]))
        table = np.zeros(most + 1, dtype=_LONG)
        for count in range(1, most + 1):
            # With refit keeping more never saves less: only the largest subsets matter to the largest count.
            best: Any = _LONG(0) if original is not None else _LONG(-np.inf)
            for subset in combinations(units, count):
                s = np.flatnonzero(np.isin(structure.unit[members], subset))
                if original is None:
                    saved = _refit_saving(b, zb, hb, eb, s)
                else:
                    v = np.zeros(len(members), dtype=_LONG)
                    v[s] = original[members[s]]
                    step = v - zb
                    saved = drop - 2 * hb @ step - step @ b @ step + 2 * eb @ (np.abs(step) + np.abs(zb))
                    size += float(2 * np.abs(hb) @ np.abs(step) + np.abs(step) @ np.abs(b) @ np.abs(step))
                best = max(best, saved)
            table[count] = max(best, table[count - 1])
        tables[group].append(table)
    kept: Any = _LONG(0)
    for group, capacity in enumerate(structure.capacity):
        kept += _knapsack(tables[group], int(capacity))
    return total, kept * (1 + 4 * len(z) * _UNIT_LONG), size


def _refit_saving(b: Wide, z: Wide, h: Wide, h_error: Wide, s: Int) -> Any:
    """Upper bound of c_Sᵀ B_SS⁻¹ c_S with c = Bz − h, from an approximate solution t of B_SS t = c_S.

    The quadratic form is 2cᵀt − tᵀBt + rᵀB⁻¹r with r = c − Bt, and the last term at most ‖r‖²/λ_min.
    """
    c = (b @ z - h)[s]
    error = (h_error + 4 * (len(z) + 4) * _UNIT_LONG * (np.abs(b) @ np.abs(z) + np.abs(h)))[s]
    sub = b[np.ix_(s, s)]
    narrow = sub.astype(np.float64)
    smallest = 0.5 * float(np.linalg.eigvalsh(narrow)[0])
    if smallest <= 0 or not is_block_minorant(narrow, smallest * np.eye(len(s))):
        return _LONG(np.inf)
    t = np.linalg.solve(narrow, c.astype(np.float64)).astype(_LONG)
    t += np.linalg.solve(narrow, (c - sub @ t).astype(np.float64))
    residual = np.abs(c - sub @ t) + error + 4 * (len(s) + 4) * _UNIT_LONG * (np.abs(sub) @ np.abs(t) + np.abs(c))
    value = 2 * c @ t - t @ sub @ t + 2 * error @ np.abs(t) + residual @ residual / _LONG(smallest)
    rounding = 8 * (len(s) + 8) * _UNIT_LONG * (2 * np.abs(c) @ np.abs(t) + np.abs(t) @ np.abs(sub) @ np.abs(t))
    return value * (1 + 16 * _UNIT_LONG) + rounding


def _knapsack(tables: list[Wide], capacity: int) -> Any:
    """Largest total saving when ``capacity`` units are spread over blocks with savings per count."""
    best = np.zeros(capacity + 1, dtype=_LONG)
    for table in tables:
        following = best.copy()
        for count in range(1, len(table)):
            following[count:] = np.maximum(following[count:], best[: capacity + 1 - count] + table[count])
        best = following
    return best[-1]
