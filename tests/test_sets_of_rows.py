"""Output channels that are bound to one another, and backends that treat all tasks of a group at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import InputError, NotAllowedError
from layerbounds.layers.layer import Layer
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve, SearchProof, Status
from layerbounds.search.families import families
from layerbounds.solvers import registry
from layerbounds.solvers.native import NativeBackend


@dataclass(frozen=True, eq=False)
class SharedMask(AllowedSet):
    """Rows that keep the same inputs, ``kept`` of them, with their original weights."""

    original: Float
    kept: int

    @property
    def requirement(self) -> str:
        return "shared masks"

    def nearest(self, point: Float) -> Float:
        chosen = np.argsort(-np.sum(point**2, axis=0), kind="stable")[: self.kept]
        return np.where(np.isin(np.arange(point.shape[1]), chosen), self.original, 0.0)

    def violation(self, weights: Float) -> float:
        used = np.any(weights != 0.0, axis=0)
        changed = np.max(np.where(used, np.abs(weights - self.original), 0.0), initial=0.0)
        return float(max(int(used.sum()) - self.kept, 0) + changed)

    def exact(self, weights: Float) -> Float:
        if self.violation(weights) > 0:
            raise NotAllowedError("rows with different inputs")
        return weights

    def restrict(self, live: Bool) -> SharedMask:
        return SharedMask(self.original[:, live], min(self.kept, int(live.sum())))

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        n = self.original.shape[1]
        for chosen in itertools.combinations(range(n), self.kept):
            weights = np.where(np.isin(np.arange(n), chosen), self.original, 0.0)
            yield weights, np.zeros((*weights.shape, 0)), False


@dataclass(frozen=True, eq=False)
class SharedMaskProblem(Problem):
    """Channels 0 and 1, 2 and 3, … share their inputs."""

    kept: int

    family = "shared pruning"
    adjusted = "pruned together"

    @property
    def label(self) -> str:
        return f"{self.kept} inputs for two rows"

    @property
    def requirement(self) -> str:
        return "shared masks"

    @property
    def bits_per_weight(self) -> float:
        return 16.0 * self.kept / self.layer.in_features

    def allowed(self, channel: int) -> SharedMask:
        return SharedMask(self.layer.matrix[channel : channel + 2], self.kept)

    def row_template(self, channel: int) -> Float:
        return np.zeros(self.layer.in_features)

    def like(self, layer: Layer) -> SharedMaskProblem:
        return SharedMaskProblem(layer, 1)

    def rule(self) -> bytes:
        return self.label.encode()

    def sets(self, channels: Sequence[int]) -> list[list[int]]:
        found = []
        for first in sorted({c - c % 2 for c in channels}):
            missing = {first, first + 1} - set(channels)
            if missing:
                raise InputError(f"channels {first} and {first + 1} share their inputs; choose {min(missing)}, too.")
            found.append([first, first + 1])
        return found


class SharedMaskFamily:
    """By trying everything."""

    allowed = SharedMask
    requirements = frozenset({"shared masks"})

    def prepare(self, problem: Any, group: int, jobs: int) -> None:
        """Nothing is shared."""

    def solve(self, task: Task[SharedMask], control: Control) -> RawSolve:
        best, error = None, np.inf
        for weights, _, _ in task.allowed.pieces():
            deviation = weights - task.target
            value = float(np.sum((deviation @ task.gram) * deviation))
            if value < error:
                best, error = weights, value
        return RawSolve(best, Status.OPTIMAL, proof=SearchProof(error, 1e-13 * task.energy), nodes=7)

    def root_dual(self, task: Task[SharedMask], weights: Float | None, seconds: float) -> Dual | None:
        return None

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        yield "two rows", SharedMaskProblem(layer, 2)


@pytest.fixture
def problem(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> SharedMaskProblem:
    monkeypatch.setitem(families(), SharedMask, SharedMaskFamily())
    x = rng.normal(size=(40, 5)) + rng.normal(size=(40, 1))
    x[:, 3] = 0.0
    return SharedMaskProblem(lb.Layer.from_activations(rng.normal(size=(6, 5)), x, name="six"), 2)


def expected(problem: SharedMaskProblem, first: int) -> float:
    """The smallest summed error of two rows, by its definition."""
    layer = problem.layer
    errors = []
    for chosen in itertools.combinations(range(5), problem.kept):
        weights = np.where(np.isin(np.arange(5), chosen), layer.matrix[first : first + 2], 0.0)
        deviation = weights - layer.target[first : first + 2]
        errors.append(np.sum((deviation @ layer.gram[0]) * deviation))
    return float(min(errors))


def test_one_interval_for_each_set(problem: SharedMaskProblem) -> None:
    solution = lb.solve(problem, jobs=2)
    assert solution.sets == [[0, 1], [2, 3], [4, 5]] and solution.channels == [0, 1, 2, 3, 4, 5]
    assert solution.weights.shape == (6, 5)
    layer = problem.layer
    for i, (first, second) in enumerate(solution.sets):
        optimum = expected(problem, first)
        assert solution.lower_bound[i] <= optimum * (1 + 1e-12) <= solution.upper_bound[i] * (1 + 2e-12)
        assert solution.upper_bound[i] <= optimum * (1 + 1e-9)
        assert solution.energy[i] == pytest.approx(layer.energy()[first] + layer.energy()[second])
        assert np.array_equal(solution.weights[first] != 0, solution.weights[second] != 0)
    assert list(solution.status) == ["optimal"] * 3 and solution.nodes.tolist() == [7, 7, 7]
    judged = lb.evaluate(problem, solution.weights)
    np.testing.assert_allclose(judged.error, solution.upper_bound, rtol=1e-12)
    assert judged.feasible.tolist() == [True] * 3
    assert judged.relative_error == pytest.approx(solution.relative_upper_bound)
    rows = solution.to_dict()["channels"]
    assert [row["rows"] for row in rows] == solution.sets and [row["channel"] for row in rows] == [None] * 3


def test_some_sets_in_any_order(problem: SharedMaskProblem) -> None:
    every = lb.solve(problem)
    some = lb.solve(problem, channels=[5, 0, 4, 1], warm_start=every.weights)
    assert some.sets == [[0, 1], [4, 5]]
    np.testing.assert_array_equal(some.weights, every.weights[[5, 0, 4, 1]])
    np.testing.assert_array_equal(some.upper_bound, every.upper_bound[[0, 2]])
    with pytest.raises(InputError, match="channels 4 and 5 share their inputs; choose 4, too"):
        lb.solve(problem, channels=[0, 1, 5])
    with pytest.raises(InputError, match="gap"):
        lb.solve(problem, gap=[0.0] * 6)


def test_weights_that_are_not_allowed(problem: SharedMaskProblem) -> None:
    weights = lb.solve(problem).weights
    weights[0] = problem.layer.matrix[0]
    judged = lb.evaluate(problem, weights)
    assert judged.feasible.tolist() == [False, True, True] and judged.violation[0] > 0
    adjusted = problem.project(problem.layer.matrix, list(range(6)))
    assert lb.evaluate(problem, adjusted).feasible.all()
    with pytest.raises(lb.LayerboundsError, match="cannot treat shared masks"):
        lb.run_heuristic("magnitude", problem)
    with pytest.raises(lb.LayerboundsError, match="cannot treat shared masks"):
        lb.solve(problem, "scip")


class Batched(NativeBackend):
    """The native backend that gets all tasks of a group at once."""

    name = "together"
    calls: list[list[int]] = []  # noqa: RUF012

    def solve_group(self, tasks: Sequence[Task[Any]], control: Control) -> list[RawSolve]:
        assert all(task.gram is tasks[0].gram for task in tasks)
        self.calls.append([task.channel for task in tasks])
        return [self.solve(task, control) for task in tasks]


def test_a_backend_may_take_a_whole_group(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BACKENDS, "together", Batched)
    monkeypatch.setattr(registry, "_OWN", frozenset({"native", "together"}))
    Batched.calls.clear()
    grams = [x.T @ x / 30 for x in rng.normal(size=(2, 30, 4))]
    problem = lb.quantization_problem(lb.Layer(rng.normal(size=(6, 4)), grams, name="grouped"), 2)
    seen: list[int] = []
    together = lb.solve(problem, "together", channels=[5, 0, 1, 2], progress=lambda *args: seen.append(args[2]))
    alone = lb.solve(problem, channels=[5, 0, 1, 2])
    assert sorted(Batched.calls) == [[0, 1, 2], [5]] and sorted(seen) == [0, 1, 2, 5]
    np.testing.assert_array_equal(together.weights, alone.weights)
    np.testing.assert_allclose(together.lower_bound, alone.lower_bound, rtol=1e-9)
    np.testing.assert_allclose(together.upper_bound, alone.upper_bound, rtol=1e-12)


class Careless(Batched):
    """Answers too little, or not at all."""

    name = "careless"
    answers: int = 0

    def solve_group(self, tasks: Sequence[Task[Any]], control: Control) -> list[RawSolve]:
        if not self.answers:
            raise RuntimeError("out of memory")
        return [self.solve(task, control) for task in tasks[: self.answers]]


@pytest.mark.parametrize(("answers", "note"), [(0, "out of memory"), (1, "1 answers for 3 channels")])
def test_a_foreign_backend_that_fails_on_a_group_ends_no_run(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, answers: int, note: str
) -> None:
    monkeypatch.setitem(registry._BACKENDS, "careless", Careless)
    monkeypatch.setattr(Careless, "answers", answers)
    layer = lb.Layer.from_activations(rng.normal(size=(3, 4)), rng.normal(size=(30, 4)))
    problem = lb.quantization_problem(layer, 2)
    solution = lb.solve(problem, "careless")
    assert all(status in (lb.Status.FAILED, lb.Status.OPTIMAL) for status in solution.status)
    assert all(any(note in line for line in solution.notes[c]) for c in range(3))
    assert np.all(solution.lower_bound <= lb.solve(problem).upper_bound)
