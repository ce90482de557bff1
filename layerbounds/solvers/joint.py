"""Pruning and quantization together for other solvers (docs/backends.md).

Where zero is a level of every uniform grid, a weight is an integer number of steps, tied to the binary of its unit.
Elsewhere each level other than zero is a binary: at most one of an input, and as many inputs as the capacities allow.
"""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.methods.base import ChannelView
from layerbounds.methods.beam import beam
from layerbounds.methods.obs import obs
from layerbounds.methods.pruning import PruningView, refit_on
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.solvers.formulation import Formulation, Row, capacities, starts, tie, write_down
from layerbounds.solvers.sublevel import rank_factor, reach


@starts.register
def _(allowed: LevelsOnSupport, task: Task[LevelsOnSupport], rng: np.random.Generator) -> list[Float]:
    return [np.zeros(len(task.target)), allowed.nearest(task.target), _pruned_then_rounded(allowed, task, rng)]


def _pruned_then_rounded(allowed: LevelsOnSupport, task: Task[LevelsOnSupport], rng: np.random.Generator) -> Float:
    """A support from backward removal with refit; on it, the K-best beam towards the refitted weights."""
    support = Support(allowed.structure, task.target, refit=True)
    view = PruningView(task.gram, task.target, task.target, support.structure, True, rng)
    refitted = obs(view)
    weights = np.zeros(len(task.target))
    kept = np.flatnonzero(refitted)
    if len(kept):
        rows = [np.unique(row) for row in allowed.values[kept]]
        count = np.array([len(row) for row in rows], dtype=np.int64)
        levels = np.stack([np.concatenate([row, np.full(count.max() - len(row), row[-1])]) for row in rows])
        block = np.ascontiguousarray(task.gram[np.ix_(kept, kept)])
        weights[kept] = beam(ChannelView(block, refit_on(view, refitted != 0.0)[kept], levels, count, rng))
    return weights


@write_down.register
def _(allowed: LevelsOnSupport, task: Task[LevelsOnSupport], start: Float, unit: float, form: str) -> Formulation:
    whole = allowed.levels.uniform and bool(np.all(np.any(allowed.levels.values == 0.0, axis=1)))
    return _integers(task, start, unit, form) if whole else _binaries(task, start, unit)


def _reached(task: Task[LevelsOnSupport], start: Float, unit: float, values: Float) -> Bool:
    """Which of the values points as good as the start can take, shape (n, values)."""
    far = reach(task.gram, unit)[:, None]
    largest = np.abs(values).max(axis=1, keepdims=True)
    ok = (np.abs(values - task.target[:, None]) <= far) | (np.abs(values - start[:, None]) <= 1e-9 * largest)
    # Each value once: the only level of an input is repeated.
    ok[:, 1:] &= values[:, 1:] != values[:, :-1]
    return np.asarray(ok)


def _integers(task: Task[LevelsOnSupport], start: Float, unit: float, form: str) -> Formulation:
    """x_i, the number of steps from zero, between the end levels in reach, tied to the binary of its unit."""
    allowed = task.allowed
    values, scale = allowed.levels.values, allowed.levels.scale
    reached = _reached(task, start, unit, values)
    zero = np.argmax(values == 0.0, axis=1)
    low = reached.argmax(axis=1) - zero
    high = values.shape[1] - 1 - reached[:, ::-1].argmax(axis=1) - zero
    gram = task.gram * np.outer(scale, scale) / unit
    tied = tie(allowed.structure, gram, task.target / scale, low.astype(np.float64), high.astype(np.float64), form)
    rows = np.arange(len(start))

    def decode(u: Float) -> Float:
        kept = u[tied.y][allowed.structure.unit] > 0.5
        number = np.clip(np.rint(u[: len(start)]) + zero, 0, values.shape[1] - 1).astype(np.int64)
        return np.where(kept, values[rows, number], 0.0)

    def encode(weights: Float) -> Float:
        return tied.point(np.rint(weights / scale), allowed.structure)

    return tied.formulation(np.ones(len(start), dtype=bool), unit, decode, encode, start)


def _binaries(task: Task[LevelsOnSupport], start: Float, unit: float) -> Formulation:
    """A binary for each level other than zero; units of several inputs have one of their own, too."""
    allowed, structure = task.allowed, task.allowed.structure
    values, scale = allowed.levels.values, allowed.levels.scale
    reached = _reached(task, start, unit, values) & (values != 0.0)
    zero = _reached(task, start, unit, np.zeros((len(start), 1)))[:, 0]
    owner, level = np.nonzero(reached)
    count, units = len(owner), len(structure.group)
    single = units == len(structure.unit)
    total = count if single else count + units
    root = rank_factor(task.gram * np.outer(scale, scale) / unit)
    factor = np.zeros((len(root), total))
    factor[:, :count] = root[:, owner] * (values[owner, level] / scale[owner])
    binaries = np.arange(count)
    rows = []
    for i in range(len(start)):
        own = binaries[owner == i]
        if single:
            rows.append(Row(own, np.ones(len(own)), 0.0 if zero[i] else 1.0, 1.0))
            continue
        if not zero[i]:
            rows.append(Row(own, np.ones(len(own)), 1.0, 1.0))
        pair = np.append(own, count + structure.unit[i])
        rows.append(Row(pair, np.append(np.ones(len(own)), -1.0), -np.inf, 0.0))
    if single:
        for group, capacity in enumerate(structure.capacity):
            own = binaries[structure.group[structure.unit[owner]] == group]
            rows.append(Row(own, np.ones(len(own)), 0.0, float(capacity)))
    else:
        rows += capacities(structure, count + np.arange(units))

    def encode(weights: Float) -> Float:
        chosen = np.argmin(np.abs(values - weights[:, None]), axis=1)
        point = np.zeros(total)
        point[:count] = (chosen[owner] == level) & (weights[owner] != 0.0)
        if not single:
            point[count:] = structure.kept_units(weights[None])[0]
        return point

    def decode(u: Float) -> Float:
        weights = np.zeros(len(start))
        chosen = np.flatnonzero(u[:count] > 0.5)
        weights[owner[chosen]] = values[owner[chosen], level[chosen]]
        return weights

    return Formulation(
        factor=factor,
        offset=root @ (task.target / scale),
        cost=np.zeros(total),
        constant=0.0,
        low=np.zeros(total),
        high=np.ones(total),
        integer=np.ones(total, dtype=bool),
        unit=unit,
        decode=decode,
        encode=encode,
        start=encode(start),
        rows=[row for row in rows if len(row.index)],
    )
