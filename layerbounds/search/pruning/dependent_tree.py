"""Branch and bound where inputs depend on each other: circuits are broken up, and what is left has compiled trees.

A support that holds all inputs of a circuit spans what it spans without one of them: children miss one each. As soon as
the inputs that a node has left are independent, it has a minorant and becomes the root of a compiled tree of its own.
See docs/pruning-bounds.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from layerbounds.arrays import Int
from layerbounds.bounds.minorants.diagonal import is_minorant
from layerbounds.kernels.factorization import smallest_eigenvalues
from layerbounds.search.frontier import Frontier, Incumbent
from layerbounds.search.pruning.circuits import vanishes
from layerbounds.search.pruning.compiled_tree import BUDGET, OpenNodes, Subtree
from layerbounds.search.pruning.exact_sets import ExactSets
from layerbounds.search.pruning.subset_search import Node, SubsetSearch

#: Leading inputs with an eigenvalue below this, at a unit diagonal, hold a circuit; its inputs are those of larger
#: coefficients than this, at the same scale.
DEPENDENT, COEFFICIENT = 1e-10, 1e-5
#: Inputs of a circuit up to which its dependence is decided in integers.
MOST_MEMBERS = 8
#: Nodes for which a tree has room at first: there may be many trees.
NODES = 32


@dataclass(eq=False)
class Part:
    """A subproblem, and its compiled tree as soon as it has one."""

    node: Node
    tree: Subtree | None = None


class DependentSearch:
    """Expander of the parts of a problem.

    Parameters
    ----------
    search : SubsetSearch
        Of this thread.
    """

    def __init__(self, search: SubsetSearch) -> None:
        self.search = search
        #: Nodes that were expanded, and those of compiled trees beside the first one of each call.
        self.visits = self.inside = 0
        self.exact: ExactSets | None = None
        self.known: dict[tuple[int, ...], bool] = {}

    @property
    def incumbent(self) -> Incumbent:
        """The search's own."""
        return self.search.incumbent

    @property
    def excluded(self) -> float:
        """The search's own."""
        return self.search.excluded

    def fork(self, number: int) -> DependentSearch:
        """Of another thread."""
        return DependentSearch(self.search.fork(number))

    def expand(self, part: Part, bound: float, cut: float) -> tuple[float, list[Part]]:
        """Work on a part's tree, or make one, or break a circuit up."""
        search, node = self.search, part.node
        self.visits += 1
        if part.tree is not None:
            return self.work(part, part.tree, bound, cut)
        if not np.any(node.status == 0):
            return self.python(node, bound, cut)
        node.d = search.diagonal(node)
        if node.d is not None:
            opened = OpenNodes(node.status[None], node.state[None], node.free[None], np.array([bound]), node.d[None])
            part.tree = Subtree(search, opened, 2.0 * search.saving_error(search.size, self.smallest(node)), NODES)
            return self.work(part, part.tree, bound, cut)
        circuit = self.circuit(node)
        if circuit is None:
            return self.python(node, bound, cut)
        search.expanded += 1
        if np.all(node.status[circuit] == 1) and not self.spanned(circuit):
            # Of a support that depends up to rounding nothing is known, where no proof says that it does not.
            alone = Node(np.minimum(2 * node.status - 1, 1).astype(np.int8), node.state, node.free, None, 1)
            return (bound, []) if search.diagonal(alone) is None else self.python(node, bound, cut)
        return bound, self.branch(node, circuit)

    def python(self, node: Node, bound: float, cut: float) -> tuple[float, list[Part]]:
        """One step without a minorant or a circuit."""
        value, children = self.search.expand(node, bound, cut)
        return value, [Part(child) for child in children]

    def work(self, part: Part, tree: Subtree, bound: float, cut: float) -> tuple[float, list[Part]]:
        """Expand some nodes of a compiled tree; its part is left over where some are open."""
        search, before = self.search, tree.expanded
        tree.search = search
        limit = search.control.node_limit
        last = np.iinfo(np.int64).max if limit is None else max(limit - self.inside - self.visits + 1, 1) + before
        alive = max(int(np.count_nonzero(part.node.status >= 0)), 1)
        tree.work(lambda: cut, max(int(BUDGET * min((64 / alive) ** 3, 1.0)), 1), last)
        self.inside += max(tree.expanded - before - 1, 0)
        # What the tree has closed counts from now on.
        search.excluded = min(search.excluded, float(tree.nearest[0]))
        if not tree.opened < cut:
            return max(bound, min(tree.opened, float(tree.nearest[0]))), []
        if len(tree.bound) > max(4 * tree.many, NODES):
            tree.put(tree.take())
        return max(bound, tree.opened), [part]

    def smallest(self, node: Node) -> float:
        """A proven lower bound of the smallest eigenvalue on the inputs that a node has left, 0 where there is none."""
        left = np.flatnonzero(node.status >= 0)
        block = np.ascontiguousarray(self.search.gram[np.ix_(left, left)])
        value = 0.5 * float(smallest_eigenvalues(block))
        return value if value > 0.0 and is_minorant(block, np.full(len(left), value)) else 0.0

    def circuit(self, node: Node) -> Int | None:
        """Inputs of a smallest dependent set among those that a node has left; None where none stands out."""
        search = self.search
        kept, free = np.flatnonzero(node.status == 1), np.flatnonzero(node.status == 0)
        norm = np.sqrt(np.diag(search.gram))
        link = np.abs(search.gram[np.ix_(free, np.concatenate([kept, free]))]) / norm[free, None]
        link /= norm[np.concatenate([kept, free])]
        link[np.arange(len(free)), len(kept) + np.arange(len(free))] = 0.0
        # Strong correlations first: small circuits show early.
        order = np.concatenate([kept, free[np.argsort(-link.max(axis=1, initial=0.0), kind="stable")]])
        block = search.gram[np.ix_(order, order)] / norm[order, None] / norm[order]
        np.fill_diagonal(block, 1.0 - DEPENDENT)
        factor, first = lapack.dpotrf(block, lower=1)
        if first <= 0:
            return None
        before = first - 1
        lead = np.tril(factor[:before, :before])
        y = scipy.linalg.cho_solve((lead, True), block[:before, before], check_finite=False)
        if not np.all(np.isfinite(y)):
            return None
        return np.append(order[:before][np.abs(y) > COEFFICIENT], order[before])

    def branch(self, node: Node, circuit: Int) -> list[Part]:
        """Children that miss one input of a circuit each, and the one that keeps all where that may be better."""
        search = self.search
        free = circuit[node.status[circuit] == 0]
        spanned = self.spanned(circuit)
        if not len(free):
            # Keeping the last one beside the others saves nothing, and its place is used up.
            status = node.status.copy()
            status[circuit[-1]] = -1
            return [Part(Node(status, node.state, node.free, None, node.age + 1))]
        weight = np.abs(search.incumbent.weights) + 1e-3 * np.abs(search.target)
        free = free[np.argsort(-(weight * search.norm)[free], kind="stable")]
        children: list[Part] = []
        for i in free.tolist():
            # The capacity may have decided it, or a copy that is kept.
            if node.status[i] < 0:
                break
            if node.status[i] == 0:
                children.append(Part(search.child(node, i, False)))
                if spanned and i == free[-1]:
                    # With all of them a set saves what it saves without the last one, which is the last child's.
                    return children
                node = search.child(node, i, True)
        return [*children, Part(node)]

    def spanned(self, circuit: Int) -> bool:
        """Whether a combination of the inputs, each of them in it, vanishes exactly."""
        key = tuple(sorted(circuit.tolist()))
        if key not in self.known:
            if self.exact is None:
                self.exact = ExactSets(self.search.task, self.search.control)
            self.known[key] = len(key) <= MOST_MEMBERS and vanishes(self.exact.rows, key)
        return self.known[key]


class DependentTree(Frontier[Part]):
    """The parts of a problem by their proven bounds."""

    @property
    def visited(self) -> int:
        """Nodes of compiled trees count as others do."""
        return self.nodes + sum(part.inside for part in self.expanders if isinstance(part, DependentSearch))


def dependent_tree(search: SubsetSearch, root: Node) -> DependentTree:
    """The tree of a problem whose root has no minorant."""
    return DependentTree(
        DependentSearch(search), search.control, search.energy, Part(root), search.root_bound, search.factor**-2,
        search.task.constant,
    )  # fmt: skip
