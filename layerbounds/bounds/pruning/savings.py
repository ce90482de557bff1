"""What keeping the units of a pattern saves at most, in the tangent bound of pruning (docs/pruning-bounds.md).

One or several rows have one mask: savings are sums over the rows. Arrays are of extended or of double precision, whose
unit every charge is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.kernels.factorization import UNIT, smallest_eigenvalues
from layerbounds.problems.patterns import Structure

#: Of either precision; type checkers have no name for extended precision.
Wide = npt.NDArray[Any]

#: Blocks with more entries of their matrices than this, over all allowed choices, prove nothing.
MOST_ENTRIES = 2**23
#: Entries of the solutions for all sets and rows that exist at once.
AT_ONCE = 2**21

_LONG = np.longdouble


@dataclass(frozen=True, eq=False)
class Block:
    """A block of the minorant and its allowed choices.

    Attributes
    ----------
    members : ndarray of int64, shape (m,)
        Its inputs.
    sets : ndarray of bool, shape (sets, m)
        Inputs kept by each choice of units.
    count : ndarray of int64, shape (sets,)
        How many units these are.
    group : int
        Whose capacity the units count for; −1 for a block of several whole groups, whose capacities are its own.
    """

    members: Int
    sets: Bool
    count: Int
    group: int


def unit_roundoff(array: Wide) -> float:
    """The distance from 1 to the next number of an array's precision."""
    return float(np.finfo(array.dtype).eps)


def lay_out(structure: Structure, block: Int, refit: bool) -> list[Block] | None:
    """The blocks and their choices; None where blocks do not fit the pattern or have too many."""
    units_of_group = np.bincount(structure.group)
    blocks = []
    order = np.argsort(block, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        members = np.sort(members)
        units = np.unique(structure.unit[members])
        groups, inside = np.unique(structure.group[units], return_counts=True)
        whole = len(groups) == 1 or np.array_equal(inside, units_of_group[groups])
        if not whole:
            return None
        sets = _choices(structure, units, groups, refit, MOST_ENTRIES // len(members) ** 2)
        if sets is None:
            return None
        inputs = sets[:, np.searchsorted(units, structure.unit[members])]
        blocks.append(Block(members, inputs, sets.sum(axis=1), int(groups[0]) if len(groups) == 1 else -1))
    # A unit in several blocks would be kept in one and dropped in another.
    apart = np.concatenate([np.unique(structure.unit[b.members]) for b in blocks])
    return blocks if len(apart) == len(structure.group) else None


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


def single_savings(h: Wide, h_error: Wide, d: Float, z: Wide, original: Wide | None) -> tuple[Any, Wide, Any]:
    """The terms of dropping everything, the most that keeping each input saves, and the size of the terms.

    Parameters
    ----------
    h, h_error, z, original : ndarray of shape (rows, n)
    d : ndarray of shape (n,)
    """
    eps = unit_roundoff(h)
    d = d.astype(h.dtype)
    # In this order the square of a small weight does not underflow.
    square = d * z * z
    drop = -2 * h * z + square - 2 * h_error * np.abs(z)
    size = np.sum(2 * np.abs(h * z) + np.abs(square))
    if original is None:
        product = d * z
        c = np.abs(product - h) + h_error + 8 * eps * (np.abs(product) + np.abs(h))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Over the reals nothing bounds a concave term.
            saving = np.where(d < 0, np.inf, np.where(c == 0, 0, c * (c / d)))
        return drop.sum(), saving.sum(axis=0) * (1 + 16 * eps), size
    step = original - z
    bent = d * step * step
    keep = 2 * h * step + bent - 2 * h_error * np.abs(step)
    size += np.sum(2 * np.abs(h * step) + np.abs(bent))
    return drop.sum(), (drop - keep).sum(axis=0), size


def block_savings(
    block: Block, b: Float, h: Wide, h_error: Wide, z: Wide, original: Wide | None
) -> tuple[Any, Wide, Any]:
    """The terms of dropping everything, the most that each choice saves, shape (sets,), and the size of the terms.

    Parameters
    ----------
    block : Block
    b : ndarray of shape (m, m)
    h, h_error, z, original : ndarray of shape (rows, m)
    """
    matrix = b.astype(h.dtype)
    pull, spread = z @ matrix, np.abs(z) @ np.abs(matrix)
    drop = np.sum(-2 * h * z + pull * z, axis=1)
    size = np.sum(2 * np.abs(h * z) + spread * np.abs(z))
    total = np.sum(drop - 2 * np.sum(h_error * np.abs(z), axis=1))
    if original is None:
        c = pull - h
        error = h_error + 4 * (len(b) + 4) * unit_roundoff(h) * (spread + np.abs(h))
        return total, _refit_savings(b, matrix, c, error, block.sets), size
    saved, sizes = [], []
    for sets in _in_parts(block.sets, z.size):
        step = np.where(sets[:, None, :], original, 0) - z
        kept = 2 * step * h + (step @ matrix) * step - 2 * h_error * (np.abs(step) + np.abs(z))
        saved.append(np.sum(drop) - np.sum(kept, axis=(1, 2)))
        reach = 2 * np.abs(step * h) + (np.abs(step) @ np.abs(matrix)) * np.abs(step)
        sizes.append(np.max(np.sum(reach, axis=(1, 2))))
    return total, np.concatenate(saved), size + max(sizes)


def _in_parts(sets: Bool, entries: int) -> Iterator[Bool]:
    """The sets, so many at a time that arrays of ``entries`` for each of them are not too large."""
    part = max(AT_ONCE // max(entries, 1), 1)
    for begin in range(0, len(sets), part):
        yield sets[begin : begin + part]


def _refit_savings(b: Float, matrix: Wide, c: Wide, error: Wide, sets: Bool) -> Wide:
    """Upper bounds of Σ c_Sᵀ B_SS⁻¹ c_S over the rows of c for sets S, from approximate solutions t of B_SS t = c_S.

    The quadratic form is 2cᵀt − tᵀBt + rᵀB_SS⁻¹r with r = c − Bt on S, and the last term at most ‖r‖²/λ_min(B), as
    eigenvalues interlace. ``b`` is ``matrix`` in double precision.
    """
    # Powers of two bring the diagonal near 1, so that inputs of different scales have eigenvalues of one.
    power = np.frexp(np.sqrt(np.maximum(np.diag(b), 0.0)))[1]
    b = np.ldexp(b, -power[:, None] - power)
    matrix = np.ldexp(np.ldexp(matrix, -power), -power[:, None])
    c, error = np.ldexp(c, -power), np.ldexp(error, -power)
    smallest = 0.5 * float(smallest_eigenvalues(b))
    if smallest <= 0 or not is_positive_semidefinite(b - smallest * np.eye(len(b))):
        return np.where(sets.any(axis=1), np.inf, 0.0).astype(matrix.dtype)
    parts = _in_parts(sets, c.size)
    return np.concatenate([_savings_of_sets(b, matrix, c, error, s, smallest) for s in parts])


def _savings_of_sets(b: Float, matrix: Wide, c: Wide, error: Wide, sets: Bool, smallest: float) -> Wide:
    """The same for a positive definite block whose smallest eigenvalue is proven to be at least ``smallest``."""
    m, eps = len(b), unit_roundoff(matrix)
    inside = sets[:, None, :]
    # Outside of a set the rows of the identity, so that all systems have one size.
    systems = np.where(sets[:, :, None] & inside, b, np.eye(m))
    t = np.zeros((len(sets), *c.shape), dtype=matrix.dtype)
    for _ in range(2):
        rest = np.where(inside, c - t @ matrix, 0)
        # Extended precision has a larger range, too.
        scale = np.maximum(np.max(np.abs(rest), axis=2, keepdims=True), np.finfo(matrix.dtype).tiny)
        right = (rest / scale).astype(np.float64).transpose(0, 2, 1)
        try:
            t += np.linalg.solve(systems, right).transpose(0, 2, 1) * scale
        except np.linalg.LinAlgError:
            # Any t will do: one that solves nothing gives a weaker bound.
            break
    product, size, spread = t @ matrix, np.abs(t), np.abs(t) @ np.abs(matrix)
    off = error + 4 * (m + 4) * eps * (spread + np.abs(c))
    residual = np.where(inside, np.abs(c - product) + off, 0)
    value = np.sum(2 * t * c - t * product + 2 * size * error, axis=2)
    value += np.sum(residual**2, axis=2) / matrix.dtype.type(smallest)
    rounding = 8 * (m + 8) * eps * np.sum(2 * size * np.abs(c) + size * spread, axis=2)
    return np.asarray(np.sum(value * (1 + 16 * eps) + rounding, axis=1))


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


def best_of_blocks(structure: Structure, blocks: list[Block], savings: list[Wide]) -> Any:
    """The largest total saving of a choice in every block that the capacities allow, from those of all choices."""
    kept: Any = _LONG(0)
    tables: dict[int, list[Wide]] = {}
    for block, saved in zip(blocks, savings, strict=True):
        if block.group < 0:
            kept += saved.max()
            continue
        table = np.array([saved[block.count == j].max() for j in range(int(block.count.max()) + 1)])
        tables.setdefault(block.group, []).append(np.maximum.accumulate(table))
    for group, parts in tables.items():
        kept += best_spread(parts, int(structure.capacity[group]))
    return kept


def best_spread(tables: list[Wide], capacity: int) -> Any:
    """Largest total saving when ``capacity`` units are spread over blocks with savings per count."""
    best = np.zeros(capacity + 1, dtype=_LONG)
    for table in tables:
        following = best.copy()
        for count in range(1, len(table)):
            following[count:] = np.maximum(following[count:], best[: capacity + 1 - count] + table[count])
        best = following
    return best[-1]
