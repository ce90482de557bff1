"""The tree that proves a lower end of pruning single inputs with refit, found anew below a known cut."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.log import LeafLog, TooLargeError, rounded
from layerbounds.kernels.factorization import cholesky
from layerbounds.kernels.pruning import subset_tree
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Evidence
from layerbounds.search.pruning.subset_search import CANDIDATES, Node, SubsetSearch

#: Nodes of one tree.
MOST_NODES = 40_000
#: What shorter points, and diagonals in single precision, may take off a bound, relative.
MARGIN = 1e-6
#: Inputs up to which errors are left to the checker's elimination in any case, and where nothing else will do.
EXACT, FEW = 4, 64
#: Work of all such eliminations, in multiplications.
MOST_WORK = 2 * 10**7
#: Smallest shares of the diagonal below which points are stored whole, and largest ones that are of no use.
SHORT, SINGULAR = 1e-7, 1e-8
#: The share of the energy from which on diagonals are stored in single precision.
SMALL = 1e-3
#: How far an error may be off that was computed in float64, as a share of the energy.
NOISE = 1e-12


def subset_leaves(task: Task[Support], evidence: Evidence, lower: float) -> Parts:
    """The leaves of a depth-first tree with the diagonal dual, all of which reach ``lower``; nothing if it grows large.

    Parameters
    ----------
    task : Task
        Of single inputs.
    evidence : Evidence
        What the lower end was derived from.
    lower : float
        The claimed lower end without the constant.
    """
    if not task.allowed.refit or len(task.allowed.structure.group) != len(task.gram):
        return {}
    try:
        return _Tree(task, lower).run()
    except (TooLargeError, np.linalg.LinAlgError, ArithmeticError):
        return {}


class _Tree:
    def __init__(self, task: Task[Support], lower: float) -> None:
        control = Control(math.inf, 0.0, MOST_NODES, 0, 1, threading.Event())
        self.task, self.search = task, SubsetSearch(task, control)
        self.cut = lower * self.search.factor**2
        # Single precision costs a share of the savings, which are of the size of the energy.
        self.log = LeafLog(short=self.cut > SMALL * self.search.energy)
        #: By the array's identity: diagonals as they were proven, and their numbers.
        self.minorants: dict[int, tuple[Float, int]] = {}
        self.open: list[tuple[int, Node]] = []
        self.work = 0

    def run(self) -> Parts:
        search = self.search
        self.open.append((0, search.root()))
        for _ in range(MOST_NODES):
            if not self.open:
                return self.log.tensors()
            k, node = self.open.pop()
            free = np.flatnonzero(node.status == 0)
            if not len(free):
                self._decide(k, node)
                continue
            if node.d is None:
                node.d = search.diagonal(node)
            if node.d is None or self._shares(node).max() < SINGULAR:
                if self._error(node) >= self.cut * (1.0 + MARGIN) + NOISE * search.energy:
                    self._leave(k, np.flatnonzero(node.status >= 0))
                    continue
                self._divide(k, node, int(free[np.argmax(np.abs(search.b[free]))]))
                continue
            value = self._bound(node)
            if value >= self.cut * (1.0 + MARGIN):
                self.log.close(k, self._evidence(node, search.point))
                continue
            k, branch = self._fix(k, node, value)
            free = np.flatnonzero(node.status == 0)
            if len(free) and (branch < 0 or node.status[branch] != 0):
                branch = int(free[np.argmax(search.saving[free])])
            if len(free):
                self._divide(k, node, branch)
            else:
                self.open.append((k, node))
        return {}

    def _divide(self, k: int, node: Node, branch: int) -> None:
        """Drop or keep an input."""
        dropped, kept = self.log.split(k, branch)
        self.open.append((kept, self.search.child(node, branch, True)))
        self.open.append((dropped, self.search.child(node, branch, False)))

    def _bound(self, node: Node) -> float:
        """The bound of a node, its diagonal improved where that is not enough."""
        search = self.search
        assert node.d is not None
        self._note(node)
        value = search.relax(node, node.d, node.state, math.inf)
        if value >= self.cut * (1.0 + MARGIN):
            return value
        value = search.retune(node, value, math.inf)
        self._note(node)
        return value

    def _note(self, node: Node) -> None:
        """Keep a node's diagonal as it was proven: kept inputs count with a millionth of their entry."""
        assert node.d is not None
        if id(node.d) not in self.minorants:
            number = self.log.minorant(np.where(node.status == 1, 1e-6 * node.d, node.d))
            self.minorants[id(node.d)] = node.d, number

    def _fix(self, k: int, node: Node, value: float) -> tuple[int, int]:
        """Fix inputs whose other choice reaches the cut, a leaf for each; the node's place, and where to branch."""
        search, before = self.search, node.status.copy()
        assert node.d is not None
        arguments = node.d, node.status, search.point, search.work, int(search.out[0]), search.index, search.solution
        branch = int(subset_tree.pick(*arguments, CANDIDATES))
        edges = search.group, node.free, node.status, search.saving, search.edge
        if subset_tree.fix(value, self.cut * (1.0 + MARGIN), *edges):
            number = self._evidence(replace(node, status=before), search.point)
            for i in np.flatnonzero(node.status != before):
                dropped, kept = self.log.split(k, int(i))
                k, other = (kept, dropped) if node.status[i] == 1 else (dropped, kept)
                self.log.close(other, number)
            search.settle(node, before)
        return k, branch

    def _error(self, node: Node) -> float:
        """The least error of all weights that are not dropped, as computed."""
        search = self.search
        left = np.flatnonzero(node.status >= 0)
        weights = np.zeros(search.size)
        weights[left] = np.linalg.lstsq(search.gram[np.ix_(left, left)], search.b[left], rcond=None)[0]
        deviation = weights - search.target
        return float(deviation @ search.gram @ deviation)

    def _decide(self, k: int, node: Node) -> None:
        """A node at which everything is decided: its best weights, or their error if these are few."""
        search = self.search
        kept = np.flatnonzero(node.status == 1)
        if len(kept) <= EXACT:
            self._leave(k, kept)
            return
        weights = np.zeros(search.size)
        block = np.ascontiguousarray(search.gram[np.ix_(kept, kept)])
        factor = cholesky(block)
        if factor is None:
            self._leave(k, kept)
            return
        wide = search.gram.astype(np.longdouble)
        for _ in range(3):
            rest = wide[kept] @ (search.target - weights).astype(np.longdouble)
            weights[kept] += scipy.linalg.cho_solve((factor, True), rest.astype(np.float64), check_finite=False)
        delta = certified_minorant(block, 0.5 * interior_start(block))
        deviation = (weights - search.target).astype(np.longdouble)
        error, size = deviation @ wide @ deviation, np.abs(deviation) @ np.abs(wide) @ np.abs(deviation)
        lost = np.sum((wide[kept] @ deviation) ** 2 / delta) if np.all(delta > 0) else math.inf
        # The cut is a difference that was rounded.
        if not error - 2.0 * lost - 1e-17 * size > self.cut * (1.0 + 1e-15):
            self._leave(k, kept)
            return
        d = np.ones(search.size)
        d[kept] = delta
        self.log.close(k, self.log.evidence(rounded(weights) / search.factor, self.log.minorant(d)))

    def _evidence(self, node: Node, point: Float) -> int:
        """A node's dual point, whole where its shortening could cost much."""
        z = rounded(point) if self._shares(node).min() > SHORT else point
        return self.log.evidence(z / self.search.factor, self.minorants[id(node.d)][1])

    def _leave(self, k: int, left: Int) -> None:
        """Leave a node, at which so many inputs are not dropped, to the checker's elimination."""
        self.work += max(len(left), 4) ** 3
        if len(left) > FEW or self.work > MOST_WORK:
            raise TooLargeError
        self.log.close(k)

    def _shares(self, node: Node) -> Float:
        """The shares that the diagonal has of that of the Gram matrix."""
        assert node.d is not None
        left = node.status >= 0
        return np.asarray(node.d[left] / np.diag(self.search.gram)[left])
