"""A benchmark peer: k-sparse least squares by branch and bound with first-order dual bounds.

After Liu, Lodi and Shafiee, "GPU-friendly and Linearly Convergent First-order Methods for Certifying Optimal k-sparse
GLMs" (arXiv 2603.01306). Of the paper, of which only the abstract was at hand: the perspective relaxation as a
composite problem, an exact proximal operator in log-linear time, an accelerated proximal method that is restarted on
the duality gap, and its bounds inside branch and bound. Of this module: all formulas and constants, and the split
H = (H − D) + D. The paper has a ridge term for the perspective; here D is the analytic centre of the diagonals below H,
not fitted to the channel, and weights have no bounds.

With u = D^½v, Q = D^-½HD^-½ − I and p = D^-½Hw the relaxation is min uᵀQu − 2pᵀu + wᵀHw + P(u),
P(u) = min {Σ u_i²/z_i : Σ z_i ≤ k, 0 ≤ z ≤ 1}. For every x, with g = 2(Qx − p), convexity gives the lower bound
wᵀHw − xᵀQx − (sum of the k largest g_i²/4).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numba
import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.pruning.perspective import centre
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.solvers.base import Availability, Capability, Option
from layerbounds.solvers.foreign import SOLVER_GAP, Record, nothing_to_solve, warm_up
from layerbounds.solvers.formulation import incumbent

#: Iterations of a node, and between two looks at its gap.
ITERATIONS, CHECKED = 2000, 10
#: A node is branched on once its gap is below this share of what the bound lacks.
ENOUGH = 0.05
#: The momentum starts anew whenever the gap has fallen by this factor.
RESTART = 0.5


@numba.njit(cache=True)
def shares(magnitudes: Float, rho: float, room: int) -> Float:
    """Z of the proximal operator: clip(|a_i|·t − 1/ρ, 0, 1) with the largest t whose sum is at most ``room``.

    The sum is piecewise linear in t: its kinks are sorted and walked through.
    """
    n = len(magnitudes)
    positive = np.flatnonzero(magnitudes > 0.0)
    z = np.zeros(n)
    if len(positive) <= room:
        z[positive] = 1.0
        return z
    if room <= 0:
        return z
    m = len(positive)
    kinks, slopes = np.empty(2 * m), np.empty(2 * m)
    for j in range(m):
        a = magnitudes[positive[j]]
        kinks[j], slopes[j] = 1.0 / (rho * a), a
        kinks[m + j], slopes[m + j] = (1.0 + 1.0 / rho) / a, -a
    order = np.argsort(kinks)
    total, slope, t = 0.0, 0.0, 0.0
    for j in order:
        step = total + slope * (kinks[j] - t)
        if step >= room:
            break
        total, t = step, kinks[j]
        slope += slopes[j]
    if slope > 0.0:
        t += (room - total) / slope
    for i in positive:
        z[i] = min(max(magnitudes[i] * t - 1.0 / rho, 0.0), 1.0)
    return z


@numba.njit(cache=True)
def lower_bound(q: Float, p: Float, constant: float, kept: Bool, free: Bool, room: int, x: Float) -> float:
    """The bound that any point x gives, where ``kept`` inputs are in and those neither kept nor free are out."""
    qx = q @ x
    savings = (qx - p) ** 2
    value = constant - x @ qx - np.sum(savings[kept])
    open_savings = np.sort(savings[free])
    return value - np.sum(open_savings[max(len(open_savings) - room, 0) :])


@numba.njit(cache=True)
def bound_node(
    q: Float, p: Float, constant: float, lipschitz: float, kept: Bool, free: Bool, room: int, cut: float, start: Float
) -> tuple[float, Float, Float]:
    """Best lower bound found for a node, the last point, and its z; ends early once the bound is above ``cut``."""
    n = len(p)
    rho = 0.5 * lipschitz
    x, y, momentum = start.copy(), start.copy(), 1.0
    z = np.ones(n)
    best, mark = -np.inf, np.inf
    open_inputs = np.flatnonzero(free)
    for iteration in range(1, ITERATIONS + 1):
        a = y - 2.0 * (q @ y - p) / lipschitz
        z[:] = 0.0
        z[kept] = 1.0
        z[open_inputs] = shares(np.abs(a[open_inputs]), rho, room)
        moved = a * (rho * z / (rho * z + 1.0))
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum))
        y = moved + (momentum - 1.0) / following * (moved - x)
        x, momentum = moved, following
        if iteration % CHECKED and iteration < ITERATIONS:
            continue
        best = max(best, lower_bound(q, p, constant, kept, free, room, x))
        if best >= cut:
            break
        value = constant + x @ (q @ x) - 2.0 * p @ x
        for i in range(n):
            if z[i] > 0.0:
                value += x[i] * x[i] / z[i]
        gap = value - best
        if gap <= max(ENOUGH * (cut - best), 1e-12 * constant):
            break
        if gap <= RESTART * mark:
            mark, momentum, y = gap, 1.0, x.copy()
    return best, x, z


class KSparse:
    """One channel: its matrices, nodes by their bound, and the record of the work.

    Parameters
    ----------
    task : Task
        Pruning with refit, any ``k`` inputs, with a positive definite Gram matrix.
    control : Control
    """

    def __init__(self, task: Task[Any], control: Control) -> None:
        d = centre(task.gram)
        if not np.all(d > 0):
            raise UnsupportedProblemError("peer 'ksparse' needs a positive definite Gram matrix.")
        self.task, self.control = task, control
        root = np.sqrt(d)
        self.gram, self.linear = task.gram, task.gram @ task.target
        self.q = np.ascontiguousarray(task.gram / np.outer(root, root) - np.eye(len(d)))
        self.p, self.root = self.linear / root, root
        self.constant = float(task.target @ self.linear)
        self.lipschitz = 2.0 * float(np.linalg.eigvalsh(self.q)[-1]) * (1.0 + 1e-9) + 1e-12
        self.room = int(task.allowed.structure.capacity[0])
        self.record = Record(task, control, incumbent(task, control.seed), 1.0)

    def bound(self, kept: Bool, free: Bool, start: Float) -> tuple[float, Float, Float]:
        """`bound_node` of inputs that are in, and those still open."""
        room = self.room - int(np.count_nonzero(kept))
        cut = self.record.upper * (1.0 - SOLVER_GAP)
        return bound_node(self.q, self.p, self.constant, self.lipschitz, kept, free, room, cut, start)

    def run(self) -> RawSolve:
        """Best-first branch and bound on the input whose z is nearest to a half."""
        n, record = len(self.p), self.record
        kept, free = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
        heap: list[tuple[float, int, Bool, Bool, Float, Float]] = []
        self._push(heap, kept, free, np.zeros(n), 0.0)
        while heap and self.control.remaining() > 0:
            lower, _, kept, free, x, z = heapq.heappop(heap)
            record.bound(min(lower, record.upper))
            if record.closed:
                break
            best = np.flatnonzero(free)[np.argmin(np.abs(z[free] - 0.5))]
            free = free.copy()
            free[best] = False
            chosen = kept.copy()
            chosen[best] = True
            self._push(heap, chosen, free, x, lower)
            without = x.copy()
            without[best] = 0.0
            self._push(heap, kept, free, without, lower)
        searched = not heap
        if searched:
            record.bound(record.upper * (1.0 - SOLVER_GAP))
        return record.finish(Status.OPTIMAL if searched or record.closed else Status.TIME_LIMIT)

    def _push(self, heap: list[Any], kept: Bool, free: Bool, start: Float, parent: float) -> None:
        """Bound a node, take the weights that it suggests, and keep it unless its bound meets the best error."""
        room = self.room - int(np.count_nonzero(kept))
        if room < 0:
            return
        self.record.nodes += 1
        leaf = room == 0 or np.count_nonzero(free) <= room
        if leaf:
            self._refit(np.flatnonzero(kept | free if room else kept))
            return
        lower, x, z = self.bound(kept, free, start)
        order = np.argsort(-np.abs(np.where(free, x, 0.0)))[:room]
        self._refit(np.union1d(np.flatnonzero(kept), order))
        lower = max(lower, parent)
        if lower < self.record.upper * (1.0 - SOLVER_GAP):
            heapq.heappush(heap, (lower, self.record.nodes, kept, free, x, z))

    def _refit(self, inputs: Any) -> None:
        weights = np.zeros(len(self.p))
        if len(inputs):
            weights[inputs] = np.linalg.solve(self.gram[np.ix_(inputs, inputs)], self.linear[inputs])
        self.record.point(weights)


class KSparseBackend:
    """The peer as a backend: pruning with refit of any k inputs."""

    name = "ksparse"
    capabilities = frozenset({Capability.PRUNING, Capability.WARM_START, Capability.TRACE, Capability.OPTIMALITY})
    options: Mapping[str, Option] = MappingProxyType({})
    concurrent = False

    def availability(self) -> Availability:
        """Always there."""
        return Availability(True, f"numba {numba.__version__}")

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        """Compile everything."""
        warm_up(problem, "numba")
        q, flags = np.eye(2), np.ones(2, dtype=bool)
        bound_node(q, np.ones(2), 1.0, 2.0, ~flags, flags, 1, 1.0, np.zeros(2))

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Branch and bound of one channel."""
        structure = task.allowed.structure
        if len(structure.capacity) != 1 or len(structure.group) != len(structure.unit):
            raise UnsupportedProblemError("peer 'ksparse' keeps any k inputs and knows no other pattern.")
        start = incumbent(task, control.seed)
        return nothing_to_solve(task, control, start) or KSparse(task, control).run()
