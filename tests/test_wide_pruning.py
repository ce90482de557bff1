"""Pruning of layers that are too large for a tree, as if small ones were."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from matrices import from_python

import layerbounds as lb
from layerbounds.bounds.minorants.centre import Centre
from layerbounds.certify.interval import dual_bound
from layerbounds.kernels.pruning import subset
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import Control
from layerbounds.search.pruning import dispatch, family, wide
from layerbounds.search.pruning import preparation as pruning_preparation
from layerbounds.search.pruning.preparation import prepare_pruning
from layerbounds.search.pruning.wide import WidePreparation, WideSearch

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

KINDS = {
    "unstructured": {"density": 0.4},
    "2:4": {"pattern": "2:4"},
    "blocks": {"density": 0.5, "pattern": "block:3"},
}
MASKS = {f"mask {name}": {**kind, "refit": False} for name, kind in KINDS.items()}


def correlated(rng: np.random.Generator, n: int, channels: int = 1) -> lb.Layer:
    x = rng.normal(size=(3 * n, n)) + 0.7 * rng.normal(size=(3 * n, 1))
    return lb.Layer(rng.normal(size=(channels, n)), x.T @ x / len(x))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer counts as large."""
    for module in (pruning_preparation, family):
        monkeypatch.setattr(module, "WIDE", 0)
    monkeypatch.setattr(dispatch, "TREE_WORK", math.inf)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_the_centre_is_below_the_gram_matrix(rng: np.random.Generator, size: int) -> None:
    n = 30
    gram = correlated(rng, n).gram[0]
    centre = Centre(gram, np.arange(n) // size)
    before = np.linalg.slogdet(centre.matrix())[1] + np.linalg.slogdet(gram - centre.matrix())[1]
    for _ in range(40):
        if not centre.move():
            break
        assert np.linalg.eigvalsh(gram - centre.matrix())[0] > 0
    after = np.linalg.slogdet(centre.matrix())[1] + np.linalg.slogdet(gram - centre.matrix())[1]
    assert after > before
    # Near the maximiser, where each block is the Schur complement of the rest.
    inverse = np.linalg.inv(gram - centre.matrix())
    for rows in centre.rows:
        s = rows[rows >= 0]
        np.testing.assert_allclose(centre.matrix()[np.ix_(s, s)] @ inverse[np.ix_(s, s)], np.eye(len(s)), atol=0.2)
    # A branch moves on its own.
    other, kept = centre.fork(), centre.matrix()
    other.share = 0.1
    assert other.move(np.linspace(0.1, 2.0, len(centre.rows))) and other.retreat()
    np.testing.assert_array_equal(centre.matrix(), kept)


def test_singular_matrices_have_no_centre() -> None:
    x = np.ones((4, 5))
    assert not Centre(x.T @ x, np.arange(5)).usable


def test_the_tableau_is_that_of_the_sweeps(rng: np.random.Generator) -> None:
    n = 20
    gram = correlated(rng, n).gram[0]
    b = gram @ rng.normal(size=n)
    kept = rng.random(n) < 0.4
    a, r, swept, slack = np.empty((n, n)), np.empty(n), np.empty(n, dtype=bool), np.empty(1, dtype=np.int64)
    from_python(subset.start)(gram, b, kept, a, r, swept, slack, np.zeros(n, np.int64), np.array([int(kept.sum())]))
    tableau = wide._tableau(gram, b, kept)
    assert tableau is not None
    np.testing.assert_allclose(tableau[0], a, atol=1e-9 * np.abs(a).max())
    np.testing.assert_allclose(tableau[1], r, atol=1e-9 * np.abs(r).max())


@pytest.mark.parametrize("kind", {**KINDS, **MASKS})
def test_intervals_hold_the_optimum(
    rng: np.random.Generator, kind: str, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = lb.pruning_problem(correlated(rng, 24, 2), **{**KINDS, **MASKS}[kind])
    assert isinstance(prepare_pruning(problem, 0), WidePreparation)
    fast = lb.solve(problem, time_limit=0.3, jobs=1)
    monkeypatch.setattr(pruning_preparation, "WIDE", 800)
    exact = lb.solve(problem, jobs=1)
    assert all(status == lb.Status.OPTIMAL for status in exact.status)
    assert np.all(fast.lower_bound <= exact.upper_bound) and np.all(fast.upper_bound >= exact.lower_bound)
    assert np.all(fast.lower_bound > 0.1 * exact.upper_bound)
    # Exchanges and repeated eliminations find good sets of so few inputs.
    assert np.all(fast.upper_bound < 1.2 * exact.upper_bound)
    assert lb.evaluate(problem, fast.weights).feasible.all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_is_kept(rng: np.random.Generator, kind: str, large: None) -> None:
    problem = lb.pruning_problem(correlated(rng, 24), **KINDS[kind])
    first = lb.solve(problem, time_limit=0.3, jobs=1)
    again = lb.solve(problem, time_limit=0.0, jobs=1, warm_start=first.weights)
    assert again.upper_bound[0] <= first.upper_bound[0] * (1.0 + 1e-12)
    assert again.status[0] == lb.Status.TIME_LIMIT


def test_a_gap_ends_the_search(rng: np.random.Generator, large: None) -> None:
    problem = lb.pruning_problem(correlated(rng, 24), density=0.5)
    solution = lb.solve(problem, time_limit=30.0, gap=0.9, jobs=1)
    assert solution.status[0] == lb.Status.GAP_REACHED
    assert solution.seconds[0] < 10.0


def test_patterns_with_room_for_all(rng: np.random.Generator, large: None) -> None:
    solution = lb.solve(lb.pruning_problem(correlated(rng, 12), k=12), time_limit=30.0, jobs=1)
    assert solution.status[0] == lb.Status.OPTIMAL
    assert solution.upper_bound[0] == solution.lower_bound[0] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_dual_points_for_other_solvers(rng: np.random.Generator, kind: str, large: None) -> None:
    task = make_task(lb.pruning_problem(correlated(rng, 24), **KINDS[kind]), 0, None, None)
    dual = family.FAMILY.root_dual(task, None, 0.2)
    assert dual is not None
    assert 0.0 < dual_bound(task, dual) <= task.energy


@pytest.mark.parametrize("kind", KINDS)
def test_certification_derives_the_bound_of_the_search(rng: np.random.Generator, kind: str, large: None) -> None:
    problem = lb.pruning_problem(correlated(rng, 24), **KINDS[kind])
    shared = prepare_pruning(problem, 0)
    assert isinstance(shared, WidePreparation)
    task = make_task(problem, 0, shared, None)
    search = WideSearch(task, Control(0.2, 0.0, None, 0, 1, threading.Event()), shared)
    search.run()
    assert search.dual is not None
    assert dual_bound(task, search.dual) == pytest.approx(search.lower, rel=1e-6)
