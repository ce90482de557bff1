"""Lower bounds of quantization problems, derived from a point and a block-diagonal matrix (docs/block-relaxation.md).

For any z and any block-diagonal B ⪯ H, with h = H(z − w),

    f(q) ≥ f(z) + Σ_g min over the block's level points q_g of 2h_gᵀ(q − z)_g + (q − z)_gᵀB_g(q − z)_g.

For uniform grids integer forms of the codes may join the blocks (docs/bounds.md). That the matrix is below H is proven
by a Cholesky factorization. Each block is searched in float64 around a point c of its hull; what the search may miss is
bounded and charged. Everything else is extended precision with a-priori error bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.bounds.objective import CHUNK
from layerbounds.bounds.pruning.dual import certified_block_minorant
from layerbounds.bounds.quantization.form_terms import Lattice, Wide, join_forms
from layerbounds.kernels.factorization import cholesky, gamma, symmetric_inverse
from layerbounds.kernels.quantization.block_relaxation import least_costs
from layerbounds.proofs import FormTerms

#: Larger blocks, those that are not positive definite, and those whose search takes more nodes get a diagonal each.
MOST_MEMBERS, MOST_NODES, BUDGET = 32, 1 << 20, 1 << 26
#: More than underflow can do to a block whose entries and levels are about 1.
UNDERFLOW = 1e-290

#: A search of all blocks; see `PreparedBlocks.searched_minima`.
Search = Callable[[Float, Float, Float, Float, Float, Float], None]

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def proven_block_minorant(gram: Float, matrix: Float) -> tuple[Float, Float] | None:
    """A multiple B' of B and a shift e ≥ 0 with B' ⪯ gram + diag(e) proven; None where nothing can be.

    Positive definite matrices need no shift, at most a slightly smaller matrix.
    """
    shifted = semidefinite_shift(gram)
    return None if shifted is None else (certified_block_minorant(shifted[0], matrix), shifted[1])


def block_dual_bound(
    gram: Float,
    target: Float,
    levels: Float,
    z: Float,
    block: Int,
    matrix: Float,
    lattice: Lattice | None = None,
    split: FormTerms | None = None,
) -> float:
    """Lower bound on (q − w)ᵀH(q − w) over the grid, from blocks alone or with split cuts.

    With integer forms, columns u_j = v_j/scale, weights g ≥ 0 and multipliers ρ, blocks have the slopes 2(h − Uρ), and

        Σ_j min over integers t of 2ρ_j(t − y_j) + g_j(t − y_j)²

    is added, y_j the value of form j at z, once B + U diag(g) Uᵀ ⪯ H + diag(e) is proven.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
        w.
    levels : ndarray of shape (n, levels)
        Sorted.
    z : ndarray of shape (n,)
        Any finite point.
    block : ndarray of int64, shape (n,)
        The block of each input.
    matrix : ndarray of shape (n, n)
        Any finite matrix; entries between different blocks are ignored.
    lattice : Lattice, optional
        Where the levels lie; needed with ``split``.
    split : FormTerms, optional
        Forms within blocks or across them.

    Returns
    -------
    float
        0 where no minorant is proven.
    """
    n = len(target)
    matrix = np.where(block[:, None] == block[None, :], 0.5 * matrix + 0.5 * matrix.T, 0.0)
    wide = gram.astype(_LONG)
    deviation = z.astype(_LONG) - target.astype(_LONG)
    h = wide @ deviation
    spread = np.abs(wide) @ np.abs(deviation)
    h_error: Any = (n + 4) * _UNIT_LONG * spread
    value: Any = deviation @ h
    magnitude: Any = np.abs(deviation) @ spread
    cuts = 0
    if split is None:
        proven = proven_block_minorant(gram, matrix)
    else:
        assert lattice is not None
        joined = join_forms(gram, levels, lattice, split, matrix, z, h, h_error)
        if joined is None:
            return 0.0
        proven, terms, size, h, h_error = joined
        value += terms
        magnitude += size
        cuts = len(split.weights)
    if proven is None:
        return 0.0
    matrix, shift = proven
    # What each input is charged whatever its level: the rounding of h, and the shift.
    reach = np.abs(levels.astype(_LONG) - z.astype(_LONG)[:, None]).max(axis=1)
    charge = 2 * h_error * reach + shift.astype(_LONG) * reach**2
    value -= charge.sum() * (1 + (n + 16) * _UNIT_LONG)
    low, size = PreparedBlocks(matrix, block).minimum(levels, z, h)
    bound = float(value + low - 4 * (n + cuts + 16) * _UNIT_LONG * (magnitude + size))
    return float(np.nextafter(bound, -np.inf)) if np.isfinite(bound) else 0.0


def search_order(block: Float) -> Int:
    """Order in which a search from the last input to the first takes fewest nodes: largest Schur complements last.

    The V-BLAST order (Wolniansky et al. 1998), which may differ in nodes from others by orders of magnitude.
    """
    size = len(block)
    order = np.arange(size)
    scale = float(np.abs(block).max(initial=0.0))
    factor = cholesky(np.asfortranarray(block / scale)) if scale > 0.0 else None
    if factor is None:
        return order
    covariance = symmetric_inverse(factor)
    free = np.ones(size, dtype=np.bool_)
    for position in range(size - 1, -1, -1):
        variance = np.where(free, np.maximum(np.diag(covariance), np.finfo(np.float64).tiny), np.inf)
        pick = int(np.argmin(variance))
        order[position] = pick
        free[pick] = False
        with np.errstate(over="ignore", invalid="ignore"):
            # Of a nearly singular block; any order will do.
            covariance -= np.outer(covariance[:, pick], covariance[:, pick] / variance[pick])
    return order


class PreparedBlocks:
    """A block-diagonal matrix, made ready for the least costs of level points.

    A block's cost is, with e = q − c and t = B(c − z) + h,

        (c − z)ᵀ(t + h) + 2tᵀe + eᵀBe,

    and ‖Re‖² + 2t'ᵀe is searched for a Cholesky factor RᵀR ≈ B and a rounded t'. The search is exact for what it
    computes: it visits or prunes every point, prunes only by nonnegative terms, and returns the least of what it
    computed. So its error is that of one computed cost, and that of the turning points by which siblings are put on
    two sides. All is in units in which the block's entries and levels are about 1 (powers of two).

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        Symmetric, zero between different blocks.
    block : ndarray of int64, shape (n,)

    Attributes
    ----------
    parts : list of ndarray
        Inputs of the blocks that are searched, in the order of the search.
    first, member : ndarray of int64
        Block g has the inputs ``member[first[g]:first[g + 1]]``.
    blocks, factors : ndarray of shape (parts, m, m)
        In the units of the search, padded.
    """

    def __init__(self, matrix: Float, block: Int) -> None:
        self._matrix = matrix
        members = [np.flatnonzero(block == g) for g in np.unique(block)]
        parts = [m[search_order(matrix[np.ix_(m, m)])] for m in members if 1 < len(m) <= MOST_MEMBERS]
        widest = max((len(m) for m in parts), default=0)
        factors, squares, entries, kept = [], [], [], []
        for m in parts:
            b = matrix[np.ix_(m, m)]
            top = float(np.diag(b).max())
            if not top > 0:
                continue
            entry = int(np.frexp(top)[1])
            square = np.ldexp(b.astype(_LONG), -entry)
            found = cholesky(np.asfortranarray(square.astype(np.float64)))
            if found is None:
                continue
            factor, padded = np.zeros((widest, widest)), np.zeros((widest, widest), dtype=_LONG)
            factor[: len(m), : len(m)], padded[: len(m), : len(m)] = found.T, square
            factors.append(factor)
            squares.append(padded)
            entries.append(entry)
            kept.append(m)
        self.parts = kept
        self._entry = np.array(entries, dtype=np.int64)
        sizes = np.array([len(m) for m in kept], dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.member = np.concatenate([np.zeros(0, dtype=np.int64), *kept]).astype(np.int64)
        self._inside = np.arange(widest) < sizes[:, None]
        if not kept:
            return
        self._square, self.factors = np.stack(squares), np.stack(factors)
        self.blocks = self._square.astype(np.float64)
        self._size = np.abs(self._square)
        self._factor_size = np.abs(self.factors).astype(_LONG)
        transposed = self.factors.transpose(0, 2, 1).astype(_LONG)
        self._unit = 4 * (widest + 8) * _UNIT_LONG
        #: By how much RᵀR may differ from B.
        self._away = np.abs(self._square - transposed @ self.factors.astype(_LONG))
        self._away += self._unit * (np.abs(transposed) @ self._factor_size)
        self._pivot = np.where(self._inside, np.einsum("gii->gi", self.factors), 1.0).astype(_LONG)

    def minimum(self, levels: Float, z: Float, h: Wide) -> tuple[Any, Any]:
        """A lower bound of Σ min over the level points of 2hᵀ(q − z) + (q − z)ᵀB(q − z), and the size of its terms.

        Parameters
        ----------
        levels : ndarray of shape (n, levels)
            Sorted.
        z : ndarray of shape (n,)
        h : ndarray of longdouble, shape (n,)
        """
        low = self.searched_minima(levels, z, h, self._search)[:, 0]
        searched = np.isfinite(low)
        single = np.ones(len(z), dtype=np.bool_)
        for m, done in zip(self.parts, searched, strict=True):
            single[m] = not done
        if not single.any():
            return low.sum(), np.abs(low).sum()
        terms, size = _single_minima(levels, z, h, self.diagonal, single)
        return low[searched].sum() + terms.sum(), np.abs(low[searched]).sum() + size

    @cached_property
    def diagonal(self) -> Wide:
        """A diagonal below the matrix, shape (n,): less the absolute values beside it (Gershgorin)."""
        n = len(self._matrix)
        diagonal = np.diag(self._matrix).astype(_LONG)
        total = np.zeros(n, dtype=_LONG)
        for begin in range(0, n, CHUNK):
            rows = np.abs(self._matrix[begin : begin + CHUNK].astype(_LONG))
            total[begin : begin + CHUNK] = rows.sum(axis=1)
        beside = total - np.abs(diagonal)
        return np.asarray(diagonal - beside - np.where(beside > 0, 2 * (n + 8) * _UNIT_LONG * total, 0))

    def _search(self, scaled: Float, point: Float, slope: Float, centre: Float, tilt: Float, least: Float) -> None:
        """Least costs over all level points."""
        full = np.full(len(point), scaled.shape[1], dtype=np.int64)
        least_costs(
            self.first, self.member, self.blocks, self.factors, scaled, full, point, slope, MOST_NODES, BUDGET, centre,
            tilt, least.reshape(-1),
        )  # fmt: skip

    def searched_minima(self, levels: Float, z: Float, h: Wide, search: Search, counts: int = 1) -> Wide:
        """Lower bounds of the blocks' least costs, not finite where a block could not be searched.

        Parameters
        ----------
        levels, z, h
            As of `minimum`.
        search : callable
            From levels, z and h in the units of the search. It fills ``centre`` and ``tilt`` of `settle`'s points, and
            least values of ‖R(q − c)‖² + Σ [2 t_i (q_i − c_i) − its least] over sets of level points of each block.
        counts : int
            Number of sets.

        Returns
        -------
        ndarray of longdouble, shape (blocks, counts)
        """
        if not self.parts:
            return np.zeros((0, counts), dtype=_LONG)
        member, inside, widest, unit = self.member, self._inside, self._inside.shape[1], self._unit
        top = np.maximum(np.abs(levels[:, 0]), np.abs(levels[:, -1]))
        length = np.frexp(np.maximum.reduceat(top[member], self.first[:-1]))[1].astype(np.int64)
        lengths, exponent = np.zeros(len(z), dtype=np.int64), np.zeros(len(z), dtype=np.int64)
        lengths[member] = np.repeat(length, np.diff(self.first))
        exponent[member] = np.repeat(self._entry, np.diff(self.first))
        scaled = np.ldexp(levels, -lengths[:, None])
        point = np.ldexp(z.astype(_LONG), -lengths)
        slope = np.ldexp(h, -lengths - exponent)
        centre, tilt, least = np.zeros(len(z)), np.zeros(len(z)), np.empty((len(self.parts), counts))
        search(scaled, point.astype(np.float64), slope.astype(np.float64), centre, tilt, least)

        def padded(values: Wide) -> Wide:
            result = np.zeros(inside.shape, dtype=_LONG)
            result[inside] = values[member]
            return result

        c, side, slopes = padded(centre.astype(_LONG)), padded(tilt.astype(_LONG)), padded(slope)
        move = c - padded(point)
        below, above = padded(scaled[:, 0] - centre.astype(_LONG)), padded(scaled[:, -1] - centre.astype(_LONG))
        reach = np.maximum(np.abs(below), np.abs(above))
        weight = (self._size @ np.abs(move)[..., None])[..., 0] + np.abs(slopes)
        exact = (self._square @ move[..., None])[..., 0] + slopes
        constant = (move * (exact + slopes)).sum(axis=1)
        charge = unit * (2 * np.abs(move) * (weight + np.abs(slopes))).sum(axis=1)
        charge += (2 * (np.abs(exact - side) + unit * weight) * reach).sum(axis=1)
        charge += (reach * (self._away @ reach[..., None])[..., 0]).sum(axis=1)
        ends = 2 * np.minimum(side * below, side * above)
        partial = (self._factor_size @ reach[..., None])[..., 0] + self._pivot * (reach + np.abs(c))
        turn = gamma(2 * widest + 32) * (partial + np.abs(side) / self._pivot)
        rounding = gamma(4 * widest + 64) * (partial**2 + 8 * np.abs(side) * (reach + np.abs(c)))
        charge += 2 * np.where(inside, rounding + turn**2, 0).sum(axis=1)
        charge += UNDERFLOW * (1 + (np.abs(side) * inside).sum(axis=1))
        with np.errstate(invalid="ignore"):
            found_low = least.astype(_LONG) + (constant + ends.sum(axis=1) - charge * (1 + 1e-6))[:, None]
            found_low -= unit * ((np.abs(constant) + np.abs(ends).sum(axis=1))[:, None] + np.abs(least))
        return np.asarray(np.ldexp(found_low, (self._entry + 2 * length)[:, None]))


def _single_minima(levels: Float, z: Float, h: Wide, d: Wide, chosen: Bool) -> tuple[Wide, Any]:
    """Least terms of inputs on their own, and the size of what was summed."""
    d = d[chosen]
    step = levels[chosen].astype(_LONG) - z[chosen].astype(_LONG)[:, None]
    linear, square = 2 * h[chosen, None] * step, d[:, None] * step**2
    least = (linear + square).min(axis=1, initial=np.inf)
    return least, (np.abs(linear) + np.abs(square)).max(axis=1, initial=0).sum()
