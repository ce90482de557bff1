"""Points of the relaxation for all rows: alternating directions with one matrix product an iteration.

With M = H − D and e = z − w the bound at its best is the least of eᵀMe + Σ d_i env_i(e_i), env_i the interpolation of
the squares of the deviations at the levels. With the splitting y = e and the penalty κ_i d_i a step is

    e = (κd ∘ (y − u)) A⁻¹,  A = M + diag(κd),

for all rows one product, and one rounding per weight (Boyd et al., Foundations and Trends in Machine Learning 3, 2011).
κ_i = 2 √(H_ii/d_i), the geometric mean of H_ii and d_i as the penalty, needs a twentieth of the iterations of a
constant (docs/batched.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.arithmetic import Arithmetic, Single
from layerbounds.kernels.batched.points import advance, spreads, values
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.solvers.batched.group import in_chunks
from layerbounds.solvers.batched.lattice import LevelRows

#: Over-relaxation.
OVER = np.float32(1.6)
#: Iterations between two evaluations, and the relative gain between them below which they end.
CYCLE, PROGRESS = 5, 1e-3
#: Rows of a thread.
LEAST_ROWS = 8


@dataclass(frozen=True, eq=False)
class Penalty:
    """κ, κd and the inverse of M + diag(κd).

    Attributes
    ----------
    kappa, weight : ndarray of float32, shape (n,)
    inverse : array of the arithmetic, shape (n, n)
    """

    kappa: Single
    weight: Single
    inverse: Any


def penalty(gram: Float, d: Float, arithmetic: Arithmetic) -> Penalty | None:
    """The penalty for a diagonal d > 0; None where the matrix cannot be factorized even in double precision."""
    kappa = 2.0 * np.sqrt(np.diag(gram) / d)
    matrix = arithmetic.put(gram)
    index = np.arange(len(d))
    matrix[index, index] = arithmetic.put(np.diag(gram) + (kappa - 1.0) * d)
    inverse = arithmetic.inverse(matrix)
    if inverse is None:
        factor = cholesky(gram + np.diag((kappa - 1.0) * d))
        if factor is None:
            return None
        inverse = arithmetic.put(symmetric_inverse(factor))
    return Penalty(kappa.astype(np.float32), (kappa * d).astype(np.float32), inverse)


@dataclass(frozen=True, eq=False)
class Points:
    """Where the iterations ended.

    Attributes
    ----------
    e : ndarray of float32, shape (rows, n)
        z − w.
    value : ndarray of shape (rows,)
        The bound there, roughly.
    y : ndarray of float32, shape (rows, n)
        The copy of e that lies in the hull of the levels.
    """

    e: Single
    value: Float
    y: Single


def find_points(
    levels: LevelRows,
    d: Float,
    setting: Penalty,
    arithmetic: Arithmetic,
    iterations: int,
    threads: int = 1,
    start: Single | None = None,
    stop: Callable[[int], bool] = lambda iteration: False,
) -> Points:
    """Iterate for all rows.

    Parameters
    ----------
    levels : LevelRows
    d : ndarray of shape (n,)
    setting : Penalty
        For this d.
    arithmetic : Arithmetic
        Of the products.
    iterations : int
        At most.
    threads : int
    start : ndarray of float32, shape (rows, n), optional
        A y; default: the targets, moved into the hull.
    stop : callable
        Asked with the number of iterations done whether to end.
    """
    shape = levels.origin.shape
    single = d.astype(np.float32)
    y = np.zeros(shape, dtype=np.float32) if start is None else start.copy()
    u, right = np.zeros(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    value, best = np.empty(shape[0]), np.full(shape[0], -np.inf)
    kept_e = np.zeros(shape, dtype=np.float32)

    def move(point: Single) -> None:
        def work(rows: slice) -> None:
            part = levels.part(rows)
            advance(
                point[rows], y[rows], u[rows], part.origin, part.scale, part.codes, part.which, part.uniform,
                setting.kappa, setting.weight, OVER, right[rows],
            )  # fmt: skip

        in_chunks(shape[0], threads, work, LEAST_ROWS)

    def evaluate(point: Single) -> None:
        def work(rows: slice) -> None:
            part = levels.part(rows)
            values(
                point[rows], right[rows], part.origin, part.scale, part.codes, part.which, part.uniform, single,
                setting.weight, value[rows],
            )  # fmt: skip

        in_chunks(shape[0], threads, work, LEAST_ROWS)

    move(y)
    total = -np.inf
    point = y
    for iteration in range(1, iterations + 1):
        point = arithmetic.product(right, setting.inverse)
        last = iteration == iterations or stop(iteration)
        if iteration % CYCLE == 0 or last:
            evaluate(point)
            # Not so where single precision has overflowed.
            better = (value > best) & np.isfinite(point).all(axis=1)
            best[better] = value[better]
            kept_e[better] = point[better]
            now = float(best @ levels.share)
            gain, total = now - total, now
            last |= gain <= PROGRESS * abs(total)
        if last:
            break
        move(point)
    return Points(kept_e, best, y)


def mean_spread(points: Points, levels: LevelRows) -> Float:
    """What the bound gains from a unit of each d_i, in the mean over the rows by their share (a supergradient)."""
    total = np.zeros(levels.origin.shape[1])
    spreads(points.y, levels.origin, levels.scale, levels.codes, levels.which, levels.uniform, levels.share, total)
    return total / levels.rows
