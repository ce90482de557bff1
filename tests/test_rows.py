"""Rows that are certified together: never above the optimum, and as good as one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_certify import exact_error, optimum_of

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.least import least
from layerbounds.bounds.objective import entry_sizes, objective_interval, objective_rows
from layerbounds.bounds.rows import rows_function
from layerbounds.certify.group import certify_group
from layerbounds.certify.interval import certify
from layerbounds.exceptions import CertificationError
from layerbounds.problems.tasks import AllowedSets, GroupTasks
from layerbounds.proofs import BlockDual, BoundKind, DualPoint, FormTerms, RawSolve, Status

GRIDS: list[dict[str, Any]] = [
    {"bits": 2},
    {"bits": 2, "symmetric": False, "granularity": 2},
    {"codebook": "ternary"},
]


def layers(rng: np.random.Generator) -> Iterator[lb.Layer]:
    """Random and degenerate ones with a few inputs."""
    for n, rank, scale in ((1, 1, 1.0), (4, 4, 1.0), (4, 2, 1.0), (3, 3, 1e-60), (3, 1, 1e60)):
        x = rng.normal(size=(3 * n, rank)) @ rng.normal(size=(rank, n))
        yield lb.Layer(rng.normal(size=(3, n)), scale * x.T @ x / len(x))
    x = rng.normal(size=(12, 4))
    x[:, 1] = 0.0
    x[:, 3] = -2.0 * x[:, 0]
    yield lb.Layer(rng.normal(size=(3, 4)) * 1e-4, x.T @ x / 12)
    # All weights outside the box.
    yield lb.Layer(rng.normal(size=(3, 4)), np.eye(4) + 0.9, target=20.0 + rng.normal(size=(3, 4)), name="far")


def group_of(problem: lb.QuantizationProblem) -> GroupTasks:
    rows = problem.layer.out_features
    return GroupTasks(problem, [[r] for r in range(rows)], None, [None] * rows)


def duals_of(rng: np.random.Generator, tasks: GroupTasks, blocks: bool) -> list[DualPoint] | list[BlockDual]:
    """Any points, and a minorant that may lie above the Gram matrix."""
    gram = tasks[0].gram
    n = len(gram)
    points = [task.target + 0.3 * rng.normal(size=n) * task.allowed.scale for task in tasks]
    share = rng.choice([0.05, 0.3, 1.2])
    if not blocks:
        d = share * np.diag(gram) / n
        return [DualPoint(z, d) for z in points]
    block = np.arange(n) // 2
    matrix = share * np.where(block[:, None] == block, gram, 0.0)
    return [BlockDual(z, block, matrix) for z in points]


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    "how", [{"bits": 2}, {"bits": 2, "symmetric": False, "granularity": 2}, {"codebook": "ternary"}]
)
def test_no_bound_of_a_row_exceeds_its_optimum(rng: np.random.Generator, blocks: bool, how: dict[str, Any]) -> None:
    positive = 0
    for layer in layers(rng):
        tasks = group_of(lb.quantization_problem(layer, **how))
        optima = [optimum_of(task) for task in tasks]
        for _ in range(4):
            duals = duals_of(rng, tasks, blocks)
            function = rows_function(tasks[0].allowed, duals[0])
            assert function is not None
            targets = np.stack([task.target for task in tasks])
            bounds = function(tasks[0].gram, targets, AllowedSets(tasks), duals)
            for task, bound, dual, optimum in zip(tasks, bounds, duals, optima, strict=True):
                assert bound <= optimum
                alone = least(task.gram, task.target, task.allowed, dual)
                size = float(task.energy) + float(np.diag(task.gram) @ task.target**2)
                assert bound == pytest.approx(max(alone, 0.0), rel=1e-6, abs=1e-7 * size)
                positive += bound > 0
    assert positive > 10


def test_errors_of_rows_are_enclosed(rng: np.random.Generator) -> None:
    for layer in layers(rng):
        tasks = group_of(lb.quantization_problem(layer, 2))
        targets = np.stack([task.target for task in tasks])
        weights = np.stack([task.allowed.nearest(task.target + rng.normal(size=targets.shape[1])) for task in tasks])
        weights[0] = targets[0]
        low, high = objective_rows(tasks[0].gram, targets, weights)
        assert (low[0], high[0]) == (0.0, 0.0)
        for r in range(len(targets)):
            exact = exact_error(tasks[0].gram, targets[r], weights[r])
            assert max(low[r], 0.0) <= exact <= high[r] or exact < 0
            assert high[r] == pytest.approx(objective_interval(tasks[0].gram, targets[r], weights[r])[1], rel=1e-7)


def test_entries_are_below_the_products_of_their_sizes(rng: np.random.Generator) -> None:
    gram = np.eye(300) + np.ones((300, 300))
    gram[3, 7] = gram[7, 3] = 5.0
    size = entry_sizes(gram)
    assert np.all(np.abs(gram) <= np.outer(size, size))
    assert entry_sizes(np.zeros((0, 0))).shape == (0,)


@pytest.mark.parametrize("blocks", [False, True])
def test_a_group_gets_the_intervals_of_its_channels(rng: np.random.Generator, blocks: bool) -> None:
    x = rng.normal(size=(40, 6))
    layer = lb.Layer(rng.normal(size=(5, 6)), x.T @ x / 40, constant=rng.random(5))
    tasks = group_of(lb.quantization_problem(layer, 3))
    raws = [
        RawSolve(task.allowed.nearest(task.target) if r % 2 else None, Status.RELAXED, dual=dual)
        for r, (task, dual) in enumerate(zip(tasks, duals_of(rng, tasks, blocks), strict=True))
    ]
    raws[4] = RawSolve(None, Status.RELAXED)
    together = list(certify_group(tasks, raws, [0.0] * 5))
    for task, raw, found in zip(tasks, raws, together, strict=True):
        alone = certify(task, raw, 0.0)
        assert (found.status, found.bound_kind) == (alone.status, alone.bound_kind)
        assert (found.lower, found.upper) == (
            pytest.approx(alone.lower, rel=1e-9),
            pytest.approx(alone.upper, rel=1e-12),
        )
    assert together[4].bound_kind == BoundKind.TRIVIAL


def test_rows_with_integer_forms_are_bounded_one_by_one(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 3))
    tasks = group_of(lb.quantization_problem(lb.Layer(rng.normal(size=(3, 3)), x.T @ x / 30), 2))
    d = 0.1 * np.diag(tasks[0].gram)
    form = FormTerms(np.array([[1.0], [1.0], [0.0]]), np.array([1e-3]), np.array([1e-4]))
    raws = [RawSolve(None, Status.RELAXED, dual=DualPoint(task.target, d, form)) for task in tasks]
    for task, raw, found in zip(tasks, raws, certify_group(tasks, raws, [0.0] * 3), strict=True):
        assert found.lower == certify(task, raw, 0.0).lower


def test_a_wrong_answer_of_a_group_is_an_error(rng: np.random.Generator) -> None:
    tasks = group_of(lb.quantization_problem(lb.Layer(rng.normal(size=(2, 3)), np.eye(3)), 2))
    nan = DualPoint(np.full(3, np.nan), np.full(3, 0.5))
    with pytest.raises(CertificationError, match="channel 1: the backend returned an invalid dual point"):
        list(certify_group(tasks, [RawSolve(None, Status.RELAXED), RawSolve(None, Status.RELAXED, dual=nan)], [0, 0]))
    off: Float = tasks[0].allowed.values[:, 0] + 0.01
    with pytest.raises(CertificationError, match="channel 0: the backend returned weights that are not on the grid"):
        list(certify_group(tasks, [RawSolve(off, Status.RELAXED)] * 2, [0, 0]))
