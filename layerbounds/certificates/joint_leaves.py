"""The tree that proves a lower end of levels on supports: units dropped or kept, levels below one or not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.log import LARGEST, SMALLEST, LeafLog, TooLargeError, below
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.joint import relaxation, relaxed_bound, relaxed_node, smoothing
from layerbounds.search.joint.root import Minorant
from layerbounds.search.joint.tree import EVERY, Node, children
from layerbounds.search.joint.units import JointUnits

#: Rounds of relaxation and fixing at a node, and Newton steps of the first one and of the others.
ROUNDS, STEPS, MORE_STEPS = 4, 4, 2
#: Fewer choices than that are not worth a dual point of their own.
FEWEST = 3
#: What rounding may take off a bound, relative, and off a diagonal, as a share of the Gram matrix's.
MARGIN, MARGIN_OF_DIAGONALS = 1e-9, 1e-12


class JointTree:
    """A depth-first tree, all leaves of which reach the cut.

    Parameters
    ----------
    units : JointUnits
    minorant : Minorant
    root : Node
    cut : float
        In the units of the search.
    levels : ndarray of shape (n, levels)
        The sorted levels of each weight in the problem's units, as checkers number them.
    """

    def __init__(self, units: JointUnits, minorant: Minorant, root: Node, cut: float, levels: Float) -> None:
        self.stack, self.failed = [(0, root.copy(0), 0.0)], False
        n, groups = units.size, len(units.capacity)
        self.units, self.minorant, self.log = units, minorant, LeafLog()
        self.cut = cut * (1.0 + MARGIN)
        gram, norm, shift, *rest = minorant.layer
        # Diagonals are stored less the shift.
        self.layer = (gram, norm, np.zeros(n), *rest)
        self.sizes = np.abs(gram)
        self.deducted = shift + MARGIN_OF_DIAGONALS * np.diag(gram)
        #: Where each value of the search stands among the levels, and the values as points hold them.
        own = units.values / units.factor
        self.place = np.stack([np.searchsorted(row, mine) for row, mine in zip(levels, own, strict=True)])
        largest = float(np.max(np.abs(own), initial=0.0))
        self.kind = np.float32 if SMALLEST < largest < LARGEST else np.float64
        self.own, self.short = own, own.astype(self.kind)
        self.costs = relaxed_node.make_costs(n, len(units.group), groups)
        self.mean, self.var, self.spread = np.empty(n), np.empty(n), np.empty(n)
        self.share = np.empty(len(units.group))
        self.work, self.inverse, self.tuned = np.empty((n, n)), np.empty((n, n)), np.empty(n)
        #: The number of some evidence.
        self.first = -1
        #: By the array's identity: the array, the diagonal as it is stored, and its number, −1 where it has none yet.
        self.diagonals: dict[int, list[Any]] = {}

    def run(self, most: int) -> Parts:
        """Go on for so many nodes; the leaves, once there are all of them, nothing before, or if they are too many."""
        try:
            for _ in range(0 if self.failed else most):
                if not self.stack:
                    return self.log.tensors()
                k, node, known = self.stack.pop()
                self.stack += self._expand(k, node, known)
        except (TooLargeError, ArithmeticError):
            self.failed = True
        return {}

    def _expand(self, k: int, node: Node, known: float) -> list[tuple[int, Node, float]]:
        """Bound a node, fix what reaches the cut, branch."""
        if not relaxed_node.settle(self.layer, node.lists, node.x):
            self._leave(k, node)
            return []
        for turn in range(ROUNDS):
            left = int(np.count_nonzero(self._undecided(node)))
            value, point = self._relax(node, left, known, STEPS if turn == 0 else MORE_STEPS)
            known = max(known, value)
            if value < self.cut and turn == 0 and node.age >= EVERY:
                node.age = 0
                reached, kept = value, node.d
                if self._improve(node):
                    value, point = self._relax(node, left, known, MORE_STEPS)
                    if value <= reached:
                        node.d = kept
                        value, point = self._relax(node, left, known, 0)
                known = max(known, value)
            if value >= self.cut:
                self.log.close(k, self._evidence(node, point))
                return []
            if left == 0:
                # The checker computes its error exactly.
                self.log.close(k)
                return []
            before = node.copy(node.age)
            d = self._diagonal(node)[1]
            if relaxed_bound.tighten(self.layer, node.lists, d, point, self.costs, value, self.cut) < FEWEST:
                node = before
                break
            k = self._fix(k, before, node, point)
            if not relaxed_node.settle(self.layer, node.lists, node.x):
                self._leave(k, node)
                return []
            if int(np.count_nonzero(self._undecided(node))) == left:
                break
        branch = self._pick(node)
        if branch < 0:
            return [(k, node, known)]
        one, other = children(self.units, node, branch)
        u = self.units.unit[branch]
        if node.status[u] == 0:
            sides = self.log.split(k, int(u))
        else:
            first = min(
                j for j in range(self.units.count[branch])
                if (other.zero_ok[branch] if j == self.units.zero[branch] else other.first[branch] <= j)
            )  # fmt: skip
            sides = self.log.split(k, branch, int(self.place[branch, first]))
        return [(sides[1], other, known), (sides[0], one, known)]

    def _undecided(self, node: Node) -> Bool:
        """Which inputs may take several values (`layerbounds.kernels.joint.relaxed_node.undecided`)."""
        inside = (node.first < self.units.zero) & (self.units.zero < node.last)
        return node.last - node.first + 1 - inside + node.zero_ok >= 2

    def _pick(self, node: Node) -> int:
        """Where to branch (`layerbounds.kernels.joint.relaxation.pick`)."""
        smoothing.variances(self.layer, node.lists, self.mean, self.var, self.share, self.spread)
        score = self.spread * self.minorant.pivot * np.where(node.status[self.units.unit] == 0, 1.0, 0.5)
        score[~self._undecided(node)] = -1.0
        best = int(np.argmax(score))
        return best if score[best] >= 0.0 else -1

    def _relax(self, node: Node, left: int, known: float, steps: int) -> tuple[float, Float]:
        """The bound of a node at a point of short numbers, and that point."""
        gap = max(self.cut - known, 1e-3 * self.cut)
        d = self._diagonal(node)[1]
        smoothing.ascend_smoothed(
            self.layer, node.lists, d, node.x, self.costs, relaxation.SMOOTH * gap / math.sqrt(max(left, 1)), steps,
            known, 0.01 * gap, self.cut, node.price, self.mean, self.var, self.share, self.work,
        )  # fmt: skip
        short = (node.x / self.units.factor).astype(self.kind)
        hit = self.short == short[:, None]
        exact = self.own[np.arange(len(short)), np.argmax(hit, axis=1)]
        point = np.where(hit.any(axis=1), exact, short) * self.units.factor
        value = float(relaxed_bound.bound_at(self.layer, node.lists, d, point, self.costs)) - self._lost(node, d, point)
        if not math.isfinite(value):
            raise ArithmeticError
        return value, point

    def _lost(self, node: Node, d: Float, point: Float) -> float:
        """What checkers deduct for rounding (docs/certificates.md), or a little more."""
        values, away = self.units.values, np.abs(point - self.units.target)
        size = self.sizes @ away
        far = np.maximum(np.maximum(np.abs(values[:, 0] - point), np.abs(values[:, -1] - point)), np.abs(point))
        far[~self._undecided(node)] = 0.0
        much = 2.0 * float(away @ size) + float(far @ (2.0 * size + np.abs(d) * far))
        return 17.0 * (len(d) + 16) * UNIT * much

    def _diagonal(self, node: Node) -> list[Any]:
        """A node's diagonal."""
        found = self.diagonals.get(id(node.d))
        if found is None:
            stored = below(node.d - self.deducted).astype(np.float64)
            found = self.diagonals[id(node.d)] = [node.d, stored, -1]
        return found

    def _improve(self, node: Node) -> bool:
        """A better diagonal for a node, where it is one."""
        if relaxation.improve(
            self.minorant.layer, self.minorant.shifted, node.lists, node.d, relaxation.TREE_MU, self.mean, self.var,
            self.share, self.tuned, self.work, self.inverse,
        ):  # fmt: skip
            node.d = self.tuned.copy()
            return True
        return False

    def _evidence(self, node: Node, point: Float) -> int:
        """A node's dual point."""
        entry = self._diagonal(node)
        if entry[2] < 0:
            entry[2] = self.log.minorant(entry[1])
        number = self.log.evidence((point / self.units.factor).astype(self.kind), entry[2])
        self.first = max(self.first, number)
        return number

    def _leave(self, k: int, node: Node) -> None:
        """Close a node at which nothing is allowed: any evidence will do."""
        if self.first < 0:
            self.first = self._evidence(node, 0.0 * self.units.target)
        self.log.close(k, self.first)

    def _fix(self, k: int, before: Node, node: Node, point: Float) -> int:
        """Divide a node once for everything that has been dropped, which is a leaf; where what is left is found.

        Lists become such as levels between two ends, and zero where a unit may be dropped.
        """
        units, number = self.units, self._evidence(before, point)

        def part(axis: int, at: int, second: bool) -> None:
            nonlocal k
            sides = self.log.split(k, axis, at)
            k = sides[second]
            self.log.close(sides[not second], number)

        for own in np.flatnonzero((before.status == 0) & (node.status == 1)).tolist():
            part(own, -1, True)
        for i in range(units.size):
            u, zero = int(units.unit[i]), int(units.zero[i])
            some = node.first[i] <= node.last[i]
            if units.single and before.zero_ok[i] and not node.zero_ok[i]:
                part(u, -1, True)
            elif units.single and node.zero_ok[i] and not some:
                if before.first[i] <= before.last[i]:
                    part(u, -1, False)
                continue
            elif not units.single and node.first[i] < zero < node.last[i]:
                node.zero_ok[i] = before.zero_ok[i]
            if node.zero_ok[i] and some:
                node.first[i], node.last[i] = min(node.first[i], zero + 1), max(node.last[i], zero - 1)
            low, high = _ends(before, i, zero if before.zero_ok[i] and (node.zero_ok[i] or not units.single) else -1)
            least, most = _ends(node, i, zero if node.zero_ok[i] else -1)
            if least > high:
                # Nothing is left.
                continue
            if least > low:
                part(i, int(self.place[i, least]), True)
            if most < high:
                part(i, int(self.place[i, most + 1]), False)
        return k


def _ends(node: Node, i: int, zero: int) -> tuple[int, int]:
    """The first and the last value of an input, zero among them where its place is given."""
    first, last = int(node.first[i]), int(node.last[i])
    if zero < 0:
        return first, last
    return (min(first, zero), max(last, zero)) if first <= last else (zero, zero)
