"""Trees that break circuits of dependent inputs up, against brute force in fractions."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.certify.interval import certify
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control, Status
from layerbounds.search.pruning import dispatch, exact_sets
from layerbounds.search.pruning.circuits import vanishes
from layerbounds.search.pruning.subset_run import search_subset


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small factorizations with several BLAS threads are many times slower than with one."""
    with threadpool_limits(1):
        yield


def control(node_limit: int | None = None, threads: int = 1) -> Control:
    return Control(20.0, 0.0, node_limit, 0, threads, threading.Event())


def activations(rng: np.random.Generator, kind: str, n: int) -> Float:
    """Integers, whose products are exact; "rank" leaves fewer positions than inputs."""
    x = np.round(rng.normal(size=(2 * n, n)) * 64.0)
    if kind == "rank":
        x = x[: int(rng.integers(1, n))]
    elif kind == "copies":
        x[:, 1] = x[:, 3] = x[:, 0]
    elif kind == "multiples":
        x[:, 1], x[:, 3] = -2.0 * x[:, 0], 3.0 * x[:, 2]
    elif kind == "sums":
        x[:, 2], x[:, 5] = x[:, 0] + x[:, 1], x[:, 3] - x[:, 2]
    elif kind == "near":
        x[:, 1] = x[:, 0] + 2.0 ** -int(rng.integers(4, 30)) * x[:, 1]
    else:
        x[:, 1] = x[:, 0]
        x = x * 2.0 ** rng.integers(-60, 60, size=n)
    return x


def task_of(rng: np.random.Generator, kind: str, n: int, **pattern: Any) -> tuple[Task[Support], lb.PruningProblem]:
    x = activations(rng, kind, n)
    # A power of two rounds nothing.
    layer = lb.Layer(np.round(rng.normal(size=(1, n)), 6), x.T @ x / 64.0)
    problem = lb.pruning_problem(layer, **pattern)
    task = make_task(problem, 0, None, None)
    assert isinstance(task.allowed, Support)
    return task, problem


def optimum(task: Task[Support]) -> Fraction:
    """Every set of the pattern, in integers."""
    search = exact_sets.ExactSets(task, control())
    structure = task.allowed.structure
    choices = [
        itertools.combinations(np.flatnonzero(structure.group == g).tolist(), int(capacity))
        for g, capacity in enumerate(structure.capacity)
    ]
    return min(search.error_on(sorted(itertools.chain(*sets))) for sets in itertools.product(*choices))


@pytest.mark.parametrize("kind", ["rank", "copies", "multiples", "sums", "near", "scales"])
def test_never_above_the_optimum(kind: str) -> None:
    rng = np.random.default_rng(list(kind.encode()))
    closed = 0
    patterns: tuple[dict[str, Any], ...] = ({"k": 2}, {"k": 4}, {"k": 7}, {"pattern": "2:4"}, {"pattern": "1:3"})
    for pattern in patterns:
        n = 8 if "pattern" in pattern else 9
        task, _ = task_of(rng, kind, n, **pattern)
        best = optimum(task)
        for limit in (None, int(rng.integers(1, 30))):
            result = certify(task, search_subset(task, control(limit)), 0.0)
            assert Fraction(result.lower) <= best <= Fraction(result.upper)
        result = certify(task, search_subset(task, control(threads=2)), 0.0)
        assert Fraction(result.lower) <= best <= Fraction(result.upper)
        closed += result.status == Status.OPTIMAL
    assert closed >= (3 if kind in ("rank", "near", "scales") else len(patterns))


@pytest.mark.parametrize(
    ("kind", "pattern"), [("multiples", {"k": 9}), ("sums", {"k": 9}), ("sums", {"pattern": "2:4"})]
)
def test_circuits_of_many_inputs_close(kind: str, pattern: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "applies", lambda *_: False)
    _, problem = task_of(np.random.default_rng(5), kind, 32, **pattern)
    solution = lb.solve(problem, time_limit=20.0, jobs=1)
    assert solution.status == [Status.OPTIMAL]
    assert solution.lower_bound[0] > 0.0


def test_a_node_limit_counts_the_nodes_of_all_trees() -> None:
    task, _ = task_of(np.random.default_rng(6), "sums", 32, k=9)
    runs = [search_subset(task, control(limit)) for limit in (3, 25, 25)]
    assert runs[0].nodes <= 3 and runs[1].nodes <= 25
    assert runs[1].nodes == runs[2].nodes
    np.testing.assert_array_equal(runs[1].weights, runs[2].weights)


def test_combinations_that_vanish() -> None:
    x = np.array([[1, 2, 0, 3], [0, 5, 1, 5], [4, 1, -2, 5]])
    gram = (x.T @ x).tolist()
    assert vanishes(gram, [0, 1, 3])
    # The third one takes no part in it, and two of them alone do not vanish.
    assert not vanishes(gram, [0, 1, 2, 3])
    assert not vanishes(gram, [0, 1])
    # Semidefinite on its members, but not beside another input.
    assert not vanishes([[1, 1, 0], [1, 1, 1], [0, 1, 1]], [0, 1])
