"""Root bounds of masks that rows share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from test_shared_bounds import KINDS, STRUCTURES, data, exact_minimum, structure_of

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.least import least
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control
from layerbounds.search.shared import cluster_root, root
from layerbounds.search.shared import selection as selections
from layerbounds.search.shared.cluster_root import find_cluster_root
from layerbounds.search.shared.root import Root, find_root
from layerbounds.search.shared.selection import Selection, make_selection


def problem_of(weight: Float, gram: Float, unit: list[int], k: int) -> tuple[Task[SharedSupport], Selection]:
    problem = lb.pruning_problem(lb.Layer(weight, gram), k=k, pattern=unit)
    task: Task[SharedSupport] = make_task(problem, problem.sets(range(len(weight)))[0], None, None)
    return task, make_selection(task)


def control_of(seconds: float) -> Control:
    return Control(seconds, 0.0, None, 0, 1, threading.Event())


def root_of(selection: Selection, seconds: float = 1e9) -> Root:
    return find_root(selection, control_of(seconds))


def optimum(task: Task[SharedSupport]) -> float:
    structure = task.allowed.structure
    b, values = task.gram @ task.targets.T, []
    for units in combinations(range(len(structure.group)), int(structure.capacity[0])):
        s = np.flatnonzero(np.isin(structure.unit, units))
        saved = float(np.sum(b[s] * np.linalg.solve(task.gram[np.ix_(s, s)], b[s]))) if len(s) else 0.0
        values.append(float(np.sum(task.targets.T * b)) - saved)
    return min(values)


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize(
    "unit",
    [list(range(9)), [0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 2, 2, 2, 2, 2, 2], [1, 0, 2, 1, 0, 2, 1, 3, 3], [0] * 9],
)
@pytest.mark.parametrize("factor", [1.0, 1e-60, 1e60])
def test_bounds_are_valid_and_certified(
    rows: int, unit: list[int], factor: float, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    gram, weight = random_gram(9), rng.normal(size=(rows, 9))
    for k in range(max(unit) + 1):
        task, selection = problem_of(weight * factor, gram * factor, unit, k)
        best = optimum(task)
        found = root_of(selection)
        assert found.dual is not None
        assert 0.0 < found.bound * selection.unit <= best * (1 + 1e-12)
        assert found.z.shape == found.saving.shape == (max(unit) + 1,)
        certified = least(task.gram, task.target, task.allowed, found.dual)
        np.testing.assert_allclose(certified, found.bound * selection.unit, rtol=1e-6)
        assert certified <= best * (1 + 1e-12)


def test_uncoupled_units_have_no_gap(rng: np.random.Generator) -> None:
    blocks = [np.cov(rng.normal(size=(3, 30))) for _ in range(4)]
    gram = np.zeros((12, 12))
    for g, block in enumerate(blocks):
        gram[3 * g : 3 * g + 3, 3 * g : 3 * g + 3] = block
    task, selection = problem_of(rng.normal(size=(5, 12)), gram, list(np.repeat(np.arange(4), 3)), 2)
    assert root_of(selection).bound * selection.unit >= 0.97 * optimum(task)


def test_singular_matrices_and_no_time(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    x = rng.normal(size=(4, 9))
    _, selection = problem_of(rng.normal(size=(2, 9)), x.T @ x, list(range(9)), 3)
    assert root_of(selection).bound == 0.0
    _, selection = problem_of(rng.normal(size=(2, 9)), random_gram(9), list(range(9)), 3)
    assert root_of(selection, 0.0).dual is not None


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("unit", [list(range(9)), [0, 1, 1, 2, 2, 2, 3, 4, 4]])
def test_clusters_are_valid(
    rows: int,
    unit: list[int],
    rng: np.random.Generator,
    random_gram: Callable[..., Float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_root, "FEW", 1)
    for k in (1, 3):
        task, selection = problem_of(rng.normal(size=(rows, 9)), random_gram(9), unit, k)
        best = optimum(task)
        stronger = find_cluster_root(selection, control_of(1e9))
        assert stronger is not None
        bound, dual = stronger
        assert bound * selection.unit <= best * (1 + 1e-12)
        certified = least(task.gram, task.target, task.allowed, dual)
        assert certified <= best * (1 + 1e-12)
        np.testing.assert_allclose(certified, bound * selection.unit, rtol=1e-6, atol=1e-12 * selection.unit)


def test_clusters_beat_single_units(rng: np.random.Generator) -> None:
    x = rng.normal(size=(200, 20)) + 0.7 * rng.normal(size=(200, 10)).repeat(2, axis=1)
    _, selection = problem_of(rng.normal(size=(4, 20)), x.T @ x / 200, list(range(20)), 7)
    stronger = find_cluster_root(selection, control_of(1e9))
    assert stronger is not None
    assert stronger[0] > 1.05 * root_of(selection).bound


@pytest.mark.parametrize("pattern", ["2:4", "1:3", "3:6"])
def test_groups_of_shared_masks(
    pattern: str, rng: np.random.Generator, random_gram: Callable[..., Float], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = lb.pruning_problem(lb.Layer(rng.normal(size=(3, 12)), random_gram(12)), pattern=pattern, share=3)
    task: Task[SharedSupport] = make_task(problem, [0, 1, 2], None, None)
    selection = make_selection(task)
    b, best = task.gram @ task.targets.T, np.inf
    for _, directions, _ in task.allowed.pieces():
        s = np.flatnonzero(directions.any(axis=(0, 2)))
        saved = float(np.sum(b[s] * np.linalg.solve(task.gram[np.ix_(s, s)], b[s]))) if len(s) else 0.0
        best = min(best, float(np.sum(task.targets.T * b)) - saved)
    monkeypatch.setattr(cluster_root, "FEW", 1)
    found, stronger = root_of(selection), find_cluster_root(selection, control_of(1e9))
    assert stronger is not None
    for bound, dual in ((found.bound, found.dual), stronger):
        assert 0.0 < bound * selection.unit <= best * (1 + 1e-12)
        assert dual is not None
        assert 0.0 < least(task.gram, task.target, task.allowed, dual) <= best * (1 + 1e-12)


@pytest.mark.parametrize("changed", ["precision", "sketch"])
def test_large_sets_of_rows(
    changed: str, rng: np.random.Generator, random_gram: Callable[..., Float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Double precision, and combinations of rows, where many rows would take too long: the bound is of all rows."""
    gram, weight, unit = random_gram(9), rng.normal(size=(8, 9)), [0, 0, 1, 1, 2, 2, 3, 3, 4]
    full = root_of(problem_of(weight, gram, unit, 2)[1])
    if changed == "precision":
        monkeypatch.setattr(selections, "EXTENDED_WORK", 0.0)
    else:
        monkeypatch.setattr(root, "SKETCH_WORK", 0.0)
        monkeypatch.setattr(root, "SKETCHED", 3)
    task, selection = problem_of(weight, gram, unit, 2)
    found = root_of(selection)
    assert found.dual is not None
    assert 0.5 * full.bound <= found.bound <= optimum(task) / selection.unit * (1 + 1e-12)
    np.testing.assert_allclose(
        least(task.gram, task.target, task.allowed, found.dual), found.bound * selection.unit, rtol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_data(kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_root, "FEW", 1)
    for number, parts in enumerate(STRUCTURES[1:6]):
        gram, targets = data(kind, 1 + 4 * (number % 3), rng)
        structure = structure_of(parts)
        allowed = SharedSupport(structure, targets, True)
        exact = exact_minimum(gram, targets, allowed)
        rows, energy = tuple(range(len(targets))), float(np.sum((targets @ gram) * targets))
        task = Task(rows, gram, targets, np.zeros(len(targets)), energy, np.ones(7, dtype=bool), allowed)
        selection = make_selection(task)
        found, stronger = root_of(selection), find_cluster_root(selection, control_of(1e9))
        for bound, dual in ((found.bound, found.dual), stronger or (0.0, None)):
            assert bound <= 0.0 or Fraction(bound) * Fraction(selection.unit) <= exact
            if dual is not None:
                value = least(gram, task.target, allowed, dual)
                assert value <= 0.0 or Fraction(value) <= exact
