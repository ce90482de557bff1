"""Branch and bound of one pruned channel with the diagonal dual: in Python at the root, compiled where it can be."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, RawSolve, SearchProof
from layerbounds.search.frontier import Frontier
from layerbounds.search.pruning.compiled_tree import CompiledTree
from layerbounds.search.pruning.dependent_tree import DependentTree, dependent_tree
from layerbounds.search.pruning.subset_search import Node, SubsetSearch


def search_subset(task: Task[Support], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    search = SubsetSearch(task, control)
    search.first_incumbents()
    return run_subset(search, search.root())


def run_subset(search: SubsetSearch, root: Node) -> RawSolve:
    """Branch and bound from a root."""
    task, control = search.task, search.control
    frontier: Frontier[Node] | DependentTree
    if CompiledTree.applies(search, root):
        frontier = CompiledTree(search, root)
    elif root.d is None:
        frontier = dependent_tree(search, root)
    else:
        frontier = Frontier(search, control, search.energy, root, search.root_bound, search.factor**-2, task.constant)
    termination = frontier.run()
    lower = frontier.lower
    # Every bound carries its own rounding; what is left are single additions of values below the energy.
    proof = SearchProof(lower * search.factor**-2, 32 * UNIT * search.energy * search.factor**-2)
    dual = None
    if search.root_dual is not None:
        z, d = search.root_dual
        dual = BlockDual(z / search.factor, np.arange(search.size), np.diag(d))
    return RawSolve(
        weights=search.incumbent.weights / search.factor,
        termination=termination,
        proof=proof if lower > 0 else None,
        dual=dual,
        nodes=frontier.visited,
        trace=tuple(frontier.trace),
    )
