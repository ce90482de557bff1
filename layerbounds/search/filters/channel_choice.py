"""The interval of one group's output channels: sorted, or as masks or shared masks where a metric binds them."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.filters.transposed import counting, factor, factor_charge, transposed_set
from layerbounds.bounds.masks.form import row_form
from layerbounds.bounds.objective import objective_rows
from layerbounds.certify.interval import certify
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, FilterDual, MaskDual, RawSolve, SearchProof, SharedDual, Status
from layerbounds.search.pruning.mask_run import Masks, run_masks
from layerbounds.search.pruning.refit import refit
from layerbounds.search.shared.set_search import search_shared


def search_filters(task: Task[KeptRows], control: Control) -> RawSolve:
    """Solve a group of at least one live input."""
    if task.metric is None:
        return _sorted(task, control)
    return _refitted(task, task.metric, control) if task.allowed.refit else _masked(task, task.metric, control)


def _finished(control: Control) -> Status:
    return Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL


def _sorted(task: Task[KeptRows], control: Control) -> RawSolve:
    """The output channels of largest savings."""
    allowed = task.allowed
    values = task.targets if allowed.refit else allowed.original
    saving = objective_rows(task.gram, task.targets, np.zeros_like(task.targets))[1]
    if not allowed.refit:
        saving = saving - objective_rows(task.gram, task.targets, values)[1]
    kept = np.zeros(len(saving), dtype=bool)
    kept[np.argsort(-saving, kind="stable")[: allowed.capacity]] = True
    weights = np.where((kept & (saving > 0.0))[:, None], values, 0.0)
    return RawSolve(weights.reshape(task.target.shape), _finished(control), dual=FilterDual())


def _masked(task: Task[KeptRows], metric: Float, control: Control) -> RawSolve:
    """Kept output channels stay as they are: a binary quadratic problem."""
    original = task.allowed.original
    form = row_form(task.gram, task.targets, original, metric, task.allowed.capacity)

    def weights(kept: Bool) -> Float:
        return np.where(kept[:, None], original, 0.0).reshape(task.target.shape)

    starts = [] if task.warm_start is None else [np.asarray(np.atleast_2d(task.warm_start).any(axis=1))]
    for score in (np.diag(form.a), np.sum(original**2, axis=1)):
        kept = np.zeros(len(score), dtype=bool)
        kept[np.argsort(-score, kind="stable")[: task.allowed.capacity]] = True
        starts.append(kept & original.any(axis=1))
    return run_masks(Masks(task, form, starts, weights, MaskDual, lambda found: found), control)


def _refitted(task: Task[KeptRows], metric: Float, control: Control) -> RawSolve:
    """Kept output channels make up for what dropped ones lose: the choice of units that rows share."""
    live = counting(metric)
    if task.allowed.capacity >= np.count_nonzero(live):
        weights = np.where(live[:, None], task.targets, 0.0).reshape(task.target.shape)
        return RawSolve(weights, _finished(control))
    part = np.ascontiguousarray(metric[np.ix_(live, live)])
    rows = factor(task.gram, task.targets[live])
    if not len(rows):
        # Nothing has any energy.
        return RawSolve(np.zeros_like(task.target), _finished(control))
    other = transposed_task(task, part, rows, live)
    raw = search_shared(other, control)
    kept = np.zeros(len(live), dtype=bool)
    # Certification of the other problem says what its proof is worth; here the difference of the two is charged.
    certified = certify(other, raw, control.gap)
    kept[live] = np.atleast_2d(certified.weights).any(axis=0)
    charge = factor_charge(task.gram, task.targets[live], part, rows)
    return RawSolve(
        weights=refit_channels(task, metric, kept),
        termination=raw.termination,
        proof=SearchProof(certified.lower, charge) if certified.lower > 0 else None,
        dual=FilterDual(rows, raw.dual) if isinstance(raw.dual, SharedDual) else None,
        nodes=raw.nodes,
        trace=raw.trace,
        notes=raw.notes,
    )


def transposed_task(task: Task[KeptRows], metric: Float, rows: Float, live: Bool) -> Task[SharedSupport]:
    """The task whose inputs are the output channels that count."""
    start = None
    if task.warm_start is not None:
        chosen = np.asarray(np.atleast_2d(task.warm_start).any(axis=1))[live]
        start = np.where(chosen, rows, 0.0)
        start = start[0] if len(rows) == 1 else start
    return Task(
        rows=tuple(range(len(rows))),
        gram=metric,
        targets=rows,
        constants=np.zeros(len(rows)),
        energy=task.energy,
        live=np.ones(rows.shape[1], dtype=bool),
        allowed=transposed_set(task.allowed, rows),
        warm_start=start,
    )


def refit_channels(task: Task[KeptRows], metric: Float, kept: Bool) -> Float:
    """The best weights of kept output channels: V_S = W_S + Q_SS⁻¹ Q_ST W_T."""
    weights = np.zeros_like(task.targets)
    chosen, dropped = np.flatnonzero(kept), ~kept
    if len(chosen):
        lost = metric[:, dropped] @ task.targets[dropped]
        weights[chosen] = task.targets[chosen] + refit(metric, lost, chosen)
    return weights.reshape(task.target.shape)
