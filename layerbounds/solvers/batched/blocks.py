"""Blocks of inputs for all rows: one block-diagonal minorant, and points that serve it (docs/batched.md).

The relaxation of `layerbounds.bounds.quantization.block_relaxation` with the matrix B shared by all rows: alternating
directions take one product an iteration for all rows, and a search of each block of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.newton_blocks import ascend_newton_blocks
from layerbounds.kernels.arithmetic import Arithmetic, Single
from layerbounds.kernels.batched.blocks import block_spreads, block_values, sweep_rows
from layerbounds.solvers.batched.group import in_chunks
from layerbounds.solvers.batched.lattice import LevelRows
from layerbounds.solvers.batched.points import OVER, Points

#: Nodes that the search of a block may take.
MOST_NODES = 1 << 14
#: Floor of the spreads relative to their mean.
FLOOR = 0.02
#: Fits of B, iterations for the sample after each, and weight of the new spreads.
FITS, SAMPLE_ITERATIONS, NEW = 8, 25, 0.5
#: Fits after which blocks must prove more by this share.
PATIENCE, WORTH = 5, 1e-3
#: Newton steps of a fit, its duality gap, the least part of the way to where it leads, and of the diagonal at first.
STEPS, GAP, LEAST_LENGTH, INSIDE = 6, 0.3, 0.2, 0.98


@dataclass(frozen=True, eq=False)
class Blocks:
    """A block-diagonal matrix below the Gram matrix, and what the kernels take of it.

    Attributes
    ----------
    members : list of ndarray of int64
        The inputs of each block.
    first, member : ndarray of int64
        The same in a row.
    block, factor : ndarray of shape (groups, m, m)
        The matrices, padded with zeros, and their upper triangular factors.
    kappa : ndarray of shape (groups,)
        Penalties.
    """

    members: list[Int]
    first: Int
    member: Int
    block: Float
    factor: Float
    kappa: Float

    def label(self) -> Int:
        """The block of each input."""
        label = np.empty(len(self.member), dtype=np.int64)
        label[self.member] = np.repeat(np.arange(len(self.members)), np.diff(self.first))
        return label

    def matrix(self) -> Float:
        """All blocks as one matrix of shape (n, n)."""
        n = len(self.member)
        full = np.zeros((n, n))
        for b, m in zip(self.block, self.members, strict=True):
            full[np.ix_(m, m)] = b[: len(m), : len(m)]
        return full

    def times(self, rows: Float, factor: Float | None = None) -> Float:
        """Rows times the matrix, each block times a factor."""
        block = self.block if factor is None else self.block * factor[:, None, None]
        gathered = self._gather(rows)
        return self._scatter(np.einsum("rgi,gij->rgj", gathered, block, optimize=True), rows.shape)

    def solved(self, rows: Float) -> Float:
        """Rows times the inverse matrix."""
        inside = np.arange(self.block.shape[1]) < np.diff(self.first)[:, None]
        padded = self.block + np.where(inside, 0.0, 1.0)[:, :, None] * np.eye(self.block.shape[1])
        inverse = np.linalg.inv(padded)
        return self._scatter(np.einsum("rgi,gij->rgj", self._gather(rows), inverse, optimize=True), rows.shape)

    @property
    def _inside(self) -> Int:
        return np.flatnonzero((np.arange(self.block.shape[1]) < np.diff(self.first)[:, None]).ravel())

    def _gather(self, rows: Float) -> Float:
        groups, widest = self.block.shape[:2]
        result = np.zeros((len(rows), groups * widest))
        result[:, self._inside] = rows[:, self.member]
        return result.reshape(len(rows), groups, widest)

    def _scatter(self, values: Float, shape: tuple[int, ...]) -> Float:
        result = np.empty(shape)
        result[:, self.member] = values.reshape(len(values), -1)[:, self._inside]
        return result


def pack_blocks(gram: Float, members: Sequence[Int], matrices: Sequence[Float]) -> Blocks | None:
    """Blocks ready for the kernels; None where one is not positive definite."""
    sizes = np.array([len(m) for m in members])
    widest = int(sizes.max())
    block, factor = np.zeros((2, len(members), widest, widest))
    kappa = np.empty(len(members))
    for g, (m, b) in enumerate(zip(members, matrices, strict=True)):
        size = len(m)
        block[g, :size, :size] = b
        try:
            factor[g, :size, :size] = np.linalg.cholesky(b).T
        except np.linalg.LinAlgError:
            return None
        # The geometric mean of what B_g and H_gg would ask for.
        inside = np.linalg.slogdet(gram[np.ix_(m, m)])[1] - np.linalg.slogdet(b)[1]
        kappa[g] = 2.0 * np.exp(min(max(inside / (2.0 * size), 0.0), 12.0))
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Blocks(list(members), first, np.concatenate(members).astype(np.int64), block, factor, kappa)


class BlockState:
    """Alternating directions for some rows; it goes on from one matrix B to the next.

    Parameters
    ----------
    levels : LevelRows
    e : ndarray of float32, shape (rows, n)
        Points of the diagonal relaxation.
    y : ndarray of float32, shape (rows, n)
        Their copies in the hull of the levels.
    blocks : Blocks
    threads : int
    """

    def __init__(self, levels: LevelRows, e: Single, y: Single, blocks: Blocks, threads: int) -> None:
        rows, n = e.shape
        groups, widest = blocks.block.shape[:2]
        self.levels, self.threads = levels, threads
        self.point = e.copy()
        nearest, self.y = _nearest(levels, y)
        self.corral = np.zeros((rows, groups, widest + 2, widest), dtype=np.int64)
        flat = self.corral[:, :, 0, :].reshape(rows, -1)
        flat[:, blocks._inside] = nearest[:, blocks.member]
        self.corral[:, :, 0, :] = flat.reshape(rows, groups, widest)
        self.alpha = np.zeros((rows, groups, widest + 2))
        self.alpha[:, :, 0] = 1.0
        self.size = np.ones((rows, groups), dtype=np.int64)
        self.u = np.zeros((rows, n))
        self.right = np.zeros((rows, n), dtype=np.float32)
        self.value = np.empty(rows)

    def turn(self, blocks: Blocks, gram_point: Float) -> None:
        """Take a new matrix; ``gram_point`` is the Gram matrix times the points."""
        point = self.point.astype(np.float64)
        slope = gram_point - blocks.times(point)
        penalty = np.repeat(blocks.kappa, np.diff(blocks.first))
        kappa = np.empty(len(penalty))
        kappa[blocks.member] = penalty
        self.u = -blocks.solved(slope) / kappa
        self.right = (blocks.times(self.y, blocks.kappa) + slope).astype(np.float32)

    def move(self, blocks: Blocks) -> None:
        """One iteration but for the product."""

        def work(rows: slice) -> None:
            part = self.levels.part(rows)
            sweep_rows(
                blocks.first, blocks.member, blocks.block, blocks.factor, blocks.kappa, float(OVER), MOST_NODES,
                part.origin, part.scale, part.codes, part.which, self.point[rows], self.y[rows], self.u[rows],
                self.corral[rows], self.alpha[rows], self.size[rows], self.right[rows],
            )  # fmt: skip

        in_chunks(len(self.point), self.threads, work)

    def evaluate(self, blocks: Blocks) -> Float:
        """The bounds at the points, roughly."""

        def work(rows: slice) -> None:
            part = self.levels.part(rows)
            block_values(
                blocks.first, blocks.member, blocks.block, blocks.factor, blocks.kappa, part.origin,
                part.scale, part.codes, part.which, self.point[rows], self.right[rows], MOST_NODES, self.value[rows],
            )  # fmt: skip

        in_chunks(len(self.point), self.threads, work)
        return self.value

    def spreads(self, blocks: Blocks) -> list[Float]:
        """What the bound gains from each block, in the mean over the rows."""
        total = np.zeros_like(blocks.block)
        part = self.levels
        block_spreads(
            blocks.first, blocks.member, part.origin, part.scale, part.codes, part.which, self.point, self.corral,
            self.alpha, self.size, part.share, total,
        )  # fmt: skip
        return [a[: len(m), : len(m)] / len(self.point) for a, m in zip(total, blocks.members, strict=True)]


def _nearest(levels: LevelRows, y: Single) -> tuple[Int, Float]:
    """Indices of the levels nearest to deviations, and their deviations."""
    position = y / levels.scale + levels.origin
    which = np.broadcast_to(levels.which, y.shape)
    index = np.zeros(y.shape, dtype=np.int64)
    for k, codes in enumerate(levels.codes.astype(np.float64)):
        middle = 0.5 * (codes[1:] + codes[:-1])
        index = np.where(which == k, np.searchsorted(middle, position), index)
    return index, levels.scale.astype(np.float64) * (levels.codes.astype(np.float64)[which, index] - levels.origin)


def spread_inverse(gram: Float, blocks: Blocks, arithmetic: Arithmetic) -> object | None:
    """The inverse of H + Σ (κ_g − 1) B_g, the matrix of the smooth part, where the arithmetic is."""
    matrix = gram.copy()
    for b, m, kappa in zip(blocks.block, blocks.members, blocks.kappa, strict=True):
        matrix[np.ix_(m, m)] += (kappa - 1.0) * b[: len(m), : len(m)]
    return arithmetic.inverse(arithmetic.put(matrix))


def iterate(
    state: BlockState,
    gram: Float,
    blocks: Blocks,
    arithmetic: Arithmetic,
    count: int,
    cycle: int,
    stop: Callable[[], bool],
) -> tuple[Single, Float]:
    """Go on for some iterations; the best points met and their bounds."""
    inverse = spread_inverse(gram, blocks, arithmetic)
    best, value = state.point.copy(), np.full(len(state.point), -np.inf)
    if inverse is None:
        return best, value
    state.turn(blocks, state.point.astype(np.float64) @ gram)
    total = -np.inf
    for iteration in range(1, count + 1):
        state.point = arithmetic.product(state.right, inverse)
        last = iteration == count or stop()
        if iteration % cycle == 0 or last:
            found = state.evaluate(blocks)
            better = (found > value) & np.isfinite(state.point).all(axis=1)
            value[better], best[better] = found[better], state.point[better]
            now = float(value @ state.levels.share)
            gain, total = now - total, now
            last |= gain <= 1e-3 * abs(total)
        if last:
            break
        state.move(blocks)
    return best, value


def lifted(spreads: Sequence[Float]) -> list[Float]:
    """Every direction counts a little."""
    mean = float(np.mean(np.concatenate([np.diag(a) for a in spreads])))
    return [a + (FLOOR * mean + np.finfo(np.float64).tiny) * np.eye(len(a)) for a in spreads]


def fit_blocks(
    gram: Float,
    members: Sequence[Int],
    levels: LevelRows,
    points: Points,
    d: Float,
    spreads: Sequence[Float],
    arithmetic: Arithmetic,
    threads: int,
    stop: Callable[[], bool],
) -> Blocks | None:
    """The matrix that is best for a sample of rows, each of which may keep the bound of the diagonal.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite.
    members : sequence of ndarray of int64
        The inputs of each block.
    levels : LevelRows
        Of the sample.
    points : Points
        Of the sample, for the diagonal.
    d : ndarray of shape (n,)
        The diagonal to start from.
    spreads : sequence of ndarray
        What the bound gains from each block at first.

    Returns
    -------
    Blocks or None
        None where blocks prove no more, or a factorization breaks down.
    """
    matrices: Sequence[Float] = [INSIDE * np.diag(d[m]) for m in members]
    most = float(points.value @ levels.share)
    enough = most + WORTH * abs(most)
    best: Blocks | None = None
    state: BlockState | None = None
    for fit in range(FITS + 1):
        if stop():
            break
        blocks = pack_blocks(gram, members, matrices)
        if blocks is None:
            break
        if state is None:
            state = BlockState(levels, points.e, points.y, blocks, threads)
        value = iterate(state, gram, blocks, arithmetic, SAMPLE_ITERATIONS, SAMPLE_ITERATIONS, stop)[1]
        total = float(np.maximum(value, points.value) @ levels.share)
        if total > most:
            best, most = blocks, total
        if fit == FITS or (fit >= PATIENCE and most < enough):
            break
        spreads = [(1 - NEW) * old + NEW * new for old, new in zip(spreads, state.spreads(blocks), strict=True)]
        aim = ascend_newton_blocks(gram, members, lifted(spreads), matrices, steps=STEPS, relative_gap=GAP, stop=stop)
        if aim is None:
            break
        # The bound is concave in B, and the maximiser of its tangent may be far beyond its own: part of the way.
        length = max(2.0 / (fit + 4), LEAST_LENGTH)
        matrices = [(1 - length) * old + length * new for old, new in zip(matrices, aim, strict=True)]
    return best if most >= enough else None
