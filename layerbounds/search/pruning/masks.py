"""Masks as a binary quadratic problem over units, by branch and bound with a diagonal dual.

The mathematics and the rounding are in docs/pruning-bounds.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.masks.form import MaskForm
from layerbounds.bounds.minorants.diagonal import certified_minorant, maximize_minorant
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.pruning.masks import descend_mask, relax_mask
from layerbounds.proofs import Control
from layerbounds.search.frontier import Forkable, Incumbent
from layerbounds.search.pruning.mask_root import AT_ONCE, centre_diagonal, lowest_diagonal

Flags = npt.NDArray[np.int8]

#: Moves of the relaxation at the root and at other nodes, and between two looks at the clock, per unit.
ROOT_MOVES, MOVES, CHUNK = 200, 12, 4
#: Re-weightings of the root's diagonal.
ROUNDS = 3
#: Multiplications of the local search between two looks at the clock.
DESCENT_WORK = 3e7
#: Masks of fewer units are improved at every node, of more at every so many.
OFTEN, SELDOM = 100, 8
#: Units from which on the best mask's are exchanged at random, for a share of the time that is left.
KICKED, KICKS = 250, 0.1
#: Seconds per cubed number of units that a Newton step of the diagonal takes, its proof included.
NEWTON_CUBIC = 3e-10
#: The same for the diagonal where Newton's method starts; small roots get it in any case.
INTERIOR_CUBIC = 2.5e-10
#: Factorizations in a Newton step and what goes with it, where the time of one is known.
NEWTON_WORK = 10.0
#: How near to the best mask the relaxation of a large one starts.
NEAR = 0.6
#: Units from which on the root's diagonal begins with steps towards a centre, and the share of the time left for them.
CENTRED, CENTRE_SHARE = 100, 0.5
#: Share of the time limit for the first incumbents.
FIRST = 0.3
#: Masks within the rounding allowance of the best one, and nodes that their collection may cost.
MANY_LEAVES, COLLECT_NODES = 5000, 20000


@dataclass(frozen=True, eq=False)
class WideStart:
    """A diagonal near a good minorant of a large form, and the seconds of one factorization of its size."""

    d: Float
    seconds: float


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
    """Expander for masks: binary z_g = 1 for a kept unit, f = zᵀAz − 2βᵀz + c.

    Parameters
    ----------
    form : MaskForm
    control : Control
    starts : sequence of ndarray of bool, shape (units,)
        Masks from which the first incumbents are sought.
    wide : WideStart or None
        Where the root of a large form begins.
    """

    def __init__(
        self, form: MaskForm, control: Control, starts: Sequence[Bool] = (), wide: WideStart | None = None
    ) -> None:
        self.form, self.control, self.starts, self.wide = form, control, starts, wide
        self.a, self.beta, self.energy = form.a, form.beta, form.energy
        self.group, self.capacity = form.group, form.capacity
        units = len(self.beta)
        #: Rounding of A, β and the energy, and of a bound: every term of either is below the form's size.
        self.allowance = 4.0 * (units + 32) * UNIT * form.size + form.off
        self.incumbent = Incumbent(max(self.energy, 0.0), np.zeros(units))
        self.excluded = math.inf
        self.d = np.zeros(units)
        self.root_bound = 0.0
        self.root_dual: Float | None = None
        #: Masks that were reached with nothing free, while they are collected.
        self.leaves: list[Bool] | None = None
        self.rounded = 0
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
        """What was given and nothing kept, each with local search as long as there is time."""
        # A node limit has to give the same result on every machine.
        spared = (1.0 - FIRST) * self.control.time_limit if self.control.node_limit is None else 0.0
        for number, start in enumerate([*self.starts, np.zeros(len(self.group), dtype=bool)]):
            if number == 0 or self.control.remaining() > spared:
                self.offer(start.copy(), spared)

    def kick(self, channel: int) -> None:
        """Exchange some units of the best mask at random and descend again, for a share of the time."""
        units, spared = len(self.group), (1.0 - KICKS) * self.control.remaining()
        if units < KICKED or not self.timed:
            return
        random = np.random.default_rng([self.control.seed, channel])
        while self.control.remaining() > spared:
            kept = self.incumbent.weights > 0
            moved = random.integers(units, size=int(random.integers(4, 24)))
            # Units leave, and units of the same groups come.
            leaving = np.unique(moved[kept[moved]])
            coming = [self._other(group, kept, random) for group in self.group[leaving]]
            kept[leaving] = False
            kept[[unit for unit in coming if unit >= 0]] = True
            self.offer(kept, spared)

    def _other(self, group: int, kept: Bool, random: np.random.Generator) -> int:
        """A dropped unit of a group, −1 where there is none."""
        others = np.flatnonzero(~kept & (self.group == group))
        return int(random.choice(others)) if len(others) else -1

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
        status[self.form.idle] = -1
        node = MaskNode(status, self.capacity.copy(), np.zeros(units))
        self._settle(node)
        free = np.flatnonzero(node.status == 0)
        block = np.ascontiguousarray(self.a[np.ix_(free, free)])
        first = INTERIOR_CUBIC * len(free) ** 3
        lowest = lowest_diagonal(block, self.control.remaining() if self.timed else math.inf)
        self.d[free] = lowest
        if self.wide is not None and len(free):
            found = certified_minorant(block, self.wide.d[free])
            self.d[free] = found if np.any(found) else lowest
        if self.wide is not None or len(free) >= CENTRED:
            # The relaxation of a large mask takes long from nothing.
            share = (self.capacity / np.bincount(self.group, minlength=len(self.capacity)))[self.group]
            node.z = np.where(status == 0, NEAR * self.incumbent.weights + (1.0 - NEAR) * np.minimum(share, 1.0), 0.0)
            self._keep(node)
            centred = None if np.any(lowest) else self._centre(node, block, free)
            if centred is not None:
                self.d[free] = centred
                self._keep(node)
                return node
        best, step = self.d.copy(), NEWTON_CUBIC * len(free) ** 3
        weight = np.ones(len(free))
        for number in range(ROUNDS if len(free) else 0):
            late = self.control.remaining() <= (step if number else first if first > AT_ONCE else -1.0)
            if late and number:
                break
            if not late:
                start = self.d[free] if np.any(self.d > 0.0) else None
                found = maximize_minorant(block, weight, start, stop=self._stopper(step))
                # Zeros are what it returns where it proves nothing.
                self.d[free] = found if np.any(found) else lowest
            if self._keep(node):
                best = self.d.copy()
            weight = 0.5 * weight / weight.sum() + 0.5 * (node.z * (1 - node.z) + 1e-3)[free] / len(free)
        self.d = best
        return node

    @property
    def timed(self) -> bool:
        """Whether time decides what is done; a node limit has to give the same result on every machine."""
        return self.control.node_limit is None

    def _centre(self, node: MaskNode, block: Float, free: Int) -> Float | None:
        """A diagonal from steps towards a centre; None where there is no time for them."""

        def relax(d: Float) -> tuple[float, Float]:
            self.d[free] = d
            value, z = self._relax_root(node)
            return value, z[free]

        spared = (1.0 - CENTRE_SHARE) * self.control.remaining()
        before = self.d.copy()
        found = centre_diagonal(
            block, relax, self.incumbent.value, lambda: self.control.remaining() - spared if self.timed else math.inf
        )
        self.d = before
        return found

    def _keep(self, node: MaskNode) -> bool:
        """Relax the root with the present diagonal, which is proven; whether that is its best bound."""
        value, z = self._relax_root(node)
        if value <= self.root_bound:
            return False
        self.root_bound, self.root_dual = value, z
        return True

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
        self._round((node.status == 1) | inside)
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

    def _round(self, kept: Bool) -> None:
        """Offer a mask; of those of many units that are worse than the best one, only some are worth a local search."""
        self.rounded += 1
        if len(kept) < OFTEN or self.rounded % SELDOM == 1 or self.form.value(kept) < self.incumbent.value:
            self.offer(kept)

    def _largest(self, node: MaskNode) -> Bool:
        """The free units that the bound keeps: those of largest positive saving, ties broken by number."""
        index = np.flatnonzero((node.status == 0) & (self.saving > 0))
        order = index[np.lexsort((-self.saving[index], self.group[index]))]
        first = np.searchsorted(self.group[order], self.group[order])
        inside = np.zeros(len(self.group), dtype=bool)
        inside[order[np.arange(len(order)) - first < node.free[self.group[order]]]] = True
        return inside

    def collect(self, root: MaskNode, cut: float, most: int) -> list[Bool] | None:
        """All masks below a cut, up to what rounding may hide; None where they or their nodes are too many."""
        most = min(most, MANY_LEAVES)
        leaves: list[Bool] = []
        self.leaves = leaves
        stack = [root]
        for _ in range(COLLECT_NODES):
            if not stack:
                return leaves
            if self.control.remaining() <= 0 or len(leaves) > most:
                return None
            stack += self.expand(stack.pop(), 0.0, cut)[1]
        return None

    def _leaf(self, node: MaskNode) -> None:
        kept = node.status == 1
        if self.leaves is not None:
            self.leaves.append(kept)
        self.incumbent.offer(max(self.form.value(kept), 0.0), kept.astype(np.float64))

    def _settle(self, node: MaskNode) -> None:
        """Drop the free units of groups without room; one with room for all does not keep them, as dropping may pay."""
        node.status[(node.status == 0) & (node.free[self.group] <= 0)] = -1
