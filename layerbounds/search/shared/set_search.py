"""The interval of one set of rows that share a mask."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np

from layerbounds.bounds.minorants.centre import Centre
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, SearchProof, SharedDual, Status, TracePoint
from layerbounds.search.frontier import Frontier
from layerbounds.search.shared.cluster_root import find_cluster_root
from layerbounds.search.shared.drops import make_drop_basis
from layerbounds.search.shared.enumeration import Exhausted, exhaust
from layerbounds.search.shared.incumbents import first_incumbents
from layerbounds.search.shared.masks import search_shared_mask
from layerbounds.search.shared.root import Root, find_root
from layerbounds.search.shared.selection import Selection, make_selection
from layerbounds.search.shared.tree import UnitNode, UnitSearch

#: Share of the time limit in which the root's bound is improved; below this share of the incumbent clusters follow.
ROOT_SHARE, CLUSTERS = 0.3, 0.5
#: Shares for trying every choice, and for singular matrices; seconds after which the tree is the better one.
DROP_SHARE, SINGULAR_SHARE, DROP_SECONDS = 0.1, 0.6, 0.4
#: Seconds per cubed number of inputs, about: of inverting the Gram matrix for that, and of a node.
BASIS_CUBIC, NODE_CUBIC = 3e-10, 2e-10


def search_shared(task: Task[SharedSupport], control: Control) -> RawSolve:
    """Solve a set of rows of at least one live input."""
    if not task.allowed.refit:
        return search_shared_mask(task, control)
    selection = make_selection(task)
    if selection.energy == 0.0:
        # Dropping everything costs nothing.
        return RawSolve(selection.best, Status.OPTIMAL)
    first_incumbents(selection, control)
    basis, size = None, float(len(selection.gram))
    limited = control.node_limit is None
    if not limited or BASIS_CUBIC * size**3 <= DROP_SHARE * control.remaining():
        basis = make_drop_basis(selection.gram, selection.rows, selection.structure)
        # Relaxations prove little about singular matrices: what is tried is most of what can be done.
        seconds = min(DROP_SHARE * control.time_limit, DROP_SECONDS)
        seconds = SINGULAR_SHARE * control.time_limit if basis is None else seconds
        done = exhaust(selection, control, seconds, basis) if control.node_limit != 0 else None
        if done is not None:
            return _closed(selection, control, done)
    root, bound, dual = _root(selection, control)
    search = UnitSearch(selection, control, basis)
    # No node begins that would not end in time.
    late = NODE_CUBIC * size**3 if limited else 0.0
    ahead = replace(control, time_limit=control.time_limit - late)
    frontier: Frontier[UnitNode] = Frontier(
        search, ahead, search.energy, search.root(root), bound, selection.unit, task.constant
    )
    termination = frontier.run()
    return RawSolve(
        weights=selection.best,
        termination=termination,
        proof=_proof(selection, frontier.lower),
        # Certifying a dual point takes longer than many nodes: it is for those who ask for no nodes.
        dual=dual if control.node_limit == 0 or frontier.lower <= 0.0 else None,
        nodes=frontier.nodes,
        trace=tuple(frontier.trace),
    )


def _root(selection: Selection, control: Control) -> tuple[Root, float, SharedDual | None]:
    """The root of the tree, and the best bound and its dual point, which may be those of clusters."""
    # A node limit has to give the same result on every machine.
    first = replace(control, time_limit=ROOT_SHARE * control.time_limit) if control.node_limit is None else control
    shared = selection.task.shared
    units = len(selection.structure.group)
    root, stronger = Root(0.0, None, None, np.ones(units), np.zeros(units)), None
    with contextlib.suppress(np.linalg.LinAlgError):
        root = find_root(selection, first, shared if isinstance(shared, Centre) else None)
        if root.bound < CLUSTERS * selection.incumbent.value or control.node_limit == 0:
            stronger = find_cluster_root(selection, first)
    if stronger is not None and stronger[0] > root.bound:
        return root, *stronger
    return root, root.bound, root.dual


def _proof(selection: Selection, lower: float) -> SearchProof | None:
    """What a search has proven, in the units of the task."""
    # Every bound carries its own rounding; what is left are single additions of values below the energy.
    allowance = 32 * UNIT * selection.energy * selection.unit
    return SearchProof(lower * selection.unit, allowance) if lower > 0 else None


def _closed(selection: Selection, control: Control, done: Exhausted) -> RawSolve:
    """All choices were tried or excluded."""
    lower, upper = (value * selection.unit + selection.task.constant for value in (done.cut, selection.incumbent.value))
    point = TracePoint(control.elapsed(), done.nodes, min(lower, upper), upper)
    status = Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL
    return RawSolve(selection.best, status, _proof(selection, done.cut), nodes=done.nodes, trace=(point,))
