"""Mask-only pruning of one channel: a binary quadratic problem over units, by branch and bound with a diagonal dual.

The mathematics and the rounding are in docs/pruning-bounds.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, maximize_minorant
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, semidefinite_shift
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.pruning.masks import descend_mask, relax_mask
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, BlockDual, Control, RawSolve, SearchProof, Status
from layerbounds.search.frontier import Forkable, Frontier, Incumbent
from layerbounds.search.pruning.wide import WidePreparation

Flags = npt.NDArray[np.int8]

#: Moves of the relaxation at the root and at other nodes, and between two looks at the clock, per unit.
ROOT_MOVES, MOVES, CHUNK = 200, 12, 4
#: Re-weightings of the root's diagonal.
ROUNDS = 3
#: Multiplications of the local search between two looks at the clock.
DESCENT_WORK = 3e7
#: Seconds per cubed number of units that a Newton step of the diagonal takes, its proof included.
NEWTON_CUBIC = 3e-10
#: The same for the diagonal where Newton's method starts; small roots get it in any case.
INTERIOR_CUBIC, AT_ONCE = 2.5e-10, 0.05
#: Factorizations in a Newton step and what goes with it, where the time of one is known.
NEWTON_WORK = 10.0
#: How near to the best mask the relaxation of a large one starts.
NEAR = 0.6
#: The same for the proof that the matrix is positive semidefinite, and how many are tried where it is singular.
PROOF_CUBIC, PROOFS = 3e-11, 8
#: Share of the time limit for the first incumbents.
FIRST = 0.3
#: Masks within the rounding allowance of the best one, and nodes that their collection may cost.
MANY_LEAVES, COLLECT_NODES = 5000, 20000


@dataclass(eq=False)
class MaskNode:
    """A subproblem: what is fixed (1 kept, −1 dropped), what each group may still keep, and a warm start."""

    status: Flags
    free: Int
    z: Float

    def copy(self) -> Self:
        """One whose arrays are its own."""
        return type(self)(self.status.copy(), self.free.copy(), self.z.copy())


class MaskSearch(Forkable):
    """Expander for masks: with z_g = 1 for a kept unit, f = zᵀAz − 2βᵀz + wᵀHw with A_gh = Σ ω_i h_ij ω_j.

    Parameters
    ----------
    task : Task
    control : Control
    """

    def __init__(self, task: Task[Support], control: Control) -> None:
        self.task, self.control = task, control
        gram, target = task.gram.astype(np.longdouble), task.target.astype(np.longdouble)
        weights = task.allowed.original.astype(np.longdouble)
        unit, units = task.allowed.structure.unit, len(task.allowed.structure.group)
        # Units are runs of inputs: sums over runs, in extended precision.
        runs = np.searchsorted(unit, np.arange(units))
        product = gram @ target
        scaled = gram * np.outer(weights, weights)
        if units < len(unit):
            scaled = np.add.reduceat(np.add.reduceat(scaled, runs, 0), runs, 1)
        self.a = np.ascontiguousarray(scaled.astype(np.float64))
        self.a = 0.5 * (self.a + self.a.T)
        self.beta = np.add.reduceat(weights * product, runs).astype(np.float64)
        # Negative where the stored matrix is indefinite: raising it to zero would raise all other values.
        self.energy = float(target @ product)
        self.group, self.capacity = task.allowed.structure.group, task.allowed.structure.capacity
        # Every term of the objective and of the bound is below this for z in [0, 1].
        absolute, kept = np.abs(task.gram), np.abs(task.allowed.original)
        size = float(kept @ (absolute @ kept))
        magnitude = 1.01 * (abs(self.energy) + 4.0 * size + 4.0 * float(np.abs(self.beta).sum()))
        #: Rounding of A, β and the energy, and of a bound.
        self.allowance = 4.0 * (units + 32) * UNIT * magnitude
        both = kept + np.abs(task.target)
        reach = 1.01 * float(both @ (absolute @ both))
        self.allowance += 4.0 * (len(target) + 32) * float(np.finfo(np.longdouble).eps) * reach
        self.incumbent = Incumbent(max(self.energy, 0.0), np.zeros(units))
        self.excluded = math.inf
        self.d = np.zeros(units)
        self.root_bound = 0.0
        self.root_dual: Float | None = None
        #: Masks that were reached with nothing free, while they are collected.
        self.leaves: list[Bool] | None = None
        self.h, self.saving, self.edge = np.zeros(units), np.zeros(units), np.zeros((len(self.capacity), 2))

    def offer(self, kept: Bool, spared: float = 0.0) -> None:
        """Local search from a mask while more than ``spared`` seconds are left; keep the result where it is better."""
        moves, done = max(int(DESCENT_WORK / len(kept) ** 2), 1), False
        for _ in range(max(100 * len(kept) // moves, 1)):
            value, done = descend_mask(self.a, self.beta, self.group, self.capacity, kept, moves)
            if done or self.control.remaining() <= spared:
                break
        self.incumbent.offer(max(self.energy + float(value), 0.0), kept.astype(np.float64))

    def first_incumbents(self) -> None:
        """The warm start, energy, magnitude and nothing kept, each with local search as long as there is time."""
        task = self.task
        units = len(self.group)
        starts = [] if task.warm_start is None else [task.allowed.structure.kept_units(task.warm_start[None])[0]]
        for score in (np.abs(task.allowed.original) * np.sqrt(np.diag(task.gram)), np.abs(task.allowed.original)):
            total = np.bincount(task.allowed.structure.unit, weights=score**2, minlength=units)
            mask = task.allowed.structure.keep_largest(total)
            starts.append(task.allowed.structure.kept_units(mask[None].astype(np.float64))[0])
        # A node limit has to give the same result on every machine.
        spared = (1.0 - FIRST) * self.control.time_limit if self.control.node_limit is None else 0.0
        for number, start in enumerate([*starts, np.zeros(units, dtype=bool)]):
            if number == 0 or self.control.remaining() > spared:
                self.offer(start, spared)

    def relax(self, node: MaskNode, cut: float, moves: int) -> float:
        """Proven bound of a node."""
        return float(
            relax_mask(
                self.a, self.beta, self.energy, self.d, self.group, node.free, node.status, moves * len(self.beta), cut,
                self.allowance, node.z, self.h, self.saving, self.edge,
            )
        )  # fmt: skip

    def root(self) -> MaskNode:
        """The whole problem; the diagonal is re-weighted with z(1 − z) of the relaxation."""
        units = len(self.group)
        status = np.zeros(units, dtype=np.int8)
        # A unit whose weights are all zero changes nothing.
        status[
            np.bincount(self.task.allowed.structure.unit, weights=np.abs(self.task.allowed.original), minlength=units)
            == 0
        ] = -1
        node = MaskNode(status, self.capacity.copy(), np.zeros(units))
        self._settle(node)
        free = np.flatnonzero(node.status == 0)
        block = np.ascontiguousarray(self.a[np.ix_(free, free)])
        weight = np.ones(len(free))
        step, first = NEWTON_CUBIC * len(free) ** 3, INTERIOR_CUBIC * len(free) ** 3
        timed = self.control.node_limit is None
        lowest = lowest_diagonal(block, self.control.remaining() if timed else math.inf)
        self.d[free] = lowest
        best = self.d.copy()
        shared = self.task.shared if isinstance(self.task.shared, WidePreparation) else None
        if shared is not None and len(free):
            # D ⪯ H gives A a minorant: blocks of units weigh what the weights of each make of them.
            inside = shared.centre.gather(self.task.allowed.original)
            start = np.einsum("gi,gij,gj->g", inside, shared.centre.blocks, inside)
            found = certified_minorant(block, start[free])
            self.d[free] = found if np.any(found) else lowest
            step = NEWTON_WORK * shared.seconds
            # The relaxation of a large mask takes long from nothing.
            share = (self.capacity / np.bincount(self.group, minlength=len(self.capacity)))[self.group]
            node.z = np.where(status == 0, NEAR * self.incumbent.weights + (1.0 - NEAR) * np.minimum(share, 1.0), 0.0)
        for number in range(ROUNDS if len(free) else 0):
            given = shared is not None and number == 0
            late = self.control.remaining() <= (step if number else first if first > AT_ONCE else -1.0)
            if late and number:
                break
            if not late and not given:
                start = self.d[free] if np.any(self.d > 0.0) else None
                found = maximize_minorant(block, weight, start, stop=self._stopper(step))
                # Zeros are what it returns where it proves nothing.
                self.d[free] = found if np.any(found) else lowest
            value, z = self._relax_root(node)
            if value > self.root_bound:
                self.root_bound, best, self.root_dual = value, self.d.copy(), z
            weight = 0.5 * weight / weight.sum() + 0.5 * (node.z * (1 - node.z) + 1e-3)[free] / len(free)
        self.d = best
        return node

    def _stopper(self, step: float) -> Callable[[], bool]:
        """Asked before each step: whether what is left is less than a step should take, or than the last one took."""
        before = self.control.elapsed()

        def stop() -> bool:
            nonlocal before
            now = self.control.elapsed()
            spent, before = now - before, now
            return self.control.remaining() <= max(step, spent if spent > AT_ONCE else 0.0)

        return stop

    def _relax_root(self, node: MaskNode) -> tuple[float, Float]:
        """The best bound of the root as long as there is time, and its point."""
        best, point = -math.inf, node.z.copy()
        for _ in range(ROOT_MOVES // CHUNK):
            before = node.z.copy()
            value = self.relax(node, np.inf, CHUNK)
            if value > best:
                best, point = value, node.z.copy()
            if np.array_equal(before, node.z) or self.control.remaining() <= 0:
                break
        return best, point

    def expand(self, node: MaskNode, bound: float, cut: float) -> tuple[float, list[MaskNode]]:
        """Bound, fix, round, branch."""
        now = self.relax(node, cut, MOVES)
        value = max(bound, now)
        if value >= cut:
            return value, []
        free = node.status == 0
        threshold = self.edge[self.group, 1]
        inside = self._largest(node)
        self.offer((node.status == 1) | inside)
        if not np.any(free):
            self._leaf(node)
            return value, []
        below = self.edge[self.group, 0]
        # What another choice costs adds to the bound that the savings belong to, which an inherited one may exceed.
        keep = inside & (now + (self.saving - below) * (1.0 - 1e-12) >= cut + self.allowance)
        positive = np.maximum(threshold, 0.0)
        drop = free & ~inside & (now + (positive - self.saving) * (1.0 - 1e-12) >= cut + self.allowance)
        node.status[keep] = 1
        node.status[drop] = -1
        if np.any(keep | drop):
            self.excluded = min(self.excluded, cut)
        np.subtract.at(node.free, self.group[keep], 1)
        self._settle(node)
        free = node.status == 0
        if not np.any(free):
            return value, [node]
        cost = np.where(free, np.diag(self.a) * node.z * (1.0 - node.z), -1.0)
        if cost.max() <= 0:
            cost = np.where(free, np.abs(self.saving), -1.0)
        branch = int(np.argmax(cost))
        children = []
        for choice in (-1, 1):
            child = node.copy()
            child.status[branch] = choice
            if choice == 1:
                child.free[self.group[branch]] -= 1
            self._settle(child)
            children.append(child)
        return value, children

    def _largest(self, node: MaskNode) -> Bool:
        """The free units that the bound keeps: those of largest positive saving, ties broken by number."""
        index = np.flatnonzero((node.status == 0) & (self.saving > 0))
        order = index[np.lexsort((-self.saving[index], self.group[index]))]
        first = np.searchsorted(self.group[order], self.group[order])
        inside = np.zeros(len(self.group), dtype=bool)
        inside[order[np.arange(len(order)) - first < node.free[self.group[order]]]] = True
        return inside

    def collect(self, root: MaskNode, cut: float) -> list[Bool] | None:
        """All masks below a cut, up to what rounding may hide; None where they or their nodes are too many."""
        leaves: list[Bool] = []
        self.leaves = leaves
        stack = [root]
        for _ in range(COLLECT_NODES):
            if not stack:
                return leaves
            if self.control.remaining() <= 0 or len(leaves) > MANY_LEAVES:
                return None
            stack += self.expand(stack.pop(), 0.0, cut)[1]
        return None

    def _leaf(self, node: MaskNode) -> None:
        kept = node.status == 1
        if self.leaves is not None:
            self.leaves.append(kept)
        value = self.energy + float(kept @ self.a @ kept) - 2.0 * float(self.beta @ kept)
        self.incumbent.offer(max(value, 0.0), kept.astype(np.float64))

    def _settle(self, node: MaskNode) -> None:
        """Drop the free units of groups without room; one with room for all does not keep them, as dropping may pay."""
        node.status[(node.status == 0) & (node.free[self.group] <= 0)] = -1


def search_mask(task: Task[Support], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    search = MaskSearch(task, control)
    search.first_incumbents()
    root = search.root()
    charge = 2.0 * search.allowance
    frontier: Frontier[MaskNode] = Frontier(
        search, control, max(search.energy, 0.0), root.copy(), search.root_bound, 1.0, task.constant, charge=charge
    )
    termination = frontier.run()
    proof = SearchProof(frontier.lower, charge) if frontier.lower > 0 else None
    upper = search.incumbent.value
    weights = _weights(task, search.incumbent.weights > 0)
    visible = charge > 0.1 * max(OPTIMAL_RELATIVE * (upper + task.constant), OPTIMAL_ABSOLUTE * task.energy)
    if visible and termination == Status.OPTIMAL:
        # Exact evaluation of the best masks replaces the allowance.
        cut = upper + 2.0 * charge
        leaves = search.collect(root, cut)
        if leaves:
            points = np.array([_weights(task, kept) for kept in leaves])
            proof = SearchProof(cut, charge, points)
            deviation = np.array([weights, *points], dtype=np.longdouble) - task.target
            errors = np.sum((deviation @ task.gram.astype(np.longdouble)) * deviation, axis=1)
            best = int(np.argmin(errors))
            weights = points[best - 1] if best else weights
    return RawSolve(
        weights=weights,
        termination=termination,
        proof=proof,
        dual=_dual(task, search),
        nodes=frontier.nodes,
        trace=tuple(frontier.trace),
    )


def lowest_diagonal(matrix: Float, seconds: float) -> Float:
    """A diagonal D ⪯ A that asks for little: zero where A is proven positive semidefinite, else negative entries.

    Rounding leaves stored Gram matrices with negative eigenvalues that are small beside the largest input, and need not
    be small beside the others.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        A.
    seconds : float
        Time for factorizations.
    """
    n = len(matrix)
    left, proof = max(seconds, AT_ONCE), PROOF_CUBIC * n**3
    if proof <= left and is_positive_semidefinite(matrix.copy()):
        return np.zeros(n)
    shifted = semidefinite_shift(matrix) if PROOFS * proof <= left else None
    if shifted is not None:
        return np.asarray(0.0 - shifted[1])
    # A diagonally dominant matrix is positive semidefinite.
    diagonal = np.diag(matrix)
    beside = (np.abs(matrix).sum(axis=1) - np.abs(diagonal)) * (1.0 + 4.0 * (n + 8) * UNIT)
    return np.asarray(0.0 - np.maximum(beside - diagonal, 0.0) * (1.0 + 4.0 * UNIT))


def _weights(task: Task[Support], kept: Bool) -> Float:
    """The original weights of the kept units."""
    return np.where(kept[task.allowed.structure.unit], task.allowed.original, 0.0)


def _dual(task: Task[Support], search: MaskSearch) -> BlockDual | None:
    """The root's dual point in the space of the weights, where units are single inputs."""
    n = len(task.target)
    if search.root_dual is None or len(task.allowed.structure.group) != n:
        return None
    order = task.allowed.structure.unit
    weights = task.allowed.original
    d = np.divide(search.d[order], weights**2, out=np.zeros(n), where=weights != 0)
    return BlockDual(search.root_dual[order] * weights, np.arange(n), np.diag(d))
