"""Best-first branch and bound over supports and levels of one channel (docs/joint-engine.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.bounds.objective import objective_interval
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.joint import relaxation, relaxed_node, smoothing
from layerbounds.proofs import Control
from layerbounds.search.frontier import Forkable, Frontier, Incumbent
from layerbounds.search.joint.deep import MOST_HIDDEN, WIDTHS, Deep, Part, Start
from layerbounds.search.joint.enumeration import EnumerationBasis, NodeLists, enumerate_node
from layerbounds.search.joint.incumbents import Neighbourhoods, places
from layerbounds.search.joint.root import Minorant
from layerbounds.search.joint.units import JointUnits

Flags = npt.NDArray[np.int8]

#: Levels of the tree between two improvements of the minorant.
EVERY = 3
#: Nodes between two descents from the relaxation's rounded point. Searches in large neighbourhoods of the best weights:
#: nodes between two of them under a node limit, their share of the time without one, and subsets of each.
ROUND, IMPROVE, SUBSET_SHARE, SUBSETS = 16, 128, 0.1, 20
#: Subsets for each input before the tree begins.
FIRST_SUBSETS = 20
#: Subsets between two looks at the clock.
CHUNK = 100
#: Nodes of about so many points are enumerated at first, with a budget; after a failure fewer, after a success with
#: less than a share of the budget more.
MOST_POINTS, BUDGET, FEWER, EASY, MORE = 1e11, 100_000, 0.25, 0.1, 2.0
#: Newton steps of a relaxation from which an enumeration starts.
SMOOTH_STEPS = 30
#: The whole problem is enumerated beside the tree up to so many inputs. What a node of the tree of 64 inputs counts in
#: nodes of it; it gets this much more of them than the tree where it has proven more, and where it has not.
MOST_INPUTS, TREE_NODE, AHEAD, BEHIND = 200, 3000.0, 1.5, 0.3
#: Up to so many inputs the weights that are left at a node are evaluated exactly, where cancellation asks for it.
EXACT = 16


@dataclass(eq=False)
class Node:
    """A subproblem.

    Attributes
    ----------
    first, last : ndarray of int64, shape (n,)
        Positions of the first and the last value other than zero of each input; none where they cross.
    zero_ok : ndarray of int8, shape (n,)
        Whether zero is allowed.
    status : ndarray of int8, shape (units,)
        1 kept, −1 dropped, 0 free.
    room : ndarray of int64, shape (groups,)
        Free units that may still be kept.
    d : ndarray of shape (n,)
        A proven minorant on the undecided inputs.
    x : ndarray of shape (n,)
        Where the parent's relaxation ended.
    price : ndarray of shape (groups,)
    age : int
        Levels since ``d`` was improved.
    """

    first: Int
    last: Int
    zero_ok: Flags
    status: Flags
    room: Int
    d: Float
    x: Float
    price: Float
    age: int

    @property
    def lists(self) -> tuple[Int, Int, Flags, Flags, Int]:
        """What kernels call a node."""
        return self.first, self.last, self.zero_ok, self.status, self.room

    def copy(self, age: int) -> Node:
        """The same subproblem with lists of its own."""
        return Node(
            self.first.copy(), self.last.copy(), self.zero_ok.copy(), self.status.copy(), self.room.copy(), self.d,
            self.x.copy(), self.price.copy(), age,
        )  # fmt: skip


def lists_of(node: Node) -> NodeLists:
    """The node for an enumeration."""
    return NodeLists(node.first, node.last, node.zero_ok.astype(bool), node.room)


def whole(units: JointUnits, d: Float) -> Node:
    """The node that is the whole problem."""
    return Node(
        np.zeros(units.size, dtype=np.int64),
        units.count - 1,
        np.ones(units.size, dtype=np.int8),
        np.zeros(len(units.group), dtype=np.int8),
        units.capacity.copy(),
        d,
        units.target.copy(),
        np.zeros(len(units.capacity)),
        0,
    )


class JointSearch(Forkable):
    """Expander for levels on a support.

    Parameters
    ----------
    units : JointUnits
    control : Control
    minorant : Minorant
        What is known about the Gram matrix.
    incumbent : Incumbent
    """

    read_only: ClassVar[frozenset[str]] = frozenset({"pivot"})

    def __init__(self, units: JointUnits, control: Control, minorant: Minorant, incumbent: Incumbent) -> None:
        self.units, self.control, self.minorant = units, control, minorant
        self.incumbent = incumbent
        self.excluded = math.inf
        self.expanded = 0
        self.neighbourhoods = Neighbourhoods(units, incumbent.weights, control.seed)
        self.layer = minorant.layer
        self.pivot = minorant.pivot
        self.tuned = np.empty(units.size)
        self.basis = EnumerationBasis(units) if units.single else None
        self.costs = relaxed_node.make_costs(units.size, len(units.group), len(units.capacity))
        self.work = np.empty((units.size, units.size))
        self.width = WIDTHS[0]
        shift = minorant.layer[2]
        self.shift = shift if shift.any() else None
        self.deep: Deep | None = None
        #: When it began, and the seconds that it took.
        self.started, self.deep_seconds = 0.0, 0.0
        #: Seconds for large neighbourhoods beside the tree.
        self.subset_seconds = 0.0
        self.goal: Callable[[], float] = lambda: math.inf
        #: Nodes with about so many points are enumerated.
        self.most_points = MOST_POINTS
        self.enumerating, self.enumerated = True, 0
        self.found = np.empty(units.size)

    def fork(self, number: int) -> Self:
        """The same search with work space of its own."""
        other = super().fork(number)
        other.deep = None
        other.costs = relaxed_node.make_costs(self.units.size, len(self.units.group), len(self.units.capacity))
        other.neighbourhoods = Neighbourhoods(self.units, self.incumbent.weights, self.control.seed + number)
        return other

    def offer(self, weights: Float) -> None:
        """Keep allowed weights where they are the best so far."""
        if self.units.error(weights) < self.incumbent.value:
            self.incumbent.offer(self.units.reached(weights), weights.copy())

    def round(self, weights: Float) -> None:
        """Descend from allowed weights."""
        self.neighbourhoods.place = places(self.units, weights)
        self._improve(0)

    def go_on(self, rounds: int) -> None:
        """Large neighbourhoods of the best weights."""
        for begin in range(0, rounds, CHUNK):
            if self.control.remaining() <= 0:
                break
            self.neighbourhoods.place = places(self.units, self.incumbent.weights)
            self._improve(min(CHUNK, rounds - begin))

    def _improve(self, rounds: int) -> None:
        if self.neighbourhoods.improve(rounds) < self.incumbent.value:
            self.offer(self.neighbourhoods.weights)

    def expand(self, node: Node, bound: float, cut: float) -> tuple[float, list[Node]]:
        """Bound, drop what reaches the cut, round, branch."""
        self.expanded += 1
        bound = self.go_deep(bound)
        if bound >= self.goal():
            return bound, []
        if self.expanded == 1:
            # Problems that are harder than that deserve good incumbents.
            self.go_on(self.units.size * FIRST_SUBSETS)
        value, branch, excluded, changed, points = relaxation.expand(
            self.layer, self.minorant.shifted, node.lists, node.d, self.tuned, node.x, node.price, self.pivot,
            bound, cut, node.age >= EVERY, self.found,
        )  # fmt: skip
        if excluded:
            self.excluded = min(self.excluded, cut)
        if changed:
            node.d = self.tuned.copy()
        if node.age >= EVERY:
            node.age = 0
        if branch == -1:
            return value, []
        if branch == -2:
            self.offer(node.x)
            units = self.units
            low = objective_interval(units.gram, units.target, node.x, 0 if units.size > EXACT else EXACT)[0]
            return max(value, low), []
        if points < self.most_points and self.basis is not None and self.enumerating:
            proven = self.enumerate(node, value, cut)
            if proven is not None:
                return max(value, proven), []
        if self.expanded % ROUND == 1:
            self.round(self.found)
        if self.control.node_limit is not None:
            if self.expanded % IMPROVE == 0:
                self.go_on(SUBSETS)
        elif self.subset_seconds < SUBSET_SHARE * self.control.elapsed():
            begin = self.control.elapsed()
            self.go_on(SUBSETS)
            self.subset_seconds += self.control.elapsed() - begin
        return self.branch(node, value, branch, cut)

    def branch(self, node: Node, value: float, branch: int, cut: float) -> tuple[float, list[Node]]:
        """What a node that is not closed leaves to do."""
        return value, children(self.units, node, branch)

    def begin_deep(self, node: Node, bound: float, goal: Callable[[], float]) -> None:
        """Begin to enumerate the whole problem; ``goal`` is the bound that ends the work."""
        self.goal = goal
        if self.basis is None or not bound < goal() or self.units.size > MOST_INPUTS:
            return
        self.started = self.control.elapsed()
        groups = len(self.units.capacity)
        # The tree narrows its own nodes with its own cuts.
        root = node.copy(0)
        self.deep = Deep(self.basis, node.d, bound, self.shift, groups, lambda target: self.below(root, bound, target))

    def below(self, node: Node, bound: float, target: float) -> Part | None:
        """What reduced costs leave of a node below a target; None where that is nothing."""
        part = node.copy(0)
        branch = relaxation.expand(
            self.layer, self.minorant.shifted, part.lists, part.d, self.tuned, part.x, part.price, self.pivot, bound,
            target, False, self.found,
        )[1]  # fmt: skip
        if branch == -1:
            return None
        return Part(lists_of(part), lambda tau, known: Start(*self.smoothed(part, tau, known)))

    def go_deep(self, bound: float) -> float:
        """Enumerate the whole problem for as long as the tree took; what is proven so far."""
        deep = self.deep
        if deep is None:
            return bound
        before = self.control.elapsed()
        if self.control.node_limit is None:
            # As much time, at the speed so far.
            tree = (before - self.started - self.deep_seconds) * deep.nodes / max(self.deep_seconds, 1e-3)
        else:
            tree = TREE_NODE * self.units.size / 64 * (self.expanded - 1) + self.enumerated
        due = deep.lead + (AHEAD if deep.proven > bound else BEHIND) * tree
        deep.advance(due, bound, self.goal, lambda: self.incumbent.value, self.offer, self.control.remaining)
        self.deep_seconds += self.control.elapsed() - before
        self.width = deep.width
        return max(bound, deep.proven)

    def beyond(self, cut: float) -> float:
        """Where an enumeration ends, so that what is proven less its allowance reaches the cut."""
        return min(cut + MOST_HIDDEN * self.incumbent.value, self.incumbent.value)

    def smoothed(self, node: Node, tau: float, known: float) -> tuple[float, Float, Float]:
        """Value, point and prices of a node's relaxation with a given smoothing."""
        units = self.units
        n = units.size
        x, price = node.x.copy(), node.price.copy()
        mean, var, share = np.empty(n), np.empty(n), np.empty(len(units.group))
        value = smoothing.ascend_smoothed(
            self.layer, node.lists, node.d, x, self.costs, tau, SMOOTH_STEPS, known, 0.01 * tau, math.inf, price, mean,
            var, share, self.work,
        )  # fmt: skip
        return float(value), x, price

    def enumerate(self, node: Node, bound: float, cut: float) -> float | None:
        """Proven bound of a node from an enumeration; None where that takes too long, or rounding hides too much."""
        assert self.basis is not None
        undecided = max(int(np.count_nonzero(node.last - node.first + node.zero_ok > 0)), 1)
        tau = self.width * (cut - bound) / math.sqrt(undecided)
        _, x, price = self.smoothed(node, tau, cut)
        done = enumerate_node(self.basis, lists_of(node), x, node.d, price, self.beyond(cut), BUDGET, self.shift)
        self.enumerated += done.nodes
        if done.weights is not None:
            self.offer(done.weights)
        if not done.allowance <= MOST_HIDDEN * self.incumbent.value:
            self.enumerating = False
            return None
        if not done.finished:
            self.most_points *= FEWER
            return None
        if done.nodes < EASY * BUDGET:
            self.most_points = min(self.most_points * MORE, 1e300)
        return done.cut - done.allowance


def children(units: JointUnits, node: Node, branch: int) -> list[Node]:
    """Two parts of a node: a unit dropped or kept, or an input's values on both sides of the relaxation's."""
    one, other = node.copy(node.age + 1), node.copy(node.age + 1)
    u = units.unit[branch]
    if node.status[u] == 0:
        one.status[u] = -1
        other.status[u] = 1
        other.room[units.group[u]] -= 1
        return [one, other]
    positions = [
        k
        for k in range(units.count[branch])
        if (node.zero_ok[branch] if k == units.zero[branch] else node.first[branch] <= k <= node.last[branch])
    ]
    below = [k for k in positions if units.values[branch, k] <= node.x[branch]]
    split = min(max(len(below), 1), len(positions) - 1)
    end = positions[split]
    zero = units.zero[branch]
    one.last[branch] = min(one.last[branch], end - 1)
    one.zero_ok[branch] &= zero < end
    other.first[branch] = max(other.first[branch], end)
    other.zero_ok[branch] &= zero >= end
    return [one, other]


class JointFrontier(Frontier[Node]):
    """Open nodes, beside which the whole problem is enumerated."""

    @property
    def lower(self) -> float:
        """The proven bound: the better one of what the tree and the enumeration say."""
        assert isinstance(self.expander, JointSearch)
        deep = self.expander.deep
        return max(super().lower, min(deep.proven if deep is not None else 0.0, self.expander.incumbent.value))


def original(units: JointUnits, value: float) -> float:
    """A value of the search in the units of the task."""
    return value / units.factor**2


def allowance(units: JointUnits) -> float:
    """What single additions of values below the energy can hide."""
    return 32 * UNIT * units.energy
