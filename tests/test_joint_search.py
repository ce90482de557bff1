"""The engine for pruning and quantization together against brute force, and under its limits."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from zoo import brute_force, layers

import layerbounds as lb
from layerbounds.certify.interval import certify
from layerbounds.kernels.joint import relaxed_bound, relaxed_node
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Control, Status
from layerbounds.search.joint import deep, tree
from layerbounds.search.joint.channel_search import search_joint
from layerbounds.search.joint.family import FAMILY
from layerbounds.search.joint.root import first_minorant, gram_parts
from layerbounds.search.joint.tree import whole
from layerbounds.search.joint.units import joint_units

NAMES = [name for name in layers() if name != "all dead"]


def control(**how: object) -> Control:
    given = {"time_limit": 30.0, "gap": 0.0, "node_limit": None, "seed": 0, "threads": 1, "cancel": threading.Event()}
    return Control(**(given | how))  # type: ignore[arg-type]


def problems(layer: lb.Layer) -> list[tuple[str, Problem]]:
    return list(FAMILY.examples(layer))


def random_problem(rng: np.random.Generator) -> Problem:
    n = int(rng.integers(2, 8))
    x = rng.normal(size=(int(rng.integers(2, 3 * n)), n)) + rng.normal() * rng.normal(size=(1, n))
    layer = lb.Layer(rng.normal(size=(1, n)), x.T @ x / len(x), "random")
    patterns = [{"k": int(rng.integers(0, n + 1))}, {"pattern": "1:2"}, {"pattern": "2:4"}]
    patterns.append({"pattern": "block:2", "k": int(rng.integers(0, n + 1)) // 2 * 2})
    pattern = patterns[int(rng.integers(len(patterns)))]
    kind = int(rng.integers(4))
    if kind == 0:
        return lb.joint_problem(layer, weights=layer.weight, **pattern)  # type: ignore[arg-type]
    if kind == 1:
        grid = lb.codebook_grid(layer.weight, np.sort(rng.normal(size=3)))
        return lb.joint_problem(layer, grid=grid, **pattern)  # type: ignore[arg-type]
    bits = int(rng.integers(1, 4 if n < 6 else 3))
    return lb.joint_problem(layer, bits, **pattern)  # type: ignore[arg-type]


def check(problem: Problem, result: object, optimum: float, energy: float) -> None:
    slack = 1e-9 * optimum + 1e-13 * energy
    assert result.lower <= optimum + slack  # type: ignore[attr-defined]
    assert result.upper >= optimum - slack  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_layers_are_closed(name: str) -> None:
    for rule, problem in problems(layers()[name]):
        task = make_task(problem, 0, None, None)
        result = certify(task, search_joint(task, control()), 0.0)
        optimum = brute_force(problem)
        check(problem, result, optimum, task.energy)
        assert result.status == Status.OPTIMAL, (rule, result.lower, result.upper)
        assert result.upper <= optimum + 1.01 * (OPTIMAL_RELATIVE * optimum + OPTIMAL_ABSOLUTE * task.energy)


@pytest.mark.parametrize("seed", range(60))
def test_random_problems_against_brute_force(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed))
    optimum = brute_force(problem)
    task = make_task(problem, 0, None, None)
    result = certify(task, search_joint(task, control()), 0.0)
    check(problem, result, optimum, task.energy)
    assert result.status == Status.OPTIMAL


@pytest.mark.parametrize("seed", range(40))
def test_the_tree_alone_is_exact(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Enumeration closes small problems before the tree begins.
    monkeypatch.setattr(tree, "MOST_INPUTS", 0)
    monkeypatch.setattr(tree, "MOST_POINTS", 0.0)
    problem = random_problem(np.random.default_rng(1000 + seed))
    optimum = brute_force(problem)
    task = make_task(problem, 0, None, None)
    result = certify(task, search_joint(task, control()), 0.0)
    check(problem, result, optimum, task.energy)
    assert result.status == Status.OPTIMAL


@pytest.mark.parametrize("seed", range(20))
def test_rising_targets_are_exact(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every search is given up once, and targets rise in small steps.
    monkeypatch.setattr(deep, "LEAD", 1)
    monkeypatch.setattr(deep, "LEAD_GROUPS", 1)
    monkeypatch.setattr(deep, "PART", 2)
    monkeypatch.setattr(deep, "FIRST", 40.0)
    monkeypatch.setattr(deep, "CHEAP", 4.0)
    monkeypatch.setattr(deep, "LEARN", (3, 100))
    monkeypatch.setattr(tree, "BUDGET", 8)
    problem = random_problem(np.random.default_rng(2000 + seed))
    optimum = brute_force(problem)
    task = make_task(problem, 0, None, None)
    result = certify(task, search_joint(task, control()), 0.0)
    check(problem, result, optimum, task.energy)
    assert result.status == Status.OPTIMAL


def medium(pattern: dict[str, object], n: int = 28, bits: int = 3) -> Task[LevelsOnSupport]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, n)) @ rng.normal(size=(n, n)) / np.sqrt(n)
    layer = lb.Layer(rng.normal(size=(1, n)), x.T @ x / len(x), "medium")
    return make_task(lb.joint_problem(layer, bits, **pattern), 0, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", [{"k": 12}, {"pattern": "2:4"}, {"pattern": "block:2", "k": 12}])
def test_node_limits_repeat(pattern: dict[str, object]) -> None:
    task = medium(pattern)
    runs = [search_joint(task, control(node_limit=20, threads=threads)) for threads in (1, 2)]
    results = [certify(task, raw, 0.0) for raw in runs]
    assert runs[0].nodes == runs[1].nodes <= 20
    assert results[0].lower == results[1].lower
    np.testing.assert_array_equal(results[0].weights, results[1].weights)


def test_a_node_limit_of_zero_gives_the_root() -> None:
    task = medium({"k": 12})
    raw = search_joint(task, control(node_limit=0))
    result = certify(task, raw, 0.0)
    assert raw.nodes == 0
    assert 0.0 < result.lower <= result.upper


@pytest.mark.parametrize("pattern", [{"k": 12}, {"pattern": "block:2", "k": 12}])
def test_threads_find_the_same_optimum(pattern: dict[str, object]) -> None:
    task = medium(pattern, n=16, bits=2)
    one, two = (certify(task, search_joint(task, control(threads=threads)), 0.0) for threads in (1, 2))
    assert one.status == two.status == Status.OPTIMAL
    assert abs(one.upper - two.upper) <= 2e-6 * one.upper


def test_a_cancelled_search_hands_over_what_it_has() -> None:
    task = medium({"k": 14}, n=60, bits=4)
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    began = time.perf_counter()
    raw = search_joint(task, control(cancel=cancel))
    assert time.perf_counter() - began < 10.0
    timer.cancel()
    result = certify(task, raw, 0.0)
    assert raw.termination == Status.INTERRUPTED
    assert 0.0 <= result.lower <= result.upper


def test_a_gap_ends_the_search() -> None:
    task = medium({"k": 12})
    result = certify(task, search_joint(task, control(gap=0.3)), 0.3)
    assert result.status in (Status.GAP_REACHED, Status.OPTIMAL)
    assert result.upper - result.lower <= 0.3 * result.upper


def test_a_warm_start_is_never_lost() -> None:
    task = medium({"k": 12})
    best = certify(task, search_joint(task, control(time_limit=2.0)), 0.0)
    again = certify(task, search_joint(replace(task, warm_start=best.weights), control(node_limit=1)), 0.0)
    assert again.upper <= best.upper * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_bounds_of_nodes_hold_for_every_point(seed: int) -> None:
    """A bound at any point, with any minorant, is below the error of every allowed point of the node."""
    rng = np.random.default_rng(500 + seed)
    problem = random_problem(rng)
    task = make_task(problem, 0, None, None)
    units = joint_units(task)
    minorant = first_minorant(units, gram_parts(units.gram))
    node = whole(units, minorant.d)
    x = units.target + rng.normal(size=units.size)
    assert relaxed_node.settle(minorant.layer, node.lists, x)
    costs = relaxed_node.make_costs(units.size, len(units.group), len(units.capacity))
    bound = relaxed_bound.bound_at(minorant.layer, node.lists, minorant.d, x, costs)
    cut = float(np.quantile([units.error(point * units.factor) for point, _, _ in task.allowed.pieces()], 0.3))
    if bound < cut:
        relaxed_bound.tighten(minorant.layer, node.lists, minorant.d, x, costs, bound, cut)
    first, last, zero_ok, _, _ = node.lists
    for point, _, _ in task.allowed.pieces():
        scaled = point * units.factor
        value = units.error(scaled)
        assert bound <= value + 1e-12 * units.energy
        if value < cut * (1 - 1e-9):
            place = np.argmin(np.abs(units.values - scaled[:, None]), axis=1)
            kept = (first <= place) & (place <= last)
            assert np.all(np.where(place == units.zero, zero_ok == 1, kept)), (value, cut)
