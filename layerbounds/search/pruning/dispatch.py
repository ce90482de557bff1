"""Which search treats which pruning problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.clusters import ClusterMinorant
from layerbounds.certify.interval import certify
from layerbounds.kernels.factorization import cholesky
from layerbounds.problems.patterns import Structure
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.search.pruning.blocks import search_blocks
from layerbounds.search.pruning.clusters import search_clusters
from layerbounds.search.pruning.exact_sets import MOST_WORK, nearly_singular, number_of_choices, search_exactly
from layerbounds.search.pruning.independent_sets import MOST_UNITS, applies, search_supports
from layerbounds.search.pruning.mask_run import search_mask
from layerbounds.search.pruning.subset_run import search_subset
from layerbounds.search.pruning.subset_search import AT_ONCE, SET_UP_CUBIC
from layerbounds.search.pruning.wide import WidePreparation, search_wide

#: Inputs of a cluster, and of one that is made of whole groups of an N:M pattern.
CLUSTER, GROUPED = 9, 12
#: N:M patterns of more live inputs than this are better treated with the block dual.
LARGE = 100
#: Layers of more live inputs are prepared for relaxations and exchanges without a tree.
WIDE = 800
#: Factorizations in the time that is left from which on a tree follows, and the share of the time limit before it.
TREE_WORK, WIDE_SHARE = 600.0, 0.3


def cluster_plan(structure: Structure) -> tuple[int, int] | None:
    """Inputs of a cluster and improvements of the minorant at the root; None where the block dual is not used."""
    n = len(structure.unit)
    if len(structure.group) != n:
        return None
    # Units are numbered in the order of the inputs.
    assert np.array_equal(structure.unit, np.arange(n))
    if len(structure.capacity) == 1:
        return CLUSTER, 8 if n <= 64 else 16 if n <= 100 else 40
    if n > LARGE and int(np.bincount(structure.group).max()) <= GROUPED:
        return GROUPED, 30 if n <= 160 else 60
    return None


def search_pruning(task: Task[Support], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    few = every = False
    if len(task.allowed.structure.group) <= MOST_UNITS:
        choices = number_of_choices(task.allowed.structure, task.allowed.refit)
        few = choices * max(len(task.target), 2) ** 2 <= MOST_WORK
        few = few and (control.node_limit is None or choices <= control.node_limit)
        every = applies(task, control)
    if (few or every) and nearly_singular(task.gram):
        found = search_exactly(task, control) if few else search_supports(task, control)
        if found is not None:
            return found
    try:
        raw = _branch_and_bound(task, control)
    except (np.linalg.LinAlgError, ArithmeticError):
        # Integers do not break down where floating-point numbers do.
        closed = search_exactly(task, control) if few else search_supports(task, control) if every else None
        if closed is None:
            raise
        return closed
    if few and raw.termination in (Status.OPTIMAL, Status.GAP_REACHED):
        certified = certify(task, raw, control.gap)
        if certified.status == Status.UNRESOLVED and control.remaining() > 0:
            closed = search_exactly(replace(task, warm_start=certified.weights), control)
            # Where the time was out before every choice was tried, what was proven before stands.
            return closed if closed.termination in (Status.OPTIMAL, Status.GAP_REACHED) else raw
    return raw


def _branch_and_bound(task: Task[Support], control: Control) -> RawSolve:
    if not task.allowed.refit:
        return search_mask(task, control)
    wide = task.shared if isinstance(task.shared, WidePreparation) and control.node_limit is None else None
    if not np.any(task.allowed.structure.capacity):
        # Nothing may be kept, and a tree sees that at once.
        wide = None
    if wide is not None:
        worthwhile = TREE_WORK * wide.seconds < control.remaining()
        first = (
            search_wide(task, replace(control, time_limit=WIDE_SHARE * control.time_limit), wide)
            if worthwhile
            else None
        )
        if first is None or first.termination != Status.TIME_LIMIT:
            return first or search_wide(task, control, wide)
        raw = _tree(replace(task, warm_start=first.weights), control)
        return raw if raw.dual is not None else replace(raw, dual=first.dual)
    if control.node_limit is None and SET_UP_CUBIC * len(task.target) ** 3 > max(control.remaining(), AT_ONCE):
        return RawSolve(_largest(task), Status.TIME_LIMIT)
    return _tree(task, control)


def _tree(task: Task[Support], control: Control) -> RawSolve:
    plan = cluster_plan(task.allowed.structure)
    if plan is not None:
        start = task.shared if isinstance(task.shared, ClusterMinorant) else None
        return search_clusters(task, control, *plan, start)
    single = len(task.allowed.structure.group) == len(task.allowed.structure.unit)
    return search_subset(task, control) if single else search_blocks(task, control)


def _largest(task: Task[Support]) -> Float:
    """The units of most energy, refitted: where there is no time to set up a search. Those given are as good."""
    if task.warm_start is not None:
        return task.warm_start
    structure = task.allowed.structure
    energy = np.bincount(structure.unit, weights=task.target**2 * np.diag(task.gram), minlength=len(structure.group))
    kept = np.flatnonzero(structure.keep_largest(energy))
    weights = np.zeros(len(task.target))
    weights[kept] = task.target[kept]
    factor = cholesky(np.ascontiguousarray(task.gram[np.ix_(kept, kept)]))
    if factor is not None:
        weights[kept] = scipy.linalg.cho_solve((factor, True), task.gram[kept] @ task.target, check_finite=False)
    return weights
