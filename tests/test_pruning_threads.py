"""Several threads on the tree of one channel: the same intervals, whoever works on which node."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control, Status
from layerbounds.search.frontier import Frontier, Incumbent
from layerbounds.search.pruning import clusters, compiled_tree
from layerbounds.search.pruning import subset_search as pruning
from layerbounds.search.pruning.dispatch import search_pruning
from layerbounds.search.pruning.subset_search import SubsetSearch

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

PATTERNS = {
    "subset": {"density": 0.25},
    "2:4": {"pattern": "2:4"},
    "blocks": {"density": 0.5, "pattern": "block:2"},
    "mask": {"density": 0.25, "refit": False},
}


def layer(seed: int, n: int) -> lb.Layer:
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(size=(3 * n, n)), axis=1) + 2.0 * rng.normal(size=(3 * n, n))
    return lb.Layer(rng.normal(size=(1, n)), x.T @ x / len(x))


def task_of(problem: lb.PruningProblem) -> Task[Support]:
    task = make_task(problem, 0, None, None)
    assert isinstance(task.allowed, Support)
    return task


def control(threads: int, time_limit: float = 60.0) -> Control:
    return Control(time_limit, 0.0, None, 0, threads, threading.Event())


@pytest.mark.slow
@pytest.mark.parametrize("tree", ["compiled", "python"])
@pytest.mark.parametrize("options", PATTERNS.values(), ids=PATTERNS)
def test_same_interval(options: dict[str, object], tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are small, many, and shared often; one thread is the reference."""
    problems = [lb.pruning_problem(layer(seed, 24), **options) for seed in range(3)]  # type: ignore[arg-type]
    best = [lb.solve(problem, jobs=1) for problem in problems]
    for module, name, value in (
        (pruning, "ENUMERATED", 0),
        (compiled_tree, "MOST_SETS", 1.0),
        (compiled_tree, "SHARED", 1),
        (compiled_tree, "BUDGET", 8),
        (clusters, "EARLY_SETS", 1.0),
        (clusters, "MOST_SETS", 1.0),
    ):
        monkeypatch.setattr(module, name, value)
    if tree == "python":
        monkeypatch.setattr(clusters, "SMALL", 0)
        monkeypatch.setattr(compiled_tree.CompiledTree, "applies", staticmethod(lambda *_: False))
    for problem, one in zip(problems, best, strict=True):
        assert one.status[0] == Status.OPTIMAL
        for threads in (2, 5):
            task = task_of(problem)
            raw = search_pruning(task, control(threads))
            assert raw.termination == Status.OPTIMAL
            assert raw.proof is not None
            deviation = raw.weights - task.target
            error = float(deviation @ task.gram @ deviation)
            assert error == pytest.approx(one.upper_bound[0], rel=1e-6)
            assert one.lower_bound[0] * (1 - 2e-6) <= raw.proof.cut <= one.upper_bound[0] * (1 + 1e-9)


def test_every_thread_has_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open nodes are divided, and none gets lost: the work is that of one thread, but for its order."""
    monkeypatch.setattr(compiled_tree, "MOST_SETS", 1.0)
    monkeypatch.setattr(compiled_tree, "BUDGET", 40)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(48, 40))
    task = task_of(lb.pruning_problem(lb.Layer(rng.normal(size=(1, 40)), x.T @ x / 48), density=0.25))
    trees = {}
    for threads in (1, 4):
        search = SubsetSearch(task, control(threads))
        search.first_incumbents()
        trees[threads] = compiled_tree.CompiledTree(search, search.root())
        assert trees[threads].run() == Status.OPTIMAL
    assert len(trees[4].trees) == 4
    assert trees[1].nodes > 500
    assert min(tree.expanded for tree in trees[4].trees) > 0.5 * trees[1].nodes / 4
    assert trees[4].nodes == pytest.approx(trees[1].nodes, rel=0.2)
    assert trees[4].lower == pytest.approx(trees[1].lower, rel=1e-6)


@pytest.mark.parametrize("options", PATTERNS.values(), ids=PATTERNS)
def test_limits(options: dict[str, object]) -> None:
    """A limit ends all threads, with a bound that every node counts for."""
    problem = lb.pruning_problem(layer(3, 120), **options)  # type: ignore[arg-type]
    begin = time.perf_counter()
    raw = search_pruning(task_of(problem), control(3, 0.5))
    assert time.perf_counter() - begin < 10.0
    reference = lb.solve(problem, time_limit=0.5, jobs=1)
    assert raw.proof is None or raw.proof.cut <= reference.upper_bound[0] * (1 + 1e-9)
    lower = [point.lower for point in raw.trace]
    assert lower == sorted(lower)


class Broken:
    """An expander whose second node fails in whichever thread takes it."""

    def __init__(self) -> None:
        self.incumbent = Incumbent(1.0, np.zeros(1))
        self.excluded = float("inf")
        self.calls = [0]

    def fork(self, number: int) -> Broken:
        return self

    def expand(self, node: int, bound: float, cut: float) -> tuple[float, list[int]]:
        self.calls[0] += 1
        if self.calls[0] > 1:
            raise RuntimeError("a node failed")
        return bound, [node, node]


def test_an_error_ends_all_threads() -> None:
    """The others do not wait for the children of a node whose thread failed."""
    frontier: Frontier[int] = Frontier(Broken(), control(4), 1.0, 0, 0.1, 1.0, 0.0)
    with pytest.raises(RuntimeError, match="a node failed"):
        frontier.run()


@pytest.mark.slow
def test_node_limit_is_reproducible() -> None:
    """Under a node limit the tree has one thread, however many there are."""
    problem = lb.pruning_problem(layer(1, 48), density=0.25)
    results = [search_pruning(task_of(problem), replace(control(threads), node_limit=20)) for threads in (1, 4)]
    assert results[0].nodes == results[1].nodes
    assert results[0].proof is not None
    assert results[1].proof is not None
    assert results[0].proof.cut == results[1].proof.cut
