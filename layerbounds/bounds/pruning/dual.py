"""Lower bounds of pruning problems, derived from points and block-diagonal minorants (docs/pruning-bounds.md).

For any z and any block-diagonal B ⪯ H, with h = H(z − w) and c = Bz − h,

    f(v) ≥ f(z) + Σ_blocks min_v [2hᵀ(v − z) + (v − z)ᵀB(v − z)],

and what a block saves by keeping the inputs S beside dropping all of it is c_Sᵀ B_SS⁻¹ c_S with refit, and a number
for each S without. Rows that have one mask are bounded together: savings are sums over the rows, each of which has a
point, and may have a matrix, of its own (docs/shared-bounds.md). Every rounding error is charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, is_minorant
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, shrink_until
from layerbounds.bounds.objective import SLOPE_UNDERFLOW, UNDERFLOW, entry_sizes
from layerbounds.bounds.pruning.savings import (
    Block,
    Wide,
    best_of_blocks,
    best_sum_of_units,
    block_savings,
    lay_out,
    single_savings,
    unit_roundoff,
)
from layerbounds.problems.patterns import Structure

#: Rows are bounded in extended precision up to so many multiplications, a second's, and in double precision above.
EXTENDED_WORK = 1e8
#: Rows that are bounded at a time: a dozen arrays of so many rows exist at once.
CHUNK = 256

_LONG = np.longdouble


def is_block_minorant(gram: Float, matrix: Float) -> bool:
    """Prove matrix ⪯ gram."""
    return is_positive_semidefinite(gram - matrix)


def certified_block_minorant(gram: Float, matrix: Float) -> Float:
    """Shrink a positive semidefinite matrix until it is a proven minorant; zeros in the worst case."""
    return shrink_until(lambda candidate: is_block_minorant(gram, candidate), matrix)


def pruning_bound(
    gram: Float, target: Float, original: Float | None, structure: Structure, z: Float, block: Int, matrix: Float
) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over the weights that fit a pattern: `shared_bound` of one row."""
    row_class = np.zeros(1, dtype=np.int64)
    originals = None if original is None else original[None]
    return shared_bound(gram, target[None], originals, structure, z[None], block, matrix[None], row_class)


def shared_bound(
    gram: Float,
    targets: Float,
    originals: Float | None,
    structure: Structure,
    points: Float,
    block: Int,
    matrices: Float,
    row_class: Int,
) -> float:
    """Lower bound on Σ (v − w)ᵀH(v − w) over rows v whose nonzeros fit one mask of a pattern.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    targets : ndarray of shape (rows, n)
    originals : ndarray of shape (rows, n) or None
        Values of kept weights; None: any (refit).
    structure : Structure
    points : ndarray of shape (rows, n)
    block : ndarray of int64, shape (n,)
    matrices : ndarray of shape (classes, n, n)
    row_class : ndarray of int64, shape (rows,)

    Returns
    -------
    float
        −inf where no minorant is proven, or with refit where it is not positive definite on every block.
    """
    n = len(gram)
    single = len(np.unique(block)) == n
    blocks = None if single else lay_out(structure, block, originals is None)
    if not single and blocks is None:
        return -np.inf
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _bound(_Rows(gram, targets, originals, points), structure, block, matrices, row_class, blocks)


def _bound(
    rows: _Rows, structure: Structure, block: Int, matrices: Float, row_class: Int, blocks: list[Block] | None
) -> float:
    """The same for the given layout of the blocks; None for blocks of single inputs."""
    savings: list[Any] = [0] * (1 if blocks is None else len(blocks))
    for number in np.unique(row_class):
        matrix = _proven(rows.gram, matrices[number], block)
        if matrix is None:
            return -np.inf
        for h, h_error, z, original in rows.parts(np.flatnonzero(row_class == number)):
            if blocks is None:
                low, saved, size = single_savings(h, h_error, matrix, z, original)
                rows.add(low, size)
                savings[0] = savings[0] + saved
                continue
            for index, part in enumerate(blocks):
                m = part.members
                kept_original = None if original is None else original[:, m]
                b = matrix[np.ix_(m, m)]
                low, saved, size = block_savings(part, b, h[:, m], h_error[:, m], z[:, m], kept_original)
                rows.add(low, size)
                savings[index] = savings[index] + saved
    if blocks is None:
        kept = best_sum_of_units(structure, savings[0]) if np.all(np.isfinite(savings[0])) else np.inf
    else:
        kept = best_of_blocks(structure, blocks, savings) * (1 + 4 * len(block) * rows.eps)
    return rows.bound(kept)


def diagonal_bound(
    gram: Float, target: Float, original: Float | None, structure: Structure, z: Float, d: Float
) -> float:
    """The same for one row from a diagonal of shape (n,)."""
    return pruning_bound(gram, target, original, structure, z, np.arange(len(d)), d)


def _proven(gram: Float, matrix: Float, block: Int) -> Float | None:
    """A proven minorant: of shape (n,) for a diagonal, (n, n) for blocks; None where there is none."""
    if len(np.unique(block)) == len(block):
        d = certified_minorant(gram, matrix if matrix.ndim == 1 else np.diag(matrix))
        # A singular matrix as stored may have negative eigenvalues of rounding size: nothing is proven about it.
        return d if np.any(d) or is_minorant(gram, d) else None
    matrix = np.where(block[:, None] == block[None, :], 0.5 * (matrix + matrix.T), 0.0)
    matrix = certified_block_minorant(gram, matrix)
    return matrix if np.any(matrix) or is_block_minorant(gram, matrix) else None


class _Rows:
    """Σ_r f_r(z_r) and what is added to it, in the precision that the size of the problem allows."""

    def __init__(self, gram: Float, targets: Float, originals: Float | None, points: Float) -> None:
        self.targets, self.originals, self.points = targets, originals, points
        self.terms = len(gram) + len(targets)
        self.extended = len(gram) ** 2 * len(targets) <= EXTENDED_WORK
        self.gram, self.wide = gram, gram.astype(_LONG) if self.extended else gram
        self.norm = None if self.extended else entry_sizes(gram)
        self.eps = unit_roundoff(self.wide)
        self.value, self.magnitude = _LONG(0), _LONG(0)

    def parts(self, chosen: Int) -> Iterator[tuple[Wide, Wide, Wide, Wide | None]]:
        """h, its error, z and the original weights of some rows after the others, whose f(z) are added."""
        real = self.wide.dtype
        for begin in range(0, len(chosen), CHUNK):
            part = chosen[begin : begin + CHUNK]
            z: Wide = self.points[part].astype(real)
            deviation: Wide = z - self.targets[part]
            value, h, h_error, magnitude = _values_at(self.wide, deviation, self.norm)
            self.add(value, magnitude)
            yield h, h_error, z, None if self.originals is None else self.originals[part].astype(real)

    def add(self, value: Any, size: Any) -> None:
        """Add a term, or a sum of terms whose sizes add up to ``size``."""
        self.value, self.magnitude = self.value + value, self.magnitude + size

    def bound(self, kept: Any) -> float:
        """The bound, from the most that can be saved."""
        underflow = 0.0 if self.extended else UNDERFLOW
        return rounded_down(self.value - underflow, kept, self.magnitude, self.terms, self.eps)


def value_at(gram: Float, target: Float, z: Float) -> tuple[Any, Wide, Wide, Any]:
    """f(z), h = H(z − w), the error of h, and the size of the terms of f(z), in extended precision."""
    return _values_at(gram.astype(_LONG), z.astype(_LONG) - target.astype(_LONG), None)


def _values_at(gram: Wide, deviation: Wide, norm: Float | None) -> tuple[Any, Wide, Wide, Any]:
    """The same, summed over the rows; with numbers |H_ij| ≤ ν_i ν_j the error is that of no second product."""
    h = deviation @ gram
    size = np.abs(deviation)
    spread = size @ np.abs(gram) if norm is None else (size @ norm)[..., None] * norm
    # Charged twice as much as the a-priori bound, here and below.
    h_error = 2 * (len(gram) + 4) * unit_roundoff(gram) * spread
    if norm is not None:
        h_error += SLOPE_UNDERFLOW * np.any(deviation, axis=-1, keepdims=True)
    return np.sum(deviation * h), h, h_error, np.sum(size * spread)


def rounded_down(value: Any, kept: Any, magnitude: Any, terms: int, eps: float = float(np.finfo(_LONG).eps)) -> float:
    """The bound less what rounding can have added to it."""
    bound = float(value - kept - 4 * (terms + 16) * eps * (magnitude + np.abs(kept)))
    return -np.inf if np.isnan(bound) else float(np.nextafter(bound, -np.inf))
