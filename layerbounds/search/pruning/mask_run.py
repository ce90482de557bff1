"""Mask-only pruning of a task: its form, the search, and what the search hands over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.masks.clusters import blocks_bound
from layerbounds.bounds.masks.form import MaskForm, unit_form
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import (
    OPTIMAL_ABSOLUTE,
    OPTIMAL_RELATIVE,
    BlockDual,
    Control,
    Dual,
    MaskBlocksDual,
    RawSolve,
    SearchProof,
    Status,
)
from layerbounds.search.frontier import Frontier
from layerbounds.search.pruning.mask_clusters import cluster_root
from layerbounds.search.pruning.masks import MaskNode, MaskSearch, WideStart
from layerbounds.search.pruning.wide import WidePreparation

#: Weights times inputs of the masks that are evaluated exactly.
EXACT_WORK = 1e9
#: Units from which on blocks come before the tree, and from which on finding them takes too long; their share of the
#: time that is left grows with the units.
CLUSTERED, ONLY_CLUSTERS, LEAST_SHARE, MOST_SHARE = 320, 1000, 0.3, 0.7
#: Seconds per multiplication of the exact evaluation at the end, and the most of the time limit that it is left.
EVALUATION, MOST_EVALUATION = 6e-9, 0.3


@dataclass(frozen=True, eq=False)
class Masks:
    """A task whose kept weights stay as they are.

    Attributes
    ----------
    task : Task
    form : MaskForm
    starts : list of ndarray of bool, shape (units,)
    weights : callable
        From the kept units to weights in the shape of the task's target.
    dual : callable
        From a point and a diagonal, each of shape (units,), to what certification bounds again; None where it cannot.
    blocks : callable or None
        From a dual point with blocks to what certification bounds again; None where it cannot.
    wide : WideStart or None
    """

    task: Task[Any]
    form: MaskForm
    starts: Sequence[Bool]
    weights: Callable[[Bool], Float]
    dual: Callable[[Float, Float], Dual | None]
    blocks: Callable[[MaskBlocksDual], Dual] | None = None
    wide: WideStart | None = None


def run_masks(masks: Masks, control: Control) -> RawSolve:
    """Solve a task of at least one live input."""
    task = masks.task
    control = _with_time_to_certify(task, control)
    search = MaskSearch(masks.form, control, masks.starts, masks.wide)
    search.first_incumbents()
    search.kick(task.channel)
    root = search.root()
    charge = 2.0 * search.allowance
    frontier: Frontier[MaskNode] = Frontier(
        search, control, max(search.energy, 0.0), root.copy(), search.root_bound, 1.0, task.constant, charge=charge
    )
    known = None if masks.blocks is None else _cluster_root(masks, search)
    bound = -np.inf if known is None else blocks_bound(masks.form, known)
    # What is proven before the tree begins need not be proven by it.
    termination = frontier.finished if bound >= frontier.cut else frontier.run()
    proof = SearchProof(frontier.lower, charge) if frontier.lower > 0 else None
    upper = search.incumbent.value
    weights = masks.weights(search.incumbent.weights > 0)
    visible = charge > 0.1 * max(OPTIMAL_RELATIVE * (upper + task.constant), OPTIMAL_ABSOLUTE * task.energy)
    if visible and termination == Status.OPTIMAL:
        # Exact evaluation of the best masks replaces the allowance.
        cut = upper + 2.0 * charge
        leaves = search.collect(root, cut, max(int(EXACT_WORK / (task.targets.size * len(task.gram))), 8))
        if leaves:
            points = np.array([masks.weights(kept) for kept in leaves])
            proof = SearchProof(cut, charge, points)
            errors = [_error(task, point) for point in (weights, *points)]
            best = int(np.argmin(errors))
            weights = points[best - 1] if best else weights
    return RawSolve(
        weights=weights,
        termination=termination,
        proof=proof,
        dual=_best_dual(masks, search, known, bound),
        nodes=frontier.nodes,
        trace=tuple(replace(p, lower=min(max(p.lower, bound + task.constant), p.upper)) for p in frontier.trace),
    )


def _with_time_to_certify(task: Task[Any], control: Control) -> Control:
    """The same limits less what the evaluation of many weights will take."""
    seconds = EVALUATION * task.targets.size * len(task.gram)
    return replace(control, time_limit=control.time_limit - min(seconds, MOST_EVALUATION * control.time_limit))


def _cluster_root(masks: Masks, search: MaskSearch) -> MaskBlocksDual | None:
    """A dual point with blocks, where the tree is not likely to end soon and there is time."""
    if not CLUSTERED <= len(masks.form.beta) < ONLY_CLUSTERS or not search.timed or search.root_dual is None:
        return None
    control = search.control
    share = min(max(len(masks.form.beta) / ONLY_CLUSTERS, LEAST_SHARE), MOST_SHARE)
    spared = (1.0 - share) * control.remaining()
    return cluster_root(
        masks.form, search.root_dual, search.d, search.incumbent.value, lambda: control.remaining() - spared
    )


def _best_dual(masks: Masks, search: MaskSearch, known: MaskBlocksDual | None, bound: float) -> Dual | None:
    if known is not None and masks.blocks is not None and bound > search.root_bound:
        return masks.blocks(known)
    return None if search.root_dual is None else masks.dual(search.root_dual, search.d)


def search_mask(task: Task[Support], control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    original, structure = task.allowed.original, task.allowed.structure
    wide = None
    if isinstance(task.shared, WidePreparation):
        # D ⪯ H gives A a minorant: blocks of units weigh what the weights of each make of them.
        inside = task.shared.centre.gather(original)
        wide = WideStart(np.einsum("gi,gij,gj->g", inside, task.shared.centre.blocks, inside), task.shared.seconds)

    def weights(kept: Bool) -> Float:
        return np.where(kept[structure.unit], original, 0.0)

    def dual(z: Float, d: Float) -> BlockDual | None:
        """In the space of the weights, where units are single inputs."""
        n = len(original)
        if len(structure.group) != n:
            return None
        spread = np.divide(d[structure.unit], original**2, out=np.zeros(n), where=original != 0)
        return BlockDual(z[structure.unit] * original, np.arange(n), np.diag(spread))

    form = unit_form(task.gram, task.targets, original[None], structure)
    return run_masks(Masks(task, form, first_masks(task), weights, dual, wide=wide), control)


def first_masks(task: Task[Any]) -> list[Bool]:
    """The warm start, and the units of most energy and of largest weights."""
    structure = task.allowed.structure
    squares = np.sum(np.atleast_2d(task.allowed.original) ** 2, axis=0)
    starts = [] if task.warm_start is None else [_kept(task, np.atleast_2d(task.warm_start))]
    for score in (squares * np.diag(task.gram), squares):
        total = np.bincount(structure.unit, weights=score, minlength=len(structure.group))
        starts.append(_kept(task, structure.keep_largest(total)[None].astype(np.float64)))
    return starts


def _kept(task: Task[Any], rows: Float) -> Bool:
    return np.asarray(task.allowed.structure.kept_units(rows).any(axis=0))


def _error(task: Task[Any], weights: Float) -> float:
    """The error of weights, without the constant, in extended precision."""
    deviation = np.atleast_2d(weights).astype(np.longdouble) - task.targets
    pulled = deviation if task.metric is None else task.metric.astype(np.longdouble) @ deviation
    return float(np.sum((deviation @ task.gram.astype(np.longdouble)) * pulled))
