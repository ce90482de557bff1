"""Joint problems of many rows that are certified together: never above the optimum, near what one row alone gets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from test_joint_bounds import (
    GRIDS,
    KINDS,
    PATTERNS,
    JointTask,
    best_point,
    block_minorant,
    blocks_of,
    minorant,
    optimum_of,
    points_of,
    tasks_of,
)

import layerbounds as lb
from layerbounds.bounds.least import least
from layerbounds.bounds.rows import rows_function
from layerbounds.certify.group import certify_group
from layerbounds.certify.interval import certify
from layerbounds.exceptions import CertificationError
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import BlockDual, DualPoint, FormTerms, RawSolve, Status


def bounds_of(tasks: list[JointTask], duals: list[DualPoint] | list[BlockDual]) -> np.ndarray:
    function = rows_function(tasks[0].allowed, duals[0])
    assert function is not None
    return function(tasks[0].gram, np.stack([t.target for t in tasks]), [t.allowed for t in tasks], duals)


def check(tasks: list[JointTask], duals: list[DualPoint] | list[BlockDual]) -> None:
    norm = np.sqrt(np.diag(tasks[0].gram))
    for bound, task, dual in zip(bounds_of(tasks, duals), tasks, duals, strict=True):
        assert Fraction(float(bound)) <= optimum_of(task)
        alone = max(least(task.gram, task.target, task.allowed, dual), 0.0)
        size = (
            task.energy + float(np.sum(np.maximum(np.abs(dual.z), np.abs(task.allowed.values).max(axis=1)) * norm)) ** 2
        )
        assert alone - 1e-10 * size - 1e-280 <= bound <= alone + 1e-13 * size


@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_of_a_row_exceeds_its_optimum(kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for grid in range(len(GRIDS)):
        pattern = (grid + KINDS.index(kind)) % len(PATTERNS)
        tasks = tasks_of(kind, grid, pattern)
        points = list(zip(*(points_of(task, rng) for task in tasks), strict=True))
        for share in (0.0, 0.999999, 3.0, -1.0):
            d = minorant(tasks[0].gram, rng, share)
            for zs in points:
                check(tasks, [DualPoint(z, d) for z in zs])
        for block in blocks_of(len(tasks[0].gram), rng):
            matrix = block_minorant(tasks[0].gram, block, rng, float(rng.choice([0.5, 0.999999, 3.0])))
            for zs in points[:2]:
                check(tasks, [BlockDual(z, block, matrix) for z in zs])


def test_rows_may_differ_in_their_structures_and_in_having_a_zero_level() -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.normal(size=(20, 6)), rng.normal(size=(4, 6))
    layer = lb.Layer(weight, x.T @ x / 20)
    given = ({"bits": 2}, {"bits": 1}, {"bits": 2, "codebook": None, "symmetric": False}, {"weights": weight})
    rules = ({"k": 2}, {"pattern": "2:4"}, {"pattern": "block:2", "k": 4}, {"k": 2})
    tasks = [
        make_task(lb.joint_problem(layer, **how, **rule), row, None, None)  # type: ignore[arg-type]
        for row, (how, rule) in enumerate(zip(given, rules, strict=True))
    ]
    d = minorant(tasks[0].gram, rng, 0.9)
    check(tasks, [DualPoint(0.8 * task.target, d) for task in tasks])
    block = np.arange(6) // 2
    matrix = block_minorant(tasks[0].gram, block, rng, 0.9)
    check(tasks, [BlockDual(0.8 * task.target, block, matrix) for task in tasks])


def test_a_group_gets_the_intervals_of_its_channels() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(40, 6))
    layer = lb.Layer(rng.normal(size=(5, 6)), x.T @ x / 40, constant=rng.random(5))
    problem = lb.joint_problem(layer, 3, pattern="2:4")
    tasks = [make_task(problem, row, None, None) for row in range(5)]
    for task in tasks[1:]:
        # As tasks of a group.
        object.__setattr__(task, "gram", tasks[0].gram)
    d = minorant(tasks[0].gram, rng, 0.9)
    raws = [RawSolve(None, Status.RELAXED, dual=DualPoint(0.9 * task.target, d)) for task in tasks]
    for task, raw, found in zip(tasks, raws, certify_group(tasks, raws, [0.0] * 5), strict=True):
        alone = certify(task, raw, 0.0)
        assert (found.status, found.bound_kind) == (alone.status, alone.bound_kind)
        assert found.lower == pytest.approx(alone.lower, rel=1e-9)
        assert found.upper == pytest.approx(alone.upper, rel=1e-12)


def test_points_that_overflow_prove_nothing() -> None:
    tasks = tasks_of("plain", 0, 1)
    n = len(tasks[0].gram)
    d = 0.5 * np.full(n, np.linalg.eigvalsh(tasks[0].gram)[0])
    for size in (1e300, 1e160):
        z = np.full(n, size)
        assert np.all(bounds_of(tasks, [DualPoint(z, d)] * 2) == 0.0)
        assert np.all(bounds_of(tasks, [BlockDual(z, np.arange(n) // 2, np.diag(d))] * 2) == 0.0)


def test_integer_forms_are_refused() -> None:
    tasks = tasks_of("plain", 0, 1)
    n = len(tasks[0].gram)
    dual = DualPoint(best_point(tasks[0]), np.zeros(n), FormTerms(np.ones((n, 1)), np.ones(1), np.zeros(1)))
    with pytest.raises(CertificationError, match="integer forms"):
        bounds_of(tasks, [dual, dual])
