"""Masks that rows share and that leave kept weights as they are: against brute force, and attacks on their dual."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.least import least
from layerbounds.bounds.masks.clusters import blocks_bound
from layerbounds.bounds.masks.dual import mask_bound
from layerbounds.bounds.masks.form import MaskForm, unit_form
from layerbounds.exceptions import CertificationError
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control, MaskBlocksDual, MaskDual
from layerbounds.search.pruning.mask_clusters import cluster_root
from layerbounds.search.pruning.mask_root import centre_diagonal
from layerbounds.search.shared.masks import search_shared_mask


def small_layer(rng: np.random.Generator, kind: int) -> lb.Layer:
    """Up to four rows of up to eight inputs: dead, dependent and unequal ones, other inputs."""
    n, rows = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    rank = max(n - 2, 1) if kind % 3 == 0 else n
    x = rng.normal(size=(30, rank)) @ rng.normal(size=(rank, n))
    if kind % 4 == 1:
        x[:, 0] = 0.0
    weight = rng.normal(size=(rows, n)) * 10.0 ** rng.uniform(-2, 2, size=(rows, 1))
    if kind % 5 == 0:
        weight[:, -1] = 0.0
    moved = x + 0.2 * rng.normal(size=x.shape) if kind % 2 else None
    return lb.Layer.from_activations(weight, x, compressed_inputs=moved)


def problems(rng: np.random.Generator, layer: lb.Layer) -> Iterator[Problem]:
    n = layer.in_features
    scattered = (np.arange(n) % max(n // 2, 1)).tolist()
    kept: list[dict[str, Any]] = [
        {"pattern": "column", "k": int(rng.integers(0, n + 1))},
        {"pattern": "head:2", "density": 0.5},
        {"pattern": scattered, "k": 1},
        {"pattern": "1:2", "share": 2},
    ]
    for options in kept:
        yield lb.pruning_problem(layer, refit=False, **options)


def error(task: Task[Any], weights: Float) -> float:
    deviation = np.atleast_2d(weights) - task.targets
    return float(np.sum((deviation @ task.gram) * deviation))


def tasks(problem: Problem) -> list[Task[Any]]:
    return [make_task(problem, rows, None, None) for rows in problem.sets(range(problem.layer.out_features))]


@pytest.mark.parametrize("kind", range(15))
def test_agreement_with_brute_force(kind: int) -> None:
    rng = np.random.default_rng(kind)
    layer = small_layer(rng, kind)
    for problem in problems(rng, layer):
        optimum = np.array([min(error(t, v) for v, _, _ in t.allowed.pieces()) + t.constant for t in tasks(problem)])
        slack = 1e-9 * optimum + 1e-12 * float(layer.energy().sum())
        solution = lb.solve(problem, jobs=1)
        assert set(solution.status) == {lb.Status.OPTIMAL}
        assert np.all(solution.lower_bound <= optimum + slack)
        assert np.all(np.abs(solution.upper_bound - optimum) <= 2e-6 * optimum + slack)
        assert lb.evaluate(problem, solution.weights).feasible.all()
        root = lb.solve(problem, jobs=1, time_limit=0.0)
        assert np.all(root.lower_bound <= optimum + slack)


@pytest.mark.parametrize("kind", range(12))
def test_no_dual_point_exceeds_the_optimum(kind: int) -> None:
    """Whatever z and d are: others than the search's, huge, negative, beyond the matrix."""
    rng = np.random.default_rng(100 + kind)
    tried = 0
    for problem in problems(rng, small_layer(rng, kind)):
        for task in tasks(problem):
            if not len(task.gram):
                continue
            optimum = min(error(task, v) for v, _, _ in task.allowed.pieces())
            units = len(task.allowed.structure.group)
            found = search_shared_mask(task, Control(1.0, 0.0, None, 0, 1, threading.Event())).dual
            assert found is None or isinstance(found, MaskDual)
            z, d = (found.z, found.d) if found is not None else (np.zeros(units), np.zeros(units))
            attacks = [(z, d), (z, 2.0 * d), (1.0 - z, d), (z, np.full(units, 1e6)), (z, -d), (1e3 * z, d)]
            attacks += [(rng.normal(size=units), d * rng.uniform(0, 3, size=units)) for _ in range(4)]
            for point, diagonal in attacks:
                bound = least(task.gram, task.target, task.allowed, MaskDual(point, diagonal))
                assert bound <= optimum * (1 + 1e-12) + 1e-14 * task.energy
                tried += 1
            with pytest.raises(CertificationError, match="another number of units"):
                least(task.gram, task.target, task.allowed, MaskDual(np.zeros(units + 1), np.zeros(units + 1)))
    assert tried


@pytest.mark.parametrize("kind", range(8))
def test_no_blocks_exceed_the_optimum(kind: int) -> None:
    """Any blocks, within groups of the pattern or across them, any matrix, point and prices."""
    rng = np.random.default_rng(200 + kind)
    for problem in problems(rng, small_layer(rng, kind)):
        for task in tasks(problem):
            if not len(task.gram):
                continue
            optimum = min(error(task, v) for v, _, _ in task.allowed.pieces())
            form = unit_form(task.gram, task.targets, task.allowed.original, task.allowed.structure)
            units, groups = len(form.beta), len(form.capacity)
            start = np.full(units, 0.5), np.full(units, 0.01 * max(np.linalg.eigvalsh(form.a)[0], 0.0))
            found = cluster_root(form, *start, max(optimum, 1e-3 * task.energy), lambda: 0.1)
            duals = [] if found is None else [found]
            for _ in range(8):
                block = rng.integers(0, 3, size=units)
                inside = block[:, None] == block
                matrix = rng.uniform(0.2, 1.5) * np.where(inside, form.a, 0.0)
                price = rng.normal(size=groups) * np.trace(form.a) * 10.0 ** rng.uniform(-2, 2)
                duals.append(MaskBlocksDual(rng.uniform(-0.5, 1.5, size=units), block, matrix, price))
            for dual in duals:
                bound = least(task.gram, task.target, task.allowed, dual)
                assert bound <= optimum * (1 + 1e-12) + 1e-14 * task.energy
            for part in (np.zeros(units + 1), np.zeros(units)):
                wrong = MaskBlocksDual(part, np.zeros(len(part)), np.zeros((len(part),) * 2), np.zeros(groups + 1))
                with pytest.raises(CertificationError, match="another number of units"):
                    least(task.gram, task.target, task.allowed, wrong)


def test_blocks_are_better_than_a_diagonal(rng: np.random.Generator) -> None:
    """With blocks as large as the form the bound is the optimum; with smaller ones it is above the diagonal's."""
    layer = lb.demo_layers()["conv3"]
    problem = lb.pruning_problem(layer, density=0.5, pattern="column", refit=False)
    (task,) = tasks(problem)
    form = unit_form(task.gram, task.targets, task.allowed.original, task.allowed.structure)
    raw = search_shared_mask(task, Control(10.0, 0.0, None, 0, 1, threading.Event()))
    assert isinstance(raw.dual, MaskDual) and raw.proof is not None
    dual = cluster_root(form, raw.dual.z, raw.dual.d, raw.proof.cut, lambda: 5.0)
    assert dual is not None and np.bincount(dual.block).max() > 4
    single = mask_bound(form, raw.dual.z, raw.dual.d)
    assert single < blocks_bound(form, dual) <= raw.proof.cut * (1 + 1e-9)
    few = lb.Layer(rng.normal(size=(3, 6)), np.eye(6) + 0.5)
    (task,) = tasks(lb.pruning_problem(few, k=3, pattern="column", refit=False))
    form = unit_form(task.gram, task.targets, task.allowed.original, task.allowed.structure)
    optimum = min(error(task, v) for v, _, _ in task.allowed.pieces())
    whole = MaskBlocksDual(np.zeros(6), np.zeros(6, dtype=np.int64), form.a * (1 - 1e-9), np.zeros(1))
    assert optimum * (1 - 1e-6) <= blocks_bound(form, whole) <= optimum


@pytest.mark.slow
def test_large_masks(rng: np.random.Generator) -> None:
    """Blocks, random exchanges and the time limit, for one group and for N:M."""
    x = rng.normal(size=(800, 400)) + rng.normal(size=(800, 1))
    layer = lb.Layer.from_activations(rng.normal(size=(4, 400)), x)
    for options in ({"pattern": "column", "density": 0.5}, {"pattern": "2:4", "share": "all"}):
        problem = lb.pruning_problem(layer, refit=False, **options)  # type: ignore[arg-type]
        solution = lb.solve(problem, jobs=1, time_limit=3.0)
        assert 0.5 * solution.upper_bound[0] < solution.lower_bound[0] <= solution.upper_bound[0]
        assert lb.evaluate(problem, solution.weights).feasible.all() and solution.seconds[0] < 12.0


def test_the_root_bound_is_derived_again() -> None:
    """What certification makes of the dual point is the root's bound, for units of several inputs, too."""
    layer = lb.demo_layers()["conv3"]
    for pattern in ("column", "channel", "position"):
        problem = lb.pruning_problem(layer, density=0.5, pattern=pattern, refit=False)
        (task,) = tasks(problem)
        raw = search_shared_mask(task, Control(10.0, 0.0, 1, 0, 1, threading.Event()))
        assert raw.dual is not None and raw.proof is not None
        bound = least(task.gram, task.target, task.allowed, raw.dual)
        assert 0.1 * raw.proof.cut < bound <= raw.proof.cut * (1 + 1e-9)


def test_forms_agree_with_errors(rng: np.random.Generator) -> None:
    """f of a mask is the error of its weights up to the charge, in both precisions and for inputs in any order."""
    for rows, n in ((3, 12), (200, 700)):
        x = rng.normal(size=(2 * n, n))
        gram, weight = x.T @ x / len(x), rng.normal(size=(rows, n))
        target = weight + 0.1 * rng.normal(size=weight.shape)
        layer = lb.Layer(weight, gram, target=target)
        problem = lb.pruning_problem(layer, k=2, pattern=(np.arange(n) % 5).tolist(), refit=False)
        (task,) = tasks(problem)
        form = unit_form(task.gram, task.targets, task.allowed.original, task.allowed.structure)
        for _ in range(4):
            kept = rng.random(5) < 0.5
            weights = np.where(kept[task.allowed.structure.unit], weight, 0.0)
            exact = error(task, weights)
            assert abs(form.value(kept) - exact) <= form.off + 1e-11 * exact
        assert form.off <= 1e-8 * abs(form.energy)


def test_an_indefinite_form_proves_nothing_false() -> None:
    """A matrix that rounding left indefinite: a zero diagonal is no minorant, and a negative one is."""
    a = np.array([[1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0]])
    form = MaskForm(a, np.array([1.0, 1.0]), 1.0, np.zeros(2, dtype=np.int64), np.array([2]), 0.0)
    assert mask_bound(form, np.array([0.5, 0.5]), np.zeros(2)) == -np.inf
    bound = mask_bound(form, np.array([0.5, 0.5]), np.full(2, -1e-8))
    assert -1e-6 < bound <= min(1.0, 0.0 + 2e-9)


def test_centres_are_minorants(rng: np.random.Generator) -> None:
    for n in (3, 40, 120):
        x = rng.normal(size=(2 * n, n)) + rng.normal(size=(2 * n, 1))
        matrix = x.T @ x / len(x)
        bounds: list[float] = []

        def relax(d: Float, bounds: list[float] = bounds) -> tuple[float, Float]:
            bounds.append(float(d.sum()))
            return bounds[-1], np.full(len(d), 0.5)

        d = centre_diagonal(matrix, relax, np.inf, lambda: np.inf)
        assert d is not None and np.all(d > 0)
        assert np.linalg.eigvalsh(matrix - np.diag(d))[0] >= -1e-12 * np.trace(matrix)
        assert d.sum() >= max(bounds) * (1 - 1e-9) and len(bounds) > 1
    assert centre_diagonal(np.ones((4, 4)), relax, np.inf, lambda: np.inf) is None


@pytest.mark.slow
def test_columns_of_a_real_layer(reference_data: Path) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer2.1.conv1"]
    problem = lb.pruning_problem(layer, density=0.25, pattern="column", refit=False)
    solution = lb.solve(problem, jobs=1, time_limit=8.0)
    assert solution.lower_bound[0] >= 0.98 * solution.upper_bound[0]
    assert solution.seconds[0] < 10.0
    channels = lb.solve(lb.pruning_problem(layer, density=0.5, pattern="channel", refit=False), jobs=1)
    assert list(channels.status) == [lb.Status.OPTIMAL]


def test_a_warm_start_and_a_node_limit() -> None:
    layer = lb.demo_layers()["conv2"]
    problem = lb.pruning_problem(layer, density=0.5, pattern="column", refit=False)
    first = lb.solve(problem, jobs=1, node_limit=3, time_limit=None)
    again = lb.solve(problem, jobs=1, node_limit=3, time_limit=None, warm_start=first.weights)
    assert again.upper_bound[0] <= first.upper_bound[0]
    same = lb.solve(problem, jobs=2, node_limit=3, time_limit=None)
    assert np.array_equal(same.weights, first.weights) and same.lower_bound[0] == first.lower_bound[0]
