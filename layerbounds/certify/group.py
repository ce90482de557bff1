"""Certification of many rows at once: one proof of their common minorant, one product for all their bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.objective import CHUNK, objective_rows
from layerbounds.bounds.rows import rows_function
from layerbounds.certify.interval import CertifiedChannel, certify, conclude, feasible_weights
from layerbounds.exceptions import CertificationError
from layerbounds.problems.tasks import AllowedSets, Task
from layerbounds.proofs import Dual, RawSolve


def certify_group(
    tasks: Sequence[Task[Any]], raws: Sequence[RawSolve], gaps: Sequence[float]
) -> Iterator[CertifiedChannel]:
    """Turn what a backend returned for tasks with one Gram matrix into certified intervals, one for each in order.

    Rows whose dual points share the array of their minorant are bounded together.

    Raises
    ------
    CertificationError
        If weights are not allowed, or a derived lower bound exceeds the error of feasible weights.
    """
    derived = _derived(tasks, raws)
    for begin in range(0, len(tasks), CHUNK):
        chunk = [tasks[i] for i in range(begin, min(begin + CHUNK, len(tasks)))]
        single = [i for i, task in enumerate(chunk) if len(task.rows) == 1 and task.metric is None]
        weights = {i: feasible_weights(chunk[i], raws[begin + i].weights) for i in single}
        high = np.zeros(0)
        if single:
            targets = np.stack([chunk[i].target for i in single])
            high = objective_rows(chunk[0].gram, targets, np.stack([weights[i] for i in single]))[1]
        errors = dict(zip(single, high.tolist(), strict=True))
        for i, task in enumerate(chunk):
            raw, gap, bound = raws[begin + i], gaps[begin + i], derived.get(begin + i)
            if i in errors and (raw.dual is None or bound is not None):
                yield conclude(task, raw, gap, weights[i], errors[i], bound)
            else:
                yield certify(task, raw, gap)


def _derived(tasks: Sequence[Task[Any]], raws: Sequence[RawSolve]) -> dict[int, float]:
    """Bounds of the rows whose dual points can be bounded together."""
    sharing: dict[tuple[type, int], list[int]] = {}
    for index, raw in enumerate(raws):
        if raw.dual is not None:
            sharing.setdefault((type(raw.dual), id(raw.dual.minorant)), []).append(index)
    found: dict[int, float] = {}
    for rows in sharing.values():
        duals = [_valid(tasks, raws, row) for row in rows]
        function = rows_function(tasks[rows[0]].allowed, duals[0])
        if function is None:
            continue
        allowed, targets = AllowedSets(tasks, rows), _targets(tasks, rows)
        bounds = function(tasks[rows[0]].gram, targets, allowed, duals)
        found.update(zip(rows, bounds.tolist(), strict=True))
    return found


def _valid(tasks: Sequence[Task[Any]], raws: Sequence[RawSolve], row: int) -> Dual:
    dual = raws[row].dual
    if dual is None or not dual.is_valid(len(tasks[0].gram)):
        raise CertificationError(f"channel {tasks[row].channel}: the backend returned an invalid dual point.")
    return dual


def _targets(tasks: Sequence[Task[Any]], rows: list[int]) -> Float:
    return np.stack([tasks[row].target for row in rows])
