"""Bands of a few inputs by trying every choice of every row in exact arithmetic, whatever their Gram matrix."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.kernels import exact
from layerbounds.problems.patterns import Structure
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import (
    OPTIMAL_ABSOLUTE,
    OPTIMAL_RELATIVE,
    Control,
    RawSolve,
    RowPrices,
    SearchProof,
    Status,
    TracePoint,
)
from layerbounds.search.pruning.exact_sets import ExactSets
from layerbounds.search.tiles.choices import Choice, LeastChoice

#: Choices of a row, times squared inputs and rows, that are tried exactly.
MOST_WORK = 100_000
#: Share of the energy by which an exact bound is lowered, where nobody can see it.
HIDDEN = 1e-14


def row_task(task: Task[TiledSupport], row: int) -> Task[Support]:
    """One row of a band, without the limits of the others."""
    allowed = Support(task.allowed.structure, task.allowed.original[row], task.allowed.refit)
    target = task.targets[row]
    energy = max(float(target @ (task.gram @ target)), 0.0)
    none = np.zeros(1)
    return Task((task.rows[row],), task.gram, target[None], none, energy, task.live, allowed, raised=task.raised)


def row_choices(structure: Structure, most: float) -> Bool | None:
    """All choices of inputs of a row, shape (choices, n); None where they are more than ``most``."""
    per_group, count = [], 1.0
    for group, capacity in enumerate(structure.capacity.tolist()):
        inputs = np.flatnonzero(structure.group == group).tolist()
        per_group.append([c for k in range(min(capacity, len(inputs)) + 1) for c in combinations(inputs, k)])
        count *= len(per_group[-1])
        if count > most:
            return None
    n = len(structure.group)
    lines = [np.isin(np.arange(n), [i for part in choice for i in part]) for choice in product(*per_group)]
    return np.array(lines).reshape(len(lines), n)


def search_exactly(task: Task[TiledSupport], control: Control) -> RawSolve | None:
    """Solve a band of few inputs; None where there are too many choices, or no time for them."""
    rows, n = task.targets.shape
    most = MOST_WORK / max(n * n * rows, 1)
    lines = row_choices(task.allowed.structure, most if control.node_limit is None else min(most, control.node_limit))
    if lines is None:
        return None
    searches = [ExactSets(row_task(task, row), control) for row in range(rows)]
    pools: list[list[Choice]] = []
    for search in searches:
        pool = []
        for line in lines:
            if control.remaining() <= 0:
                return None
            kept = np.flatnonzero(line).tolist()
            value = search.error_on(kept) if task.allowed.refit else _mask_error(search.task, line)
            pool.append(Choice(line, value, value))
        pools.append(sorted(pool, key=lambda choice: choice.value))
    joint = LeastChoice(pools, task.allowed, Fraction(0), None, lambda: control.remaining() <= 0)
    if not joint.run():
        return None
    best, lower = joint.best, joint.below
    assert best is not None
    weights = np.array([_weights(search, choice.kept) for search, choice in zip(searches, best, strict=True)])
    upper = sum(
        (exact.quadratic_form(task.gram, w, v) for w, v in zip(task.targets, weights, strict=True)), Fraction(0)
    )
    low, high = exact.float_below(lower), exact.float_above(upper) + task.constant
    # Where nobody can see it, the bound stays below the error that these weights have without the raised diagonal, and
    # below what dual points in float64 can prove of it.
    hidden = 4.0 * task.raised * float(np.sum((weights - task.targets) ** 2 @ np.diag(task.gram)))
    hidden += HIDDEN * task.energy
    low -= min(hidden, 0.25 * max(OPTIMAL_RELATIVE * high, OPTIMAL_ABSOLUTE * task.energy))
    visited = rows * len(lines)
    least = np.array([exact.float_below(Fraction(pool[0].value)) for pool in pools])
    trace = TracePoint(control.elapsed(), visited, min(low + task.constant, high), high)
    return RawSolve(
        weights=weights.reshape(task.target.shape),
        termination=Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL,
        proof=SearchProof(low, 0.0, rows=RowPrices(np.zeros(task.targets.shape), least)) if low > 0 else None,
        nodes=visited,
        trace=(trace,),
    )


def _mask_error(task: Task[Support], line: Bool) -> Fraction:
    return exact.quadratic_form(task.gram, task.target, np.where(line, task.allowed.original, 0.0))


def _weights(search: ExactSets, kept: Bool) -> Float:
    """The best weights on a set."""
    task = search.task
    if not task.allowed.refit:
        return np.where(kept, task.allowed.original, 0.0)
    search.best = (Fraction(0), tuple(np.flatnonzero(kept).tolist()))
    return search.weights()
