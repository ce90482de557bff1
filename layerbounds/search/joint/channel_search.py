"""Branch and bound of one channel of a joint problem: incumbents, root, tree."""

from __future__ import annotations

import numpy as np

from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, DualPoint, RawSolve, SearchProof
from layerbounds.search.frontier import Incumbent
from layerbounds.search.joint.block_root import WIDE, block_dual, find_roots
from layerbounds.search.joint.block_tree import BlockNode, BlockSearch
from layerbounds.search.joint.incumbents import FIRST, start_search
from layerbounds.search.joint.root import GramParts, first_minorant, gram_parts
from layerbounds.search.joint.tree import JointFrontier, allowance, original, whole
from layerbounds.search.joint.units import JointUnits, joint_units

#: Share of the time limit that the root may take.
ROOT_SHARE = 0.3
#: The same with blocks, and for layers of so many inputs that a tree gains little.
BLOCK_SHARE, WIDE_SHARE = 0.5, 0.6
#: Share of the time after the root of a wide layer in which weights are looked for before the tree.
WIDE_INCUMBENT = 0.6
#: Inputs from which the root and the tree use blocks, and those up to which the tree does.
FEWEST_INPUTS, MOST_INPUTS = 80, 600
#: Subsets beside the root's point before the tree begins.
SUBSETS = 50


def search_joint(task: Task[LevelsOnSupport], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    units = joint_units(task)
    parts = task.shared if isinstance(task.shared, GramParts) else gram_parts(units.gram)
    minorant = first_minorant(units, parts)
    node = whole(units, minorant.d)
    timed = control.node_limit is None
    wide = units.size >= WIDE
    share = ROOT_SHARE if units.size < FEWEST_INPUTS else BLOCK_SHARE if units.size <= MOST_INPUTS else WIDE_SHARE
    # A wide layer's root does not need weights, which take long to find.
    incumbent = Incumbent(units.energy, np.zeros(units.size)) if wide else first_incumbent(units, task, control)
    before = control.elapsed()

    def stop() -> bool:
        return control.remaining() <= 0 or (timed and control.elapsed() - before > share * control.time_limit)

    # Smaller trees are faster without blocks; where no tree is asked for, they give the better bound.
    wanted = units.size >= FEWEST_INPUTS or control.node_limit == 0
    root, blocks = find_roots(units, minorant, node.lists, incumbent.value, stop, wanted)
    if wide:
        incumbent = first_incumbent(units, task, control, WIDE_INCUMBENT)
    search = BlockSearch(units, control, minorant, incumbent)
    search.round(root.rounded)
    search.go_on(SUBSETS)
    node.d, node.x, node.price = root.d, root.x, root.price
    dual: DualPoint | BlockDual = DualPoint(root.x / units.factor, root.d)
    bound = max(root.bound, 0.0)
    if blocks is not None and blocks.value > bound:
        dual, bound = block_dual(units, blocks), blocks.value
        if units.size <= MOST_INPUTS:
            node = BlockNode.of(node, blocks)
    frontier = JointFrontier(
        search, control, units.energy, node, bound, original(units, 1.0), task.constant,
        charge=allowance(units),
    )  # fmt: skip
    search.begin_deep(node, root.bound, lambda: frontier.cut)
    termination = frontier.run()
    lower = original(units, frontier.lower)
    return RawSolve(
        weights=units.original(incumbent.weights),
        termination=termination,
        proof=SearchProof(lower, original(units, allowance(units))) if lower > 0 else None,
        dual=dual,
        nodes=frontier.nodes,
        trace=tuple(frontier.trace),
    )


def first_incumbent(
    units: JointUnits, task: Task[LevelsOnSupport], control: Control, share: float = FIRST
) -> Incumbent:
    """The best of several starts, after a short search in large neighbourhoods."""
    incumbent = Incumbent(units.energy, np.zeros(units.size))
    search = start_search(units, task, control, share)
    incumbent.offer(units.reached(search.weights), search.weights)
    return incumbent
