"""Weights that the search for joint problems finds: allowed, never worse than the start, the optimum of small ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.problems.joint import JointProblem
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control
from layerbounds.search.joint.family import FAMILY
from layerbounds.search.joint.incumbents import Neighbourhoods, improve, nearest_plane, start_search, starts
from layerbounds.search.joint.units import joint_units

PATTERNS = [{"k": 4}, {"pattern": "2:4"}, {"k": 6, "pattern": "block:3"}]


def control(node_limit: int | None = 1, time_limit: float = 60.0) -> Control:
    return Control(time_limit, 0.0, node_limit, 0, 1, threading.Event())


def task_of(problem: JointProblem, channel: int = 0) -> Task[LevelsOnSupport]:
    return make_task(problem, channel, None, None)


def least(task: Task[LevelsOnSupport]) -> float:
    """By trying all."""
    points = np.array([point for point, _, _ in task.allowed.pieces()]) - task.target
    return float(np.min(np.einsum("pi,ij,pj->p", points, task.gram, points)))


@pytest.mark.parametrize("samples", [40, 4])
def test_the_optimum_of_small_problems(
    samples: int, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    layer = lb.Layer(rng.normal(size=(1, 7)), random_gram(7, samples))
    for label, problem in FAMILY.examples(layer):
        assert isinstance(problem, JointProblem)
        task = task_of(problem)
        units = joint_units(task)
        weights = units.original(start_search(units, task, control()).weights)
        assert task.allowed.violation(weights) == 0, label
        deviation = weights - task.target
        assert deviation @ task.gram @ deviation <= least(task) + 1e-9 * task.energy, label


@pytest.mark.parametrize("rules", PATTERNS, ids=str)
@pytest.mark.parametrize("grid", ["3 bits", "nf4", "1 bit", "asymmetric"])
def test_allowed_and_never_worse_than_the_start(
    grid: str, rules: dict[str, object], rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    given: dict[str, dict[str, object]] = {
        "3 bits": {"bits": 3},
        "nf4": {"codebook": "nf4"},
        "1 bit": {"bits": 1},
        "asymmetric": {"bits": 2, "symmetric": False},
    }
    layer = lb.Layer(rng.normal(size=(1, 24)), random_gram(24))
    problem = lb.joint_problem(layer, **given[grid], **rules)  # type: ignore[arg-type]
    task = task_of(problem)
    units = joint_units(task)
    start = task.allowed.nearest(task.target) * units.factor
    before = units.error(start)
    for rounds in (0, 30, 300):
        weights = improve(units, start, 1, rounds=rounds)
        assert task.allowed.violation(units.original(weights)) == 0
        after = units.error(weights)
        assert after <= before * (1 + 1e-12)
        start, before = weights, after


def test_the_error_is_that_of_the_weights(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(1, 30)), random_gram(30)), 3, k=10)
    task = task_of(problem)
    units = joint_units(task)
    search = Neighbourhoods(units, np.zeros(30), 0)
    for _ in range(5):
        value = search.improve(100)
        assert value == pytest.approx(units.error(search.weights), rel=1e-9)
        assert np.count_nonzero(search.weights) <= 10


def test_results_repeat(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(1, 40)), random_gram(40)), 3, pattern="2:4")
    task = task_of(problem)
    units = joint_units(task)
    start = np.zeros(40)
    first, second = (improve(units, start, 5, rounds=200) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(start_search(units, task, control()).weights, start_search(units, task, control()).weights)


def test_starts_with_too_much_kept_are_thinned_out(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    layer = lb.Layer(rng.normal(size=(1, 24)), random_gram(24))
    for rules in PATTERNS:
        task = task_of(lb.joint_problem(layer, 3, **rules))  # type: ignore[arg-type]
        units = joint_units(task)
        whole = nearest_plane(units, np.arange(24), units.target)
        assert task.allowed.structure.excess(whole[None])[0] > 0
        weights = improve(units, whole, 0, rounds=0)
        assert task.allowed.violation(units.original(weights)) == 0
        for start in starts(units, task):
            assert task.allowed.violation(units.original(improve(units, start, 0, rounds=0))) == 0


def test_a_set_event_ends_the_work(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    task = task_of(lb.joint_problem(lb.Layer(rng.normal(size=(1, 20)), random_gram(20)), 3, k=5))
    units = joint_units(task)
    event = threading.Event()
    event.set()
    weights = improve(units, np.zeros(20), 0, cancel=event)
    assert np.array_equal(weights, improve(units, np.zeros(20), 0, rounds=0))
    late = control(None, 0.0)
    assert task.allowed.violation(units.original(start_search(units, task, late).weights)) == 0


@pytest.mark.parametrize(("n", "k"), [(1, 0), (1, 1), (2, 1), (6, 0), (6, 6)])
def test_the_smallest_problems(n: int, k: int, rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    task = task_of(lb.joint_problem(lb.Layer(rng.normal(size=(1, n)), random_gram(n)), 2, k=k))
    units = joint_units(task)
    weights = units.original(start_search(units, task, control()).weights)
    deviation = weights - task.target
    assert task.allowed.violation(weights) == 0
    assert deviation @ task.gram @ deviation <= least(task) + 1e-9 * task.energy


@pytest.mark.parametrize("scale", [1e-150, 1e140])
def test_any_magnitude(scale: float, rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    gram = random_gram(7)
    weight = rng.normal(size=(1, 7))
    plain, scaled = (task_of(lb.joint_problem(lb.Layer(weight * np.sqrt(f), gram), 2, k=3)) for f in (1.0, scale))
    for task in (plain, scaled):
        units = joint_units(task)
        weights = units.original(start_search(units, task, control()).weights)
        deviation = weights - task.target
        assert deviation @ task.gram @ deviation <= least(task) + 1e-9 * task.energy


@pytest.mark.parametrize(
    ("name", "bits", "channel", "rules", "known"),
    [
        ("linear", 4, 1, {"density": 0.25}, 0.00449),
        ("linear", 3, 1, {"density": 0.25}, 0.00870),
        ("linear", 2, 0, {"pattern": "2:4"}, 0.04938),
    ],
)
def test_real_layers(
    reference_data: Path, name: str, bits: int, channel: int, rules: dict[str, object], known: float
) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")[name]
    task = task_of(lb.joint_problem(layer, bits, **rules), channel)  # type: ignore[arg-type]
    units = joint_units(task)
    assert units.error(start_search(units, task, control()).weights) / units.energy <= 1.06 * known
