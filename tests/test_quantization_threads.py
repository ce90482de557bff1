"""Several threads in one depth-first search of a channel: the same answers, nothing lost, nothing left running."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import correlated

import layerbounds as lb
from layerbounds.layers.tensor_files import read_tensors
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import Control
from layerbounds.search.quantization import channel_search as quantization
from layerbounds.search.quantization.grid_units import UnitProblem, make_units
from layerbounds.search.quantization.team import Team
from layerbounds.search.quantization.tree import Tree
from layerbounds.solvers.native import NativeBackend


@pytest.fixture
def split_at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Threads join small searches at once and take work from one another all the time; what they were given."""
    monkeypatch.setattr(quantization, "ALONE", 0)
    monkeypatch.setattr(quantization, "SHORTER", 1 << 14)
    given: list[bool] = []
    give = Tree.give

    def spy(self: Tree, other: Tree) -> bool:
        given.append(give(self, other))
        return given[-1]

    monkeypatch.setattr(Tree, "give", spy)
    return given


def problem_of(kind: str, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, len(kind)])
    n = {"one": 1, "ternary": 16, "binary": 20, "codebook": 14, "singular": 10}.get(kind, 14)
    gram = correlated(rng, n, rank=n // 2 if kind == "singular" else None)
    if kind == "dead":
        gram[[2, 5]] = 0.0
        gram[:, [2, 5]] = 0.0
    weight = rng.normal(size=(1, n))
    layer = lb.Layer(weight, gram)
    if kind in ("ternary", "binary"):
        return lb.quantization_problem(layer, grid=lb.codebook_grid(weight, kind))
    if kind == "codebook":
        return lb.quantization_problem(layer, grid=lb.codebook_grid(weight, [-1.0, -0.3, 0.0, 0.2, 1.0]))
    if kind == "box":
        return lb.quantization_problem(layer, bits=3, scale=0.1 * np.ones(1))
    return lb.quantization_problem(layer, bits=3)


KINDS = ("random", "singular", "dead", "one", "binary", "ternary", "codebook", "box")


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_of_one_thread(kind: str, split_at_once: list[bool]) -> None:
    problem = problem_of(kind)
    one, two, four = (lb.solve(problem, "native", jobs=jobs, time_limit=100.0) for jobs in (1, 2, 4))
    for other in (two, four):
        assert other.status[0] == one.status[0]
        slack = 1e-12 * one.energy[0]
        np.testing.assert_allclose(other.upper_bound, one.upper_bound, rtol=1e-6, atol=slack)
        np.testing.assert_allclose(other.lower_bound, one.lower_bound, rtol=1e-6, atol=slack)
        error = lb.evaluate(problem, other.weights).error[0]
        assert error == pytest.approx(other.upper_bound[0], rel=1e-9, abs=slack)


def test_work_is_handed_over(split_at_once: list[bool]) -> None:
    lb.solve(problem_of("random", 1), "native", jobs=3, time_limit=100.0)
    assert any(split_at_once)


@pytest.mark.parametrize("bits", [3, 4])
def test_real_inputs(
    bits: int, split_at_once: list[bool], reference_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "SHORTER", 1 << 9)
    tensors = read_tensors(reference_data / "resnet20_layers.safetensors")[0]
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer1.0.conv1"]
    kept = np.flatnonzero(layer.live())[:28]
    few = lb.Layer(layer.matrix[:2, kept], layer.gram[0][np.ix_(kept, kept)])
    problem = lb.quantization_problem(few, bits=bits, scale=tensors[f"layer1.0.conv1.scale_{bits}bit"][:2])
    one, two = (lb.solve(problem, "native", jobs=jobs, channels=[0], time_limit=60.0) for jobs in (1, 2))
    assert one.status[0] == two.status[0] == lb.Status.OPTIMAL
    np.testing.assert_allclose(two.upper_bound, one.upper_bound, rtol=1e-6)
    assert any(split_at_once)


@pytest.mark.parametrize("kind", ["random", "singular", "ternary"])
def test_certificates(kind: str, split_at_once: list[bool], tmp_path: Path) -> None:
    solution = lb.solve(problem_of(kind, 2), "native", jobs=3, time_limit=100.0)
    solution.save_certificate(tmp_path / "certificate.safetensors")
    report = lb.verify(tmp_path / "certificate.safetensors")
    assert report.valid, report.reason
    assert any(split_at_once)


def unit_of(seed: int, n: int = 6, bits: int = 2) -> UnitProblem:
    rng = np.random.default_rng(seed)
    problem = lb.quantization_problem(lb.Layer(rng.normal(size=(1, n)), correlated(rng, n)), bits=bits)
    preparation = NativeBackend().prepare(problem, 0, 1)
    assert preparation is not None
    return make_units(make_task(problem, 0, preparation, None), preparation)


def objectives(unit: UnitProblem) -> dict[tuple[int, ...], float]:
    """Of all points, by the indices of their levels."""
    result = {}
    for choice in itertools.product(*(range(c) for c in unit.count)):
        deviation = unit.levels[list(choice), np.arange(unit.size)] - unit.origin
        result[choice] = float(deviation @ unit.gram @ deviation)
    return result


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_every_leaf_below_the_cut_is_found_once(seed: int, threads: int) -> None:
    unit = unit_of(seed)
    values = objectives(unit)
    cut = float(np.quantile(list(values.values()), 0.1))
    tree = Tree(unit)
    tree.restart(cut)
    team = Team(tree, threads, 5, lambda nodes: False, most_leaves=10**6)
    assert team.run() and tree.exhausted
    found = sorted(tuple(int(i) for i in leaf) for leaf in team.leaves)
    assert found == sorted(choice for choice, value in values.items() if value < cut)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_leaf_is_the_least(seed: int) -> None:
    unit = unit_of(seed, n=7)
    values = objectives(unit)
    tree = Tree(unit)
    tree.restart(2.0 * min(values.values()) + 1.0)
    assert Team(tree, 3, 3, lambda nodes: False).run()
    assert tree.found is not None
    least = min(values.values())
    assert values[tuple(int(i) for i in tree.found)] == pytest.approx(least, rel=1e-9)
    assert tree.cut == pytest.approx(least, rel=1e-9)


def test_what_is_seen_adds_up() -> None:
    def search(threads: int) -> Tree:
        tree = Tree(unit_of(0, n=8))
        # The cut of an exhaustive collection does not depend on who finds what first.
        tree.restart(float(np.quantile(list(objectives(unit_of(0, n=8)).values()), 0.01)))
        team = Team(tree, threads, 7, lambda nodes: False, learn=True, most_leaves=10**6)
        assert team.run()
        return tree

    one, three = search(1), search(3)
    assert one.nodes[0] == three.nodes[0] > 100
    for name in ("extreme", "reach", "_seen", "_distance"):
        np.testing.assert_allclose(getattr(three, name), getattr(one, name), rtol=1e-9, err_msg=name)
    assert np.any(one._seen > 0)


def test_more_leaves_than_wanted_end_the_search() -> None:
    unit = unit_of(1)
    tree = Tree(unit)
    tree.restart(max(objectives(unit).values()) + 1.0)
    team = Team(tree, 2, 5, lambda nodes: False, most_leaves=3)
    assert not team.run()
    assert 4 <= len(team.leaves) <= 5


@pytest.mark.parametrize("reached", [10, 300])
def test_the_end_of_the_nodes(reached: int) -> None:
    unit = unit_of(2, n=8)
    tree = Tree(unit)
    tree.restart(max(objectives(unit).values()) + 1.0)
    assert not Team(tree, 3, 5, lambda nodes: nodes >= reached, most_leaves=10**6).run()
    assert reached <= tree.nodes[0] <= reached + 3 * 5


def hard_layer(n: int = 64) -> lb.Layer:
    rng = np.random.default_rng(7)
    return lb.Layer(rng.normal(size=(1, n)), correlated(rng, n, 5 * n))


def test_time_limit_and_cancellation() -> None:
    problem = lb.quantization_problem(hard_layer(), bits=4)
    preparation = NativeBackend().prepare(problem, 0, 1)
    assert preparation is not None
    task = make_task(problem, 0, preparation, None)
    before = threading.active_count()
    ends: list[float] = []
    for cancelled in (False, True):
        control = Control(60.0 if cancelled else 0.3, 0.0, None, 0, 3, threading.Event())
        search = quantization.ChannelSearch(task, preparation, control)
        tree = search.tree
        tree.restart(1e3 * search.upper)
        if cancelled:
            threading.Timer(0.3, control.cancel.set).start()
        busy = time.thread_time()
        assert not search._team(np.inf, 0.0, most_leaves=10**9).run()
        # On busy cores seconds of the wall say little: no thread works on for long after the end.
        assert control.remaining() == 0.0 and time.thread_time() - busy < 0.6
        ends.append(control.elapsed())
    assert min(ends) >= 0.3
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize("thread", [0, 1])
def test_an_exception_ends_all_threads(thread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = unit_of(3, n=8)
    tree = Tree(unit)
    tree.restart(max(objectives(unit).values()) + 1.0)
    run = Tree.run

    def fails(self: Tree, *arguments: Any) -> bool:
        if (self is not tree) == thread and self.nodes[0] > 20:
            raise ArithmeticError("of a thread")
        return run(self, *arguments)

    monkeypatch.setattr(Tree, "run", fails)
    with pytest.raises(ArithmeticError, match="of a thread"):
        Team(tree, 2, 5, lambda nodes: False, most_leaves=10**6).run()


def test_a_node_limit_gives_the_same_whatever_the_threads(split_at_once: list[bool]) -> None:
    problem = lb.quantization_problem(hard_layer(30), bits=3)
    solutions = [lb.solve(problem, "native", node_limit=20_000, jobs=jobs, time_limit=60.0) for jobs in (1, 2, 4)]
    for other in solutions[1:]:
        assert other.nodes[0] == solutions[0].nodes[0]
        assert other.lower_bound[0] == solutions[0].lower_bound[0]
        assert other.upper_bound[0] == solutions[0].upper_bound[0]
        np.testing.assert_array_equal(other.weights, solutions[0].weights)
    assert not split_at_once


def test_nothing_is_given_before_the_beginning_or_after_the_end() -> None:
    tree = Tree(unit_of(0))
    tree.restart(np.inf)
    other = tree.fork()
    assert other.exhausted and not tree.give(other)
    tree.close()
    assert tree.exhausted and not tree.give(other)
