"""The tree that proves a lower end of units that rows keep or drop together, with refit, found anew below a cut."""

from __future__ import annotations

import math
import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.filters.transposed import counting, factor, factor_charge
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.log import LeafLog, TooLargeError
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.pruning.subset_tree import fix, settle
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Evidence
from layerbounds.search.filters.channel_choice import transposed_task
from layerbounds.search.shared.exact_choices import ExactChoices
from layerbounds.search.shared.reduction import Reduced, part_of
from layerbounds.search.shared.root import find_root
from layerbounds.search.shared.selection import Selection, make_selection
from layerbounds.search.shared.tree import KEPT, UnitNode, UnitSearch
from layerbounds.search.shared.unit_blocks import UnitBlocks, is_below

#: Nodes of one tree, and seconds.
MOST_NODES, MOST_SECONDS = 100_000, 120.0
#: What float64 may take off a bound, relative.
MARGIN = 1e-9
#: Roundings for each weight that a checker charges, as a share of the energy.
NOISE = 8.0
#: Inputs up to which checkers compute errors exactly, and seconds for that.
FEW, MOST_EXACT_SECONDS = 64, 10.0
#: Choices that are left where minorants are not improved.
FEW_CHOICES = 6
#: Shares of a minorant of which the numbers in single precision are tried.
SHARES = (1.0, 1.0 - 2.0**-22, 1.0 - 2.0**-18, 1.0 - 2.0**-14)
#: The largest weight of a unit that is not kept.
LARGEST = 1.0 - 2.0**-40


def unit_leaves(task: Task[Any], evidence: Evidence, lower: float) -> Parts:
    """The leaves of a depth-first tree over units, all of which reach ``lower``; nothing if it grows large.

    Parameters
    ----------
    task : Task
        Of one row or several.
    evidence : Evidence
        What the lower end was derived from.
    lower : float
        The claimed lower end without the constant.
    """
    if not isinstance(task.allowed, SharedSupport):
        allowed = SharedSupport(task.allowed.structure, task.targets, True, task.allowed.idle)
        task = Task(
            task.rows, task.gram, task.targets, task.constants, task.energy, task.live, allowed, raised=task.raised
        )  # fmt: skip
    control = Control(MOST_SECONDS, 0.0, MOST_NODES, 0, 1, threading.Event())
    selection = make_selection(task)
    try:
        return _Tree(selection, control, lower).run()
    except (TooLargeError, np.linalg.LinAlgError, ArithmeticError):
        return {}


def channel_leaves(task: Task[KeptRows], evidence: Evidence, lower: float) -> Parts:
    """The same for output channels that a metric binds, as units of another task; with the rows of that."""
    metric = task.metric
    assert metric is not None
    live = counting(metric)
    part = np.ascontiguousarray(metric[np.ix_(live, live)])
    rows = factor(task.gram, task.targets[live])
    charge = factor_charge(task.gram, task.targets[live], part, rows)
    parts = unit_leaves(transposed_task(task, part, rows, live), evidence, lower + charge)
    return {**parts, "rows": rows} if parts else {}


class _Tree(UnitSearch):
    def __init__(self, selection: Selection, control: Control, lower: float) -> None:
        super().__init__(selection, control)
        n, rows = selection.b.shape
        self.cut = lower * selection.factor**2
        #: What nodes have to reach, so that a checker finds that they do in spite of rounding.
        self.goal = self.cut * (1.0 + MARGIN) + NOISE * UNIT * n * rows * selection.energy
        self.log = LeafLog()
        #: By the object's identity: minorants, which live as long as this, and their numbers.
        self.minorants: dict[int, tuple[UnitBlocks, int]] = {}

    def run(self) -> Parts:
        found = find_root(self.selection, self.control)
        if found.minorant is None:
            return _exhausted(self.selection, self.cut)
        root = self.root(found)
        left = self.reduce(root)
        root.minorant = None if left is None else self._short(left, found.minorant)
        open_nodes = [(0, root)]
        for _ in range(MOST_NODES):
            if not open_nodes or self.control.remaining() <= 0:
                break
            open_nodes += self._expanded(*open_nodes.pop())
            if not open_nodes:
                parts = self.log.tensors()
                weights, values = parts.pop("z"), parts.pop("d")
                return {**parts, "weights": weights, "values": values}
        return {}

    def _expanded(self, k: int, node: UnitNode) -> list[tuple[int, UnitNode]]:
        """Bound a node, and close or divide it."""
        free = np.flatnonzero(node.status == 0)
        if not len(free):
            self.log.close(k, self._evidence(node))
            return []
        left = self.reduce(node)
        if left is None or node.minorant is None:
            raise ArithmeticError
        value = self.tighten(node, left, self.goal)
        if value >= self.goal:
            self.log.close(k, self._evidence(node))
            return []
        if self.last is None:
            raise ArithmeticError
        before, weights = node.status.copy(), node.z.copy()
        if fix(value, self.goal, self.group, node.room, node.status, self.saving, self.edge):
            number = self._evidence(UnitNode(before, node.room, weights, node.minorant))
            for i in np.flatnonzero(node.status != before):
                dropped, kept = self.log.split(k, int(i))
                k, other = (kept, dropped) if node.status[i] == 1 else (dropped, kept)
                self.log.close(other, number)
            settle(self.group, node.room, node.status)
            if not np.any(node.status == 0):
                return [(k, node)]
        free = np.flatnonzero(node.status == 0)
        branch = self._costliest(node, left)
        if node.status[branch] != 0:
            branch = int(free[np.argmax(self.saving[free])])
        children = [self._child(node, branch, choice) for choice in (-1, 1)]
        return list(zip(self.log.split(k, branch), children, strict=True))

    def improved(self, node: UnitNode, left: Reduced, point: Float) -> UnitBlocks | None:
        """As it is stored; none where few choices are left, which takes less room than another minorant."""
        free = np.bincount(self.group[left.free], minlength=len(self.capacity))
        if math.prod(map(math.comb, free.tolist(), node.room.tolist())) <= FEW_CHOICES:
            return None
        better = super().improved(node, left, point)
        return None if better is None else self._short(left, better)

    def _short(self, left: Reduced, minorant: UnitBlocks) -> UnitBlocks | None:
        """Blocks of free units in single precision, proven anew, where that is possible; all others are already."""
        both = np.concatenate([left.kept, left.free])
        part = np.ones(len(both))
        part[: len(left.kept)] = KEPT
        gram = part_of(self.gram, left.inputs, left.inputs)
        for share in SHARES:
            block = minorant.block.copy()
            block[left.free] = (block[left.free] * share).astype(np.float32)
            if is_below(gram, block, left.first, both, part):
                return minorant.replaced(block, self.size, left.free)
        return minorant

    def _evidence(self, node: UnitNode) -> int:
        """A node's weights, and its minorant."""
        minorant = node.minorant
        assert minorant is not None
        if id(minorant) not in self.minorants:
            self.minorants[id(minorant)] = minorant, self.log.minorant(self._entries(minorant))
        z = np.where(node.status == 0, np.clip(node.z, 1e-6, LARGEST), node.status == 1)
        return self.log.evidence(z, self.minorants[id(minorant)][1])

    def _entries(self, minorant: UnitBlocks) -> Float:
        """Lower triangles."""
        return np.concatenate([b[np.tril_indices(s)] for b, s in zip(minorant.block, self.size, strict=True)])


def _exhausted(selection: Selection, cut: float) -> Parts:
    """A tree whose leaves are bounded by the least error of all weights that are not dropped: of a singular matrix."""
    group, capacity, unit = selection.structure.group, selection.structure.capacity, selection.structure.unit
    strength = np.bincount(unit, weights=np.sum(selection.b**2, axis=1))
    exact = ExactChoices(selection.task, Control(math.inf, 0.0, None, 0, 1, threading.Event()))
    log, goal = LeafLog(), Fraction(cut) * Fraction(selection.unit)
    open_nodes = [(0, np.zeros(len(group), dtype=np.int8))]
    began = time.monotonic()
    while open_nodes and time.monotonic() < began + MOST_EXACT_SECONDS:
        k, status = open_nodes.pop()
        full = np.bincount(group[status == 1], minlength=len(capacity)) >= capacity
        status[(status == 0) & full[group]] = -1
        left = status >= 0
        excess = np.bincount(group[left], minlength=len(capacity)) > capacity
        inputs = np.flatnonzero(left[unit])
        # What is computed in float64 is the error of some weights, and not less than the least one.
        if len(inputs) <= FEW and (
            not np.any(excess) or (_error(selection, inputs) >= cut and exact.error(left) >= goal)
        ):
            log.close(k)
            continue
        free = np.flatnonzero((status == 0) & excess[group])
        if not len(free):
            return {}
        branch = int(free[np.argmax(strength[free])])
        for place, choice in zip(log.split(k, branch), (-1, 1), strict=True):
            child = status.copy()
            child[branch] = choice
            open_nodes.append((place, child))
    return {} if open_nodes else log.tensors()


def _error(selection: Selection, inputs: Int) -> float:
    """The error of weights on some inputs that are about the best."""
    part, b = selection.gram[np.ix_(inputs, inputs)], selection.b[inputs]
    root = np.sqrt(np.diag(part))
    weights = np.linalg.lstsq(part / root / root[:, None], b / root[:, None], rcond=None)[0] / root[:, None]
    return selection.energy - float(np.sum(weights * (2.0 * b - part @ weights)))
