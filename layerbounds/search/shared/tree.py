"""Best-first branch and bound over units with the block perspective dual of several rows (docs/shared-engine.md)."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.objective import entry_sizes
from layerbounds.kernels.factorization import UNIT, is_finite_factor
from layerbounds.kernels.pruning.subset_tree import fix, settle
from layerbounds.kernels.shared import relaxation
from layerbounds.proofs import Control
from layerbounds.search.frontier import Forkable
from layerbounds.search.shared.choices import choice_bound
from layerbounds.search.shared.drops import DropBasis
from layerbounds.search.shared.reduction import Flags, Reduced, part_of, reduce
from layerbounds.search.shared.root import Root
from layerbounds.search.shared.selection import Selection
from layerbounds.search.shared.small_nodes import SmallNodes
from layerbounds.search.shared.unit_blocks import UnitBlocks, is_below, raise_blocks

#: Rounds of the weights at a node, before and after its minorant is improved.
FIRST_ROUNDS, ROUNDS = 3, 4
#: Blocks of kept units count with this fraction, a power of two: it rounds nothing.
KEPT = 2.0**-20
#: Factors tried for the proof of an improved minorant.
SHRINKS = (1.0, 0.97, 0.8)
#: Nodes between two trials of the units of largest savings.
TRIALS = 8
#: Units whose exclusion cost is estimated before branching.
CANDIDATES = 8
#: A round that gains less than this share of the distance to the cut is the last one.
STALL = 0.02
#: Power of the savings in a round's weights.
POWER = 0.75


@dataclass(eq=False)
class UnitNode:
    """A subproblem: units kept (1), dropped (−1), free (0); what groups may still keep; weights; a minorant."""

    status: Flags
    room: Int
    z: Float
    minorant: UnitBlocks | None


class UnitSearch(Forkable):
    """Expander for units within the capacities of their groups, with refit, of one or several rows.

    Parameters
    ----------
    selection : Selection
    control : Control
    basis : DropBasis, optional
        For nodes in which few units are still to be dropped.
    """

    read_only: ClassVar[frozenset[str]] = frozenset(
        {"gram", "b", "order", "first", "size", "group", "capacity", "norm"}
    )

    def __init__(self, selection: Selection, control: Control, basis: DropBasis | None = None) -> None:
        self.selection, self.control = selection, control
        structure = selection.structure
        self.unit = structure.unit
        #: Inputs by units: all arrays over inputs are in this order.
        self.order = np.argsort(structure.unit, kind="stable")
        self.gram = np.ascontiguousarray(selection.gram[np.ix_(self.order, self.order)])
        self.b = np.ascontiguousarray(selection.b[self.order])
        self.size = np.bincount(structure.unit, minlength=len(structure.group)).astype(np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.size)]).astype(np.int64)
        self.group, self.capacity = structure.group, structure.capacity
        self.incumbent = selection.incumbent
        n, rows = self.b.shape
        self.norm = entry_sizes(self.gram) * (1.0 + 1e-9)
        # HWᵀ and its trace are rounded too: the energy is lowered, and charges begin with a reach.
        self.reach = 2.0 * selection.precision / UNIT * (np.abs(selection.rows[:, self.order]) @ self.norm)
        self.energy = selection.energy
        self.low_energy = selection.energy - 2.0 * selection.rounding
        self.gamma = 4.0 * (n + rows + 16) * UNIT
        self.excluded = math.inf
        self.expanded = 0
        #: A minorant of all inputs.
        self.every: UnitBlocks | None = None
        self.small = SmallNodes(selection, self.gram, self.size, basis)
        #: Point and factor of the last relaxation.
        self.last: Float | None = None
        self.work: Float = np.zeros((0, 0))
        units = len(self.size)
        self.point = np.zeros((n, rows))
        self.saving = np.zeros(units)
        self.edge = np.zeros((len(self.capacity), 2))

    def reduce(self, node: UnitNode) -> Reduced | None:
        """The node without its kept units; None where they are dependent."""
        return reduce(self.gram, self.b, self.first, self.size, self.group, node.status)

    # Bounds

    def relax(self, node: UnitNode, left: Reduced, cut: float, rounds: int) -> tuple[float, Float | None]:
        """Best bound of some rounds z ← min(1, θ z s^¾), as computed, and its point on the free inputs."""
        minorant = node.minorant
        assert minorant is not None
        free, first, group = left.free, left.place, self.group[left.free]
        z = np.clip(node.z[free], 0.02, 1.0)
        best, point = -math.inf, None
        work, energy, scratch = np.empty_like(left.gram), np.zeros(len(free)), np.empty(len(free))
        for done in range(rounds):
            if done and self.control.remaining() <= 0:
                break
            relaxation.penalised(left.gram, first, free, minorant.block, z, work)
            factor, info = lapack.dpotrf(work.T, lower=0, clean=0, overwrite_a=1)
            if info != 0 or not is_finite_factor(factor):
                break
            u = np.ascontiguousarray(lapack.dpotrs(factor, left.b, lower=0)[0])
            relaxation.energies(u, first, free, minorant.block, energy)
            saving = energy / (z * z)
            total = relaxation.best_sum(saving, group, node.room, scratch, self.edge)
            value = self.energy - left.saved - float(np.vdot(u, left.b)) + float(np.sum(energy / z)) - total
            gain = value - best
            if value > best:
                best, point = value, u
                node.z[free] = z
                self.work = factor
            if value >= cut or gain < STALL * (cut - best):
                break
            z = z * np.maximum(saving, 1e-300) ** POWER
            relaxation.rescale(z, group, node.room, scratch)
        return best, point

    def bound(self, node: UnitNode, left: Reduced, point: Float | None) -> float:
        """Proven bound at a point of the free inputs; savings and edges of the free units, rounded up, are kept."""
        minorant = node.minorant
        both = np.concatenate([left.kept, left.free])
        u = left.all_inputs(point)
        if minorant is None:
            return 0.0
        gram = part_of(self.gram, left.inputs, left.inputs)
        product = gram @ u
        norm, b = self.norm[left.inputs], self.b[left.inputs]
        size = norm @ np.abs(u) + self.reach
        part = np.ones(len(both))
        part[: len(left.kept)] = KEPT
        saving, terms = np.zeros(len(both)), np.zeros(1)
        pulled = relaxation.charged_savings(
            u, product, b, norm, size, left.first, both, minorant.block, minorant.inverse, minorant.smallest, part,
            self.gamma, saving, terms,
        )  # fmt: skip
        kept = float(saving[: len(left.kept)].sum())
        self.saving[both] = saving
        chosen = relaxation.best_sum(
            saving[len(left.kept) :], self.group[left.free], node.room, np.empty(len(left.free)), self.edge
        )
        total = kept + chosen
        value = self.low_energy - float(np.vdot(u, product)) + pulled
        charge = self.energy + float(size @ size) + float(terms[0]) + total
        self.point[:] = 0.0
        self.point[left.inputs] = u
        return float(value - total - 2.0 * self.gamma * charge)

    def set_bound(self, kept: Bool) -> float:
        """Proven bound of one choice of units."""
        units = np.where(kept, 1, -1).astype(np.int8)
        node = UnitNode(units, np.zeros_like(self.capacity), np.ones(len(kept)), self.every)
        left = self.reduce(node)
        own = self.bound(node, left, None) if left is not None and node.minorant is not None else 0.0
        return own if own >= (1.0 - 1e-7) * self.incumbent.value else max(own, self.exact_bound(kept))

    def exact_bound(self, kept: Bool) -> float:
        """The same in extended precision."""
        selection = self.selection
        inputs = np.flatnonzero(kept[self.unit])
        return choice_bound(selection.gram, selection.rows, inputs) - selection.rounding

    # The root

    def root(self, found: Root) -> UnitNode:
        """The whole problem with the minorant of its root bound."""
        self.every = found.minorant
        node = UnitNode(np.zeros(len(self.size), np.int8), self.capacity.copy(), found.z.copy(), found.minorant)
        settle(self.group, node.room, node.status)
        return node

    # Nodes

    def expand(self, node: UnitNode, bound: float, cut: float) -> tuple[float, list[UnitNode]]:
        """Bound, fix, round, branch."""
        self.expanded += 1
        free = np.flatnonzero(node.status == 0)
        if len(free) and (closed := self.small.exhaust(node.status, node.room, cut, self.set_bound)) is not None:
            return max(bound, closed), []
        left = self.reduce(node)
        if not len(free):
            self.selection.offer(node.status == 1)
            return max(bound, self.set_bound(node.status == 1)), []
        now = 0.0
        self.saving[free] = np.maximum(self.saving[free], 0.0)
        known = left is not None and node.minorant is not None
        if known:
            assert left is not None
            now = self.tighten(node, left, cut)
            known = self.last is not None
            if now < cut and (closed := self._enumerated(node, left, now, cut)) is not None:
                return max(bound, now, closed), []
        else:
            self.saving = np.add.reduceat(np.sum(self.b**2, axis=1), self.first[:-1])
        value = max(bound, now)
        if value >= cut:
            return value, []
        if self.expanded % TRIALS == 1:
            self._round(node)
        if known and fix(now, cut, self.group, node.room, node.status, self.saving, self.edge):
            # What was cut off is only known to reach the cut.
            self.excluded = min(self.excluded, cut)
            settle(self.group, node.room, node.status)
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            return value, [node]
        branch = self._branch(node, free) if not known or left is None else self._costliest(node, left)
        return value, [self._child(node, branch, choice) for choice in (-1, 1)]

    def tighten(self, node: UnitNode, left: Reduced, cut: float) -> float:
        """Proven bound of a node, whose minorant is improved once where that does not reach the cut."""
        value, point = self.relax(node, left, cut, FIRST_ROUNDS)
        self.last = point
        if point is None or value >= cut:
            return self.bound(node, left, point)
        better = self.improved(node, left, point)
        if better is None:
            return self.bound(node, left, point)
        old, z, factor = node.minorant, node.z.copy(), self.work
        node.minorant = better
        new, other = self.relax(node, left, cut, ROUNDS)
        if other is None or new < value:
            node.minorant, node.z, other, self.work = old, z, point, factor
        self.last = other
        return self.bound(node, left, other)

    def _enumerated(self, node: UnitNode, left: Reduced, now: float, cut: float) -> float | None:
        """Proven bound of a node from its sets within the gap, None where these are too many."""
        if len(self.capacity) > 1:
            return None
        price = 0.5 * (self.edge[0, 0] + self.edge[0, 1])
        gap = (cut - now) * (1.0 + 1e-12) + 32.0 * UNIT * self.energy
        saving, floor = self.saving[left.free] - price, self.low_energy - left.saved
        return self.small.enumerate(node.status, int(node.room[0]), left, saving, gap, floor, cut, self.set_bound)

    def improved(self, node: UnitNode, left: Reduced, point: Float) -> UnitBlocks | None:
        """A minorant that was improved for a point of the free inputs; None where none is proven."""
        minorant = node.minorant
        assert minorant is not None
        block = None
        with contextlib.suppress(np.linalg.LinAlgError):
            block = raise_blocks(left, minorant, self.size, node.z[left.free], point)
        if block is None:
            return None
        both = np.concatenate([left.kept, left.free])
        part = np.ones(len(both))
        part[: len(left.kept)] = KEPT
        gram = part_of(self.gram, left.inputs, left.inputs)
        for shrink in SHRINKS:
            part[len(left.kept) :] = shrink
            if is_below(gram, block, left.first, both, part):
                block[left.free] *= shrink
                return minorant.replaced(block, self.size, left.free)
        return None

    def _branch(self, node: UnitNode, free: Int) -> int:
        z = np.clip(node.z[free], 0.0, 1.0 - 1e-9)
        return int(free[np.argmax(self.saving[free] * z * (1.0 - z))])

    def _costliest(self, node: UnitNode, left: Reduced) -> int:
        """The free unit whose exclusion is estimated to cost most: tr(V_gᵀ[(K⁻¹)_gg]⁻¹V_g)(1 − z_g)."""
        first = left.place
        z = node.z[left.free]
        score = np.where(node.status[left.free] == 0, self.saving[left.free] * z * z * (1.0 - z), -1.0)
        candidates = np.argsort(-score, kind="stable")[:CANDIDATES]
        candidates = candidates[score[candidates] >= 0.0]
        columns = np.concatenate([np.arange(first[k], first[k + 1]) for k in candidates])
        unit = np.zeros((len(left.gram), len(columns)), order="F")
        unit[columns, np.arange(len(columns))] = 1.0
        half = lapack.dtrtrs(self.work, unit, lower=0, trans=1, overwrite_b=1)[0]
        assert self.last is not None
        cost = np.zeros(len(candidates))
        relaxation.exclusion_costs(np.ascontiguousarray(half.T), first, candidates, self.last, cost)
        return int(left.free[candidates[np.argmax(cost * (1.0 - z[candidates]))]])

    def _round(self, node: UnitNode) -> None:
        """Try the units of largest savings."""
        kept = node.status == 1
        for g in np.unique(self.group[node.status == 0]):
            free = np.flatnonzero((node.status == 0) & (self.group == g))
            kept[free[np.argsort(-self.saving[free], kind="stable")[: node.room[g]]]] = True
        self.selection.offer(kept)

    def _child(self, node: UnitNode, branch: int, choice: int) -> UnitNode:
        child = UnitNode(node.status.copy(), node.room.copy(), node.z.copy(), node.minorant)
        child.status[branch] = choice
        child.room[self.group[branch]] -= choice == 1
        settle(self.group, child.room, child.status)
        return child
