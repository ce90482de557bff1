"""The interval of one band: prices are moved, rows are solved with them, and what is left is enumerated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.kernels import exact
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import (
    OPTIMAL_ABSOLUTE,
    OPTIMAL_RELATIVE,
    Control,
    RawSolve,
    RowPrices,
    SearchProof,
    Status,
    TiledDual,
    TracePoint,
)
from layerbounds.search.frontier import Incumbent
from layerbounds.search.pruning.refit import refit
from layerbounds.search.tiles.exact import row_task
from layerbounds.search.tiles.mask_row import MaskRow
from layerbounds.search.tiles.preparation import GramData
from layerbounds.search.tiles.prices import Prices, prices_of
from layerbounds.search.tiles.row import PricedRow, RowMinimum

Row = PricedRow | MaskRow


@dataclass(eq=False)
class Band:
    """The rows, what is known of them, and the best bound and weights so far.

    Attributes
    ----------
    task : Task
    control : Control
    rows : list of PricedRow or MaskRow
    prices : Prices
    incumbent : Incumbent
        Error in the units of the task, without the constant; weights of shape (rows, n).
    best : ndarray
        The prices of the best bound.
    lower : float
        That bound, without the constant.
    least : ndarray of shape (rows,)
        What was known of the rows with these prices.
    dual : TiledDual or None
    nodes : int
    """

    task: Task[TiledSupport]
    control: Control
    rows: list[Row]
    prices: Prices
    incumbent: Incumbent
    best: Float
    least: Float
    lower: float = 0.0
    dual: TiledDual | None = None
    dual_value: float = -math.inf
    nodes: int = 0
    trace: list[TracePoint] = field(default_factory=list)

    @property
    def upper(self) -> float:
        """The error of the best weights."""
        return self.incumbent.value

    @property
    def goal(self) -> float:
        """A bound that ends the work: the gap asked for, or most of the tolerance of ``optimal``."""
        return self.upper - self._width(0.8)

    @property
    def aim(self) -> float:
        """What the enumeration at the end proves, less its rounding."""
        return self.upper - self._width(0.4)

    def _width(self, share: float) -> float:
        upper, energy = self.upper + self.task.constant, self.task.energy
        gap = (self.control.gap - 1e-12) * upper - 1e-14 * energy
        return max(gap, share * max(OPTIMAL_RELATIVE * upper, 0.6 * OPTIMAL_ABSOLUTE * energy))

    @property
    def spent(self) -> Status | None:
        """Which limit is reached."""
        control = self.control
        if control.node_limit is not None and control.node_limit - self.nodes < len(self.rows):
            return Status.NODE_LIMIT
        if control.remaining() <= 0:
            return Status.INTERRUPTED if control.cancel.is_set() else Status.TIME_LIMIT
        return None

    def nodes_left(self, most: int) -> int:
        """Nodes that one row may take."""
        limit = self.control.node_limit
        return most if limit is None else max(min(most, (limit - self.nodes) // len(self.rows)), 0)

    def record(self) -> None:
        """Add a point to the trace."""
        high = self.upper + self.task.constant
        low = min(max(self.lower, 0.0) + self.task.constant, high)
        self.trace.append(TracePoint(self.control.elapsed(), self.nodes, low, high))

    def raise_to(self, lower: float, x: Float, least: Iterable[float]) -> bool:
        """Keep a bound, without the constant, where it is better, with its prices and what they say of each row."""
        if not lower > self.lower:
            return False
        self.lower, self.best, self.least = lower, x.copy(), np.array(list(least))
        self.record()
        return True

    def offer(self, masks: Bool) -> float:
        """The error of the best weights on masks, shape (rows, n), which are allowed; they are kept where best."""
        task = self.task
        weights = np.where(masks, task.allowed.original, 0.0)
        if task.allowed.refit:
            weights = np.zeros(task.targets.shape)
            b = task.targets @ task.gram
            for row, mask in enumerate(masks):
                inputs = np.flatnonzero(mask)
                if len(inputs):
                    weights[row, inputs] = refit(task.gram, b[row], inputs)
        deviation = weights - task.targets
        value = max(float(np.sum((deviation @ task.gram) * deviation)), 0.0)
        if value < self.upper:
            self.incumbent.offer(value, weights)
            self.record()
        for one, mask in zip(self.rows, masks, strict=True):
            one.error_of(mask)
        return value

    # Bounds

    def solve_rows(self, x: Float, most: int, seconds: float) -> tuple[float, list[RowMinimum]]:
        """A bound from the minima of all rows with some prices, and these."""
        prices = self.prices.spread(x)
        until = self.control.elapsed() + seconds
        most = self.nodes_left(most)
        left = list(range(len(self.rows)))

        def work(row: int) -> RowMinimum:
            # What rows leave of their share is the others'.
            now = self.control.elapsed()
            share = (until - now) / max(len(left) / self.control.threads, 1.0)
            left.remove(row)
            return self.rows[row].minimum(prices[row], most, now + share)

        if self.control.threads > 1:
            with ThreadPoolExecutor(max_workers=min(self.control.threads, len(self.rows))) as pool:
                minima = list(pool.map(work, range(len(self.rows))))
        else:
            minima = [work(row) for row in range(len(self.rows))]
        self.nodes += sum(minimum.nodes for minimum in minima)
        self.keep_dual(x)
        if not all(math.isfinite(minimum.lower) for minimum in minima):
            return -math.inf, minima
        total = sum((Fraction(minimum.lower) for minimum in minima), Fraction(0)) - self.prices.charged(x)
        return exact.float_below(total), minima

    def keep_dual(self, x: Float) -> None:
        """Remember the present relaxations of the rows as a dual point, where their sum is best."""
        value = sum(row.value for row in self.rows) - self.prices.largest(x)[0]
        if value > self.dual_value:
            self.dual_value = value
            points, diagonals = zip(*(row.dual for row in self.rows), strict=True)
            self.dual = TiledDual(np.array(points), np.array(diagonals), self.prices.spread(x))

    def result(self, termination: Status) -> RawSolve:
        """What is handed over."""
        self.record()
        rows = RowPrices(self.prices.spread(self.best), self.least)
        return RawSolve(
            weights=self.incumbent.weights.reshape(self.task.target.shape),
            termination=termination,
            proof=SearchProof(self.lower, 0.0, rows=rows) if self.lower > 0 else None,
            dual=self.dual,
            nodes=self.nodes,
            trace=tuple(self.trace),
        )


def make_band(task: Task[TiledSupport], control: Control, data: GramData) -> Band:
    """A band with its rows and first incumbents.

    Parameters
    ----------
    task : Task
    control : Control
    data : GramData
    """
    rows: list[Row] = []
    for row in range(len(task.targets)):
        one = row_task(task, row)
        rows.append(PricedRow(one, control, data) if task.allowed.refit else MaskRow(one, control))
    prices = prices_of(task.allowed)
    nothing = max(float(np.sum((task.targets @ task.gram) * task.targets)), 0.0)
    return Band(
        task,
        control,
        rows,
        prices,
        Incumbent(nothing, np.zeros(task.targets.shape)),
        np.zeros(prices.size),
        np.zeros(len(rows)),
    )
