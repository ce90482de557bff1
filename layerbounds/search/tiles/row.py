"""One row of a band with prices on its inputs: least error plus prices, by branch and bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.pruning.perspective import newton_step
from layerbounds.kernels.factorization import UNIT, cholesky
from layerbounds.kernels.pruning import subset_diagonal, subset_relaxation
from layerbounds.kernels.pruning.subset_diagonal import CACHED
from layerbounds.kernels.tiles import relaxation, tree
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control
from layerbounds.search.pruning.subset_search import set_bound
from layerbounds.search.tiles.nodes import Nodes
from layerbounds.search.tiles.preparation import GramData
from layerbounds.search.tiles.row_data import RowData

#: Rounds of a relaxation at the root, and improvements of the diagonal there: at first, and after prices changed.
ROUNDS, FIRST_STEPS, STEPS = 40, 25, 4
#: Barrier weights of these improvements.
HIGH, LOW = 0.3, 0.02
#: Nodes of 64 inputs between two looks at the clock; relative gap at which the tree of a row ends.
BUDGET, GAP = 100, 1e-7
#: A price that is none, and not zero.
SOME = 1e-290
#: Rows of more inputs have relaxations in LAPACK, and trees only up to so many inputs.
MOST_TREE = 200


@dataclass(frozen=True, eq=False)
class RowMinimum:
    """What is known of the least error plus prices.

    Attributes
    ----------
    lower : float
        Proven, in the units of the task; −inf where nothing is.
    kept : ndarray of bool, shape (n,)
        The best set found.
    nodes : int
    finished : bool
        Whether ``lower`` is the minimum up to a small gap.
    sets : list of ndarray of bool
        All sets that were met below the cut.
    """

    lower: float
    kept: Bool
    nodes: int
    finished: bool
    sets: list[Bool]


class PricedRow:
    """A row with refit: its data, its diagonal and the sets that were met, for one price vector after another.

    Parameters
    ----------
    task : Task
        Of the row alone.
    control : Control
    data : GramData
        With a diagonal.
    """

    def __init__(self, task: Task[Support], control: Control, data: GramData) -> None:
        self.task, self.control = task, control
        self.data = RowData(task, data)
        self.gram, self.size = data.gram, len(data.gram)
        self.unit = self.data.factor**-2
        structure = task.allowed.structure
        self.group, self.capacity = structure.group[structure.unit], structure.capacity.copy()
        self.margin = 2.0 * self.data.saving_error(self.size)
        self.wide = True if self.size > CACHED else None
        self.d = np.zeros(self.size) if data.diagonal is None else data.diagonal.copy()
        self.saving, self.edge = np.zeros(self.size), np.zeros((len(self.capacity), 2))
        share = self.capacity[self.group] / np.maximum(np.bincount(self.group)[self.group], 1)
        self.z = np.minimum(share, 1.0).astype(np.float64)
        self.point, self.value = np.zeros(self.size), 0.0
        #: Errors of the sets that were met, in the units of the task, by their flags.
        self.known: dict[bytes, float] = {}

    @property
    def bounded(self) -> bool:
        """Whether a tree can be trusted: a diagonal is proven, and sets are compared by their computed errors."""
        return bool(np.all(self.d > 0)) and self.margin < 0.1 * self.data.energy and self.size <= MOST_TREE

    @property
    def dual(self) -> tuple[Float, Float]:
        """The present relaxation as a point and a diagonal below the Gram matrix."""
        return self.point / self.data.factor, self.d

    def restart(self, z: Float) -> None:
        """Let the next relaxation begin with these weights."""
        self.z = z.copy()

    def error_of(self, kept: Bool) -> float:
        """The error of a set as computed, in the units of the task; the set is known from now on."""
        key = kept.tobytes()
        if key not in self.known:
            data = self.data
            index = np.flatnonzero(kept)
            work, right = np.empty((len(index), len(index))), np.empty(len(index))
            saving = subset_relaxation.reduce(self.gram, data.b, index, len(index), len(index), work, right)
            value = max(data.energy - saving, 0.0) if math.isfinite(saving) else math.inf
            self.known[key] = value * self.unit
        return self.known[key]

    def best_known(self, price: Float) -> tuple[Bool, float]:
        """The known set of least error plus prices, and these."""
        if not self.known:
            self.error_of(np.zeros(self.size, dtype=bool))
        flags = np.frombuffer(b"".join(self.known), dtype=bool).reshape(len(self.known), -1)
        values = np.fromiter(self.known.values(), dtype=np.float64) + flags @ price
        best = int(np.argmin(values))
        return flags[best].copy(), float(values[best])

    # Relaxation

    def relax(self, price: Float, rounds: int = ROUNDS) -> float:
        """Bound of the whole row with its diagonal; price and result in the units of the task."""
        scaled = price * self.data.factor**2
        value = self._relax_wide(scaled, rounds) if self.size > CACHED else self._relax(scaled, rounds)
        self.value = value * self.unit
        return self.value

    def _relax(self, price: Float, rounds: int) -> float:
        n = self.size
        status, inputs = np.zeros(n, dtype=np.int8), np.zeros(n, dtype=np.int64)
        reduced, residual = np.empty((n, n)), np.empty(n)
        kept, count = subset_relaxation.alive(status, inputs)
        subset_relaxation.reduce(self.gram, self.data.b, inputs, kept, count, reduced, residual)
        left = (inputs, kept, count, reduced, residual)
        results = (
            self.point, self.saving, self.edge, np.empty((n, n)), np.zeros(n), np.zeros(n, np.int64), np.zeros(n),
            np.zeros(1),
        )  # fmt: skip
        free = self.capacity.copy()
        value = relaxation.relax(
            self.data.layer, self.d, self.group, free, price, status, self.z, rounds, math.inf, left, results
        )
        return float(value)

    def _relax_wide(self, price: Float, rounds: int) -> float:
        """The same with LAPACK, and without charges for rounding: certification derives the bound anew."""
        data, d = self.data, self.d
        status, free = np.zeros(self.size, dtype=np.int8), self.capacity.copy()
        best, z, edge = -math.inf, self.z.copy(), self.edge.copy()
        for step in range(rounds):
            if step > 1 and self.control.remaining() <= 0:
                break
            active = np.flatnonzero(z > 0.0)
            matrix = self.gram[np.ix_(active, active)]
            matrix[np.diag_indices(len(active))] += d[active] * (1.0 / z[active] - 1.0)
            factor = cholesky(matrix)
            if factor is None:
                break
            u = np.zeros(self.size)
            u[active] = scipy.linalg.cho_solve((factor, True), data.b[active], check_finite=False)
            h = self.gram @ u - data.b
            scores = (d * u - h) ** 2 / d - price
            kept = relaxation.best_of_groups(self.group, free, status, scores, edge)
            value = data.low_energy - float(u @ (h + data.b)) + float(d @ u**2) - kept
            gain = value - best
            if value > best:
                best, self.point, self.z = value, u, z.copy()
                self.saving[:], self.edge[:] = scores, edge
            if step > 1 and gain < 1e-3 * abs(value):
                break
            relaxation.next_weights(self.group, free, price, status, scores, z)
        return best

    def sharpen(self, price: Float, steps: int = STEPS, until: float = math.inf) -> float:
        """Improve the diagonal for some prices; returns the bound, in the units of the task.

        Parameters
        ----------
        price : ndarray of shape (n,)
        steps : int
        until : float
            Elapsed seconds from which on no step begins; a node limit has to give the same result on every machine.
        """
        timed = self.control.node_limit is None
        data = self.data
        value = self.relax(price)
        best, best_d, best_z, best_point = value, self.d.copy(), self.z.copy(), self.point.copy()
        mu = HIGH if steps > STEPS else 4 * LOW
        status, alpha = np.zeros(self.size, dtype=np.int8), np.zeros(self.size)
        everything = np.arange(self.size)
        for _ in range(steps):
            if timed and self.control.elapsed() >= until:
                break
            mean = tree.emphasis(status, price * data.factor**2, self.saving, self.z, alpha)
            if not mean > 0.0:
                break
            self.d = newton_step(self.gram, self.d, alpha / mean, mu)
            mu = max(0.7 * mu, LOW)
            value = self.relax(price)
            if value > best and self._proven(everything):
                best, best_d, best_z, best_point = value, self.d.copy(), self.z.copy(), self.point.copy()
        self.d, self.z = best_d, best_z
        self.relax(price, 1)
        self.point, self.value = best_point, best
        return best

    def _proven(self, everything: Int) -> bool:
        work = np.empty((self.size, self.size))
        return bool(subset_diagonal.prove(self.gram, self.d, everything, len(everything), 0, work))

    # Tree

    def minimum(self, price: Float, most: int, until: float, cut: float | None = None) -> RowMinimum:
        """Branch and bound from the root.

        Parameters
        ----------
        price : ndarray of shape (n,)
            In the units of the task.
        most : int
            Nodes.
        until : float
            Elapsed seconds at which to stop.
        cut : float, optional
            All sets below this value are collected, rather than the best one.
        """
        data = self.data
        root = self.sharpen(price, STEPS, until) * data.factor**2
        if self.size > CACHED:
            # That is not charged for rounding; the tree begins with a relaxation of its own.
            root = 0.0
        scaled = price * data.factor**2
        if cut is not None:
            # Inputs that cost nothing are not kept for that reason: the limits of the band may forbid them.
            scaled = np.maximum(scaled, SOME)
        self.error_of((self.saving > 0.0) & (self.saving >= self.edge[self.group, 1]))
        kept, upper = self.best_known(price)
        status, room = np.zeros(self.size, dtype=np.int8), self.capacity.copy()
        tree.settle(self.group, room, scaled, status)
        nodes = Nodes(status, self.z, room, max(root, 0.0), self.d)
        closed, found = np.array([math.inf]), np.zeros(self.size, dtype=bool)
        # Sums of prices are rounded, too.
        margin = self.margin + 4.0 * (self.size + 8) * UNIT * float(scaled.sum())
        finished, sets = False, []
        budget = max(int(BUDGET * min(64.0 / self.size, 1.0) ** 3), 1)
        while True:
            end = (upper * (1.0 - GAP) if cut is None else cut) * data.factor**2
            if not nodes.opened < end:
                finished = True
                break
            if nodes.expanded >= most or self.control.elapsed() >= until or self.control.remaining() <= 0:
                break
            event = tree.run(
                data.layer, self.group, scaled, end, margin, budget, most, nodes.status, nodes.z, nodes.room,
                nodes.bound, nodes.turn, nodes.row, nodes.spare, nodes.d, nodes.uses, nodes.spare_rows, nodes.open,
                nodes.counts, closed, found, self.wide,
            )  # fmt: skip
            if event == tree.FULL:
                nodes.grow()
            elif event == tree.FOUND:
                total = self.error_of(found.copy()) + float(price[found].sum())
                if total < upper:
                    upper, kept = total, found.copy()
                if cut is None:
                    # Rounded down by more than the sum of prices is.
                    paid = float(scaled[found].sum()) * (1.0 - 1e-12)
                    closed[0] = min(closed[0], set_bound(self.task.gram, data.target, found) + paid)
                else:
                    sets.append(found.copy())
        lower = min(nodes.opened, float(closed[0]), max(upper, 0.0) * data.factor**2)
        lower = (lower - 32 * UNIT * (data.energy + float(scaled.sum()))) * self.unit
        return RowMinimum(lower, kept, nodes.expanded, finished, sets)
