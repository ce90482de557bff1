"""Masks that several rows share, for other solvers (docs/backends.md): one binary for a unit's weights of all rows."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.methods.pruning import PruningView, refit_on
from layerbounds.methods.swap import swap
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.solvers.formulation import Formulation, capacities, starts, tie, weight_bounds, write_down
from layerbounds.solvers.sublevel import rank_factor

#: Largest number of weights of all rows together that is written down: the factor is dense, and solvers of this kind
#: do not get far with many less.
MOST_WEIGHTS = 2500
#: Random exchanges on the way to the incumbent.
KICKS = 10


@starts.register
def _(allowed: SharedSupport, task: Task[SharedSupport], rng: np.random.Generator) -> list[Float]:
    view = PruningView(task.gram, task.targets, allowed.original, allowed.structure, allowed.refit, rng)
    found = [swap(view, start, KICKS).reshape(task.target.shape) for start in ("obs", "forward")]
    return [np.zeros(task.target.shape), *found]


@write_down.register
def _(allowed: SharedSupport, task: Task[SharedSupport], start: Float, unit: float, form: str) -> Formulation:
    return _refit(task, start, unit, form) if allowed.refit else _mask(task, start, unit)


def _refit(task: Task[SharedSupport], start: Float, unit: float, form: str) -> Formulation:
    """The weights of all rows, tied to the binary of their unit.

    What is sought depends on the targets W through WᵀW: where they are more than the inputs, their rows are replaced by
    those of the triangular factor. A point as good as the incumbent has each weight of each row within
    √((upper − c)·(H⁻¹)_ii) of its target: the others only add to the error.
    """
    structure, rng = task.allowed.structure, np.random.default_rng(0)
    rows = task.targets
    if len(rows) > rows.shape[1]:
        rows = scipy.linalg.qr(rows, mode="r", check_finite=False)[0][: rows.shape[1]]
    if rows.size > MOST_WEIGHTS:
        raise UnsupportedProblemError(
            f"channels {task.rows[0]} to {task.rows[-1]} have {rows.size} weights on one mask, and other solvers get "
            f"at most {MOST_WEIGHTS}; use the native backend."
        )
    view = PruningView(task.gram, task.targets, task.allowed.original, structure, True, rng)
    reduced = PruningView(task.gram, rows, rows, structure, True, rng)
    norm = np.sqrt(np.diag(task.gram))
    gram, target = task.gram / np.outer(norm, norm), rows * norm / np.sqrt(unit)
    tied = tie(structure, gram, target, *weight_bounds(gram, target, form, task.channel), form)

    def decode(u: Float) -> Float:
        return refit_on(view, u[tied.y][structure.unit] > 0.5).reshape(task.target.shape)

    def encode(weights: Float) -> Float:
        # The best weights of the same units: their error is at most that of the given ones.
        best = refit_on(reduced, task.allowed.kept(np.atleast_2d(weights)))
        return tied.point(best * norm / np.sqrt(unit), structure)

    return tied.formulation(np.zeros(rows.size, dtype=bool), unit, decode, encode, start)


def _mask(task: Task[SharedSupport], start: Float, unit: float) -> Formulation:
    """One binary for each unit: whatever the number of rows, the error is a quadratic form of them."""
    structure, original = task.allowed.structure, task.allowed.original
    units = len(structure.group)
    root = rank_factor(task.gram / unit)
    order = np.argsort(structure.unit, kind="stable")
    begin = np.searchsorted(structure.unit[order], np.arange(units))
    stacked = np.zeros((0, units + 1))
    for row, target in zip(original, task.targets, strict=True):
        kept = np.add.reduceat((root * row)[:, order], begin, axis=1)
        stacked = np.vstack([stacked, np.column_stack([kept, root @ target])])
        if len(stacked) > 4 * (units + 1):
            stacked = _triangle(stacked)
    stacked = _triangle(stacked)

    def keeps(u: Float) -> Bool:
        return np.asarray(u[structure.unit] > 0.5)

    def decode(u: Float) -> Float:
        return np.where(keeps(u), original, 0.0).reshape(task.target.shape)

    def encode(weights: Float) -> Float:
        union = np.abs(np.atleast_2d(weights)).max(axis=0, keepdims=True)
        return np.asarray(structure.kept_units(union)[0], dtype=np.float64)

    return Formulation(
        factor=stacked[:units, :units],
        offset=stacked[:units, units],
        cost=np.zeros(units),
        constant=float(np.sum(stacked[units:, units] ** 2)),
        low=np.zeros(units),
        high=np.ones(units),
        integer=np.ones(units, dtype=bool),
        unit=unit,
        decode=decode,
        encode=encode,
        start=encode(start),
        rows=capacities(structure, np.arange(units)),
    )


def _triangle(stacked: Float) -> Float:
    """The triangular factor, of no more rows than columns."""
    (factor,) = scipy.linalg.qr(stacked, mode="r", check_finite=False)
    return np.asarray(factor[: stacked.shape[1]])
