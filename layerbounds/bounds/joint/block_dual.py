"""Lower bounds of joint problems, derived from a point and a block-diagonal matrix (docs/joint-bounds.md).

For any z and any block-diagonal B ⪯ H, with h = H(z − w),

    f(v) ≥ f(z) + min over allowed v of Σ_g [2h_gᵀ(v − z)_g + (v − z)_gᵀB_g(v − z)_g].

A block within a group of the pattern is searched for its least cost with at most 0, 1, … units kept, and a knapsack
over these counts shares out the group's capacity; a block of whole groups is searched with their capacities inside.
What the searches may miss is charged as in `layerbounds.bounds.quantization.block_dual`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.joint.dual import level_savings
from layerbounds.bounds.pruning.dual import rounded_down, value_at
from layerbounds.bounds.pruning.savings import best_spread, best_sum_of_units
from layerbounds.bounds.quantization.block_dual import BUDGET, MOST_NODES, PreparedBlocks, proven_block_minorant
from layerbounds.kernels.joint.least_costs import least_costs_by_count
from layerbounds.problems.patterns import Structure

#: Numbers in the tables of a group times its capacity beyond which a price takes the place of the knapsack.
MOST_SHARED = 1 << 19

#: Extended precision, which type checkers have no name for.
Wide = npt.NDArray[Any]

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def block_bound(
    gram: Float, target: Float, values: Float, structure: Structure, z: Float, block: Int, matrix: Float
) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over levels on a support.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
        w.
    values : ndarray of shape (n, levels)
        The sorted levels of each input with zero among them.
    structure : Structure
    z : ndarray of shape (n,)
        Any finite point.
    block : ndarray of int64, shape (n,)
        The block of each input. Blocks that cut units, or groups but do not lie within one, get a diagonal each.
    matrix : ndarray of shape (n, n)
        Any finite matrix; entries between different blocks are ignored.

    Returns
    -------
    float
        0 where no minorant is proven.
    """
    n = len(target)
    matrix = np.where(block[:, None] == block[None, :], 0.5 * matrix + 0.5 * matrix.T, 0.0)
    proven = proven_block_minorant(gram, matrix)
    if proven is None:
        return 0.0
    matrix, shift = proven
    value, h, h_error, magnitude = value_at(gram, target, z)
    low, size = JointBlocks(matrix, shift, block, structure).minimum(values, z, h, h_error)
    bound = rounded_down(value, -low, magnitude + size, n)
    return bound if np.isfinite(bound) else 0.0


class JointBlocks:
    """A block-diagonal matrix and a pattern, made ready for the least costs of levels on a support.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        Symmetric, zero between different blocks.
    shift : ndarray of shape (n,)
        ``matrix`` is below the Gram matrix plus this diagonal.
    block : ndarray of int64, shape (n,)
    structure : Structure
    """

    def __init__(self, matrix: Float, shift: Float, block: Int, structure: Structure) -> None:
        self._shift, self._structure = shift, structure
        self._blocks = PreparedBlocks(matrix, _searchable(block, structure))
        parts = self._blocks.parts
        widest = max((len(part) for part in parts), default=1)
        self._unit, self._group = np.zeros((2, len(self._blocks.member)), dtype=np.int64)
        self._room = np.zeros((len(parts), widest), dtype=np.int64)
        #: Units that a block within a group may keep; 0 for blocks of whole groups.
        self._top = np.zeros(len(parts), dtype=np.int64)
        #: The group of a block within one; −1 for blocks of whole groups.
        self._home = np.full(len(parts), -1)
        units_of_group = np.bincount(structure.group, minlength=len(structure.capacity))
        for index, part in enumerate(parts):
            where = slice(self._blocks.first[index], self._blocks.first[index + 1])
            units, self._unit[where] = np.unique(structure.unit[part], return_inverse=True)
            groups, own = np.unique(structure.group[units], return_inverse=True)
            self._group[where] = own[self._unit[where]]
            inside = np.bincount(own)
            self._room[index, : len(groups)] = np.minimum(structure.capacity[groups], inside)
            if inside[0] < units_of_group[groups[0]]:
                self._home[index], self._top[index] = groups[0], self._room[index, 0]

    def minimum(self, values: Float, z: Float, h: Wide, h_error: Wide) -> tuple[Any, Any]:
        """A lower bound of the least cost over all allowed v, whatever h is, and the size of its terms.

        Parameters
        ----------
        values : ndarray of shape (n, levels)
        z : ndarray of shape (n,)
        h, h_error : ndarray of longdouble, shape (n,)
            H(z − w), and by how much each entry may be off.
        """
        low = self._blocks.searched_minima(values, z, h, self._search, int(self._top.max(initial=0)) + 1)
        searched: Bool = np.asarray(np.isfinite(low).all(axis=1))
        single = np.ones(len(z), dtype=np.bool_)
        for part, done in zip(self._blocks.parts, searched, strict=True):
            single[part] = not done
        reach = np.abs(values[~single].astype(_LONG) - z[~single].astype(_LONG)[:, None]).max(axis=1, initial=0)
        charge = (2 * h_error[~single] + self._shift[~single] * reach) * reach
        total: Any = -charge.sum() * (1 + (len(z) + 16) * _UNIT_LONG)
        saving, size = np.zeros(len(z), dtype=_LONG), charge.sum()
        if single.any():
            drop, saving[single], terms = level_savings(
                values[single],
                z[single],
                h[single],
                h_error[single],
                self._blocks.diagonal[single],
                self._shift[single],
            )
            total, size = total + drop.sum(), size + terms
        # All searched blocks without a unit, or within the capacities of their own groups.
        total += low[searched, 0].sum()
        size += np.abs(low[searched]).max(axis=1, initial=0).sum()
        kept = self._kept(low, searched & (self._home >= 0), saving)
        return total - kept, size + np.abs(kept)

    def _search(self, scaled: Float, point: Float, slope: Float, centre: Float, tilt: Float, least: Float) -> None:
        """Least costs over the allowed points, for each number of units kept."""
        blocks = self._blocks
        least_costs_by_count(
            blocks.first, blocks.member, self._unit, self._group, self._room, self._top, blocks.blocks, blocks.factors,
            scaled, point, slope, MOST_NODES, BUDGET, centre, tilt, least,
        )  # fmt: skip

    def _kept(self, low: Wide, counted: Bool, saving: Wide) -> Any:
        """The largest total that keeping units saves, of blocks with counts and of inputs on their own."""
        structure, shared = self._structure, np.unique(self._home[counted])
        apart = np.isin(structure.group, shared)[structure.unit]
        total = best_sum_of_units(structure, np.where(apart, 0, saving))
        per_unit = np.zeros(len(structure.group), dtype=_LONG)
        np.add.at(per_unit, structure.unit, np.where(apart, saving, 0))
        for group in shared:
            capacity = int(structure.capacity[group])
            members = np.flatnonzero(counted & (self._home == group))
            saved = low[members, :1] - low[members, : int(self._top[members].max()) + 1]
            alone = np.sort(per_unit[structure.group == group])[::-1][:capacity]
            if (saved.size + len(alone)) * capacity > MOST_SHARED:
                total += _priced(saved, alone, capacity)
                continue
            tables = [row[: top + 1] for row, top in zip(saved, self._top[members], strict=True)]
            tables.append(np.concatenate([np.zeros(1, dtype=_LONG), np.cumsum(alone)]))
            total += best_spread(tables, capacity)
        return total


def _priced(saved: Wide, alone: Wide, capacity: int) -> Any:
    """What `best_spread` finds or a little more, from one price for each kept unit: any price gives an upper bound.

    Parameters
    ----------
    saved : ndarray of shape (blocks, counts)
        What blocks save by keeping at most 0, 1, … units.
    alone : ndarray
        What single units save.
    capacity : int
    """
    # The price at which the capacity is used: slopes of the blocks' concave hulls compete with single units.
    hull = saved.astype(np.float64)
    counts = hull.shape[1]
    for first in range(counts):
        for last in range(first + 2, counts):
            share = np.arange(1, last - first) / (last - first)
            chord = hull[:, first, None] * (1 - share) + hull[:, last, None] * share
            hull[:, first + 1 : last] = np.maximum(hull[:, first + 1 : last], chord)
    slopes = np.sort(np.concatenate([np.diff(hull, axis=1).ravel(), alone.astype(np.float64)]))[::-1]
    price = _LONG(max(slopes[capacity], 0.0) if capacity < len(slopes) else 0.0)
    most = (saved - price * np.arange(counts)).max(axis=1)
    return price * capacity + most.sum() + np.maximum(alone - price, 0).sum()


def _searchable(block: Int, structure: Structure) -> Int:
    """The blocks, and a block for each input of those that cut a unit, or a group without lying within it."""
    found = np.unique(block, return_inverse=True)[1].astype(np.int64)
    inputs = np.bincount(structure.unit, minlength=len(structure.group))
    units_of_group = np.bincount(structure.group, minlength=len(structure.capacity))
    order = np.argsort(found, kind="stable")
    for part in np.split(order, np.cumsum(np.bincount(found))[:-1]):
        units, own_inputs = np.unique(structure.unit[part], return_counts=True)
        groups, own_units = np.unique(structure.group[units], return_counts=True)
        whole_units = np.array_equal(own_inputs, inputs[units])
        whole_groups = np.array_equal(own_units, units_of_group[groups])
        if not whole_units or not (len(groups) == 1 or whole_groups):
            found[part] = len(block) + part
    return found
