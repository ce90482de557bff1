"""Quantization of all rows of a layer: one minorant, points by matrix products, weights by several heuristics."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.proofs import BlockDual, DualPoint, RawSolve
from layerbounds.solvers.batched.blocks import Blocks, BlockState, fit_blocks, iterate
from layerbounds.solvers.batched.diagonal import MINORANT_LATE, fit_diagonal, lifted, sample_of
from layerbounds.solvers.batched.group import Group
from layerbounds.solvers.batched.incumbents import round_allowed
from layerbounds.solvers.batched.lattice import LevelRows, level_rows
from layerbounds.solvers.batched.points import Points, mean_spread
from layerbounds.solvers.batched.preparation import prepare_gram

#: Iterations for all rows, and between two evaluations.
BLOCK_ITERATIONS, BLOCK_CYCLE = 30, 10
#: Inputs of a block by default, in layers of up to so many inputs and weights.
BLOCK_INPUTS, BLOCK_MOST, BLOCK_WEIGHTS = 9, 1024, 1 << 20
#: Share of the time that is left when blocks end: for weights.
BLOCKS_LATE = 0.3
#: Bytes of the blocks' states that are in memory at once.
STATE_BYTES = 1 << 28


class LevelsEngine:
    """Every weight is a level of its grid."""

    requirements = frozenset({"uniform grids", "codebook grids"})

    def solve(self, group: Group) -> list[RawSolve]:
        """A dual point and weights for every row."""
        targets = group.targets
        rows = len(targets)
        levels = level_rows(group.allowed, targets)
        group.report("minorant")
        prepared = prepare_gram(group.gram, group.arithmetic, group.threads, lambda: group.late(MINORANT_LATE))
        z, duals = targets, _duals(None, None, rows)
        if prepared is not None and np.all(prepared.d > 0):
            gram, unit = prepared.gram, prepared.unit
            found = fit_diagonal(group, prepared, levels)
            if found is not None:
                d, points = found
                z = targets + levels.unit[:, None] * points.e.astype(np.float64)
                duals = _duals(z, unit * d, rows)
                blocks = self._blocks(group, gram, levels, d, points)
                if blocks is not None:
                    duals = self._better(group, gram, unit, levels, duals, points, blocks)
                    z = np.stack([dual.z for dual in duals if dual is not None])
        weights = _weights(group, z)
        status = group.status()
        return [RawSolve(weights[r], status, dual=duals[r]) for r in range(rows)]

    def _blocks(self, group: Group, gram: Float, levels: LevelRows, d: Float, points: Points) -> Blocks | None:
        """A block-diagonal matrix that is fitted to a sample of the rows; None where it is not worth its time."""
        size = block_size(levels.rows, len(gram), group.control.options["blocks"])
        if size < 2 or levels.codes.shape[1] < 2 or group.late(BLOCKS_LATE):
            return None
        group.report("blocks")
        members = make_clusters(gram, size, np.zeros(len(gram), dtype=np.int64), np.arange(len(gram)))
        if members is None:
            return None
        # Searches go from the last input to the first and take fewest nodes if the last ones weigh most.
        members = [m[np.argsort(d[m])] for m in members]
        chosen = sample_of(levels.rows)
        sample = levels.part(chosen)
        part = Points(points.e[chosen], points.value[chosen], points.y[chosen])
        spread = lifted(mean_spread(part, sample), np.diag(gram))
        return fit_blocks(
            gram, members, sample, part, d, [np.diag(spread[m]) for m in members], group.arithmetic, group.threads,
            lambda: group.late(BLOCKS_LATE),
        )  # fmt: skip

    def _better(
        self,
        group: Group,
        gram: Float,
        unit: float,
        levels: LevelRows,
        duals: list[DualPoint | BlockDual | None],
        points: Points,
        blocks: Blocks,
    ) -> list[DualPoint | BlockDual | None]:
        """The dual points of the rows that blocks bound better."""
        groups, widest = blocks.block.shape[:2]
        count = max(STATE_BYTES // (8 * groups * (widest + 2) * (widest + 1)), 1)
        matrix, label = unit * blocks.matrix(), blocks.label()
        for begin in range(0, levels.rows, count):
            group.report(f"blocks of rows {begin} of {levels.rows}")
            rows = slice(begin, min(begin + count, levels.rows))
            state = BlockState(levels.part(rows), points.e[rows], points.y[rows], blocks, group.threads)
            e, value = iterate(
                state, gram, blocks, group.arithmetic, BLOCK_ITERATIONS, BLOCK_CYCLE, lambda: group.late(BLOCKS_LATE)
            )
            for k in np.flatnonzero(value > points.value[rows]):
                r = begin + int(k)
                duals[r] = BlockDual(group.targets[r] + levels.unit[r] * e[k].astype(np.float64), label, matrix)
        return duals


def _weights(group: Group, z: Float) -> Float:
    """Good weights for every row."""
    return round_allowed(
        group.gram,
        group.targets,
        group.allowed,
        points=z,
        warm_starts=group.warm_starts,
        threads=group.threads,
        seed=group.control.seed,
        effort=group.control.options["effort"],
        remaining=group.remaining,
        report=group.report,
    )


def block_size(rows: int, n: int, option: str) -> int:
    """Inputs of a block; each weight of a layer costs a search of its block in every iteration."""
    size = int(option) if option != "auto" else BLOCK_INPUTS if n <= BLOCK_MOST and rows * n <= BLOCK_WEIGHTS else 0
    return min(size, n)


def _duals(z: Float | None, d: Float | None, rows: int) -> list[DualPoint | BlockDual | None]:
    return [None if z is None or d is None else DualPoint(z[r], d) for r in range(rows)]
