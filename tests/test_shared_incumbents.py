"""First choices of units: greedy selections by their definition, exchanges, kicks, degenerate problems."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Bool
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import Control
from layerbounds.search.shared.incumbents import UnitSearch, first_incumbents, make_unit_search
from layerbounds.search.shared.selection import Selection, make_selection


def control(seconds: float = 60.0) -> Control:
    return Control(seconds, 0.0, None, 0, 1, threading.Event())


def selection_of(problem: Problem) -> Selection:
    rows = problem.sets(list(range(problem.layer.out_features)))[0]
    return make_selection(make_task(problem, rows, None, None))


def random_selection(seed: int, n: int, rows: int, pattern: Any, **options: Any) -> Selection:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(3 * n, n)) @ rng.normal(size=(n, n)) * np.exp(rng.normal(size=n))
    layer = lb.Layer(rng.normal(size=(rows, n)), inputs.T @ inputs / len(inputs))
    return selection_of(lb.pruning_problem(layer, pattern=pattern, **options))


def error(selection: Selection, kept: Bool) -> float:
    inputs = np.flatnonzero(kept[selection.structure.unit])
    b = selection.b[inputs]
    return selection.energy - float(np.sum(b * np.linalg.solve(selection.gram[np.ix_(inputs, inputs)], b)))


def step(selection: Selection, kept: Bool, add: bool) -> Bool:
    """The best single unit added or removed where its group needs it, by trying all."""
    structure = selection.structure
    best, result = np.inf, kept
    for g in range(len(kept)):
        used = int(np.sum(kept[structure.group == structure.group[g]]))
        over = used - int(structure.capacity[structure.group[g]])
        if kept[g] == add or (over >= 0 if add else over <= 0):
            continue
        other = kept.copy()
        other[g] = add
        value = error(selection, other)
        if value < best:
            best, result = value, other
    return result


CASES: list[tuple[int, int, Any, dict[str, Any]]] = [
    (12, 3, "column", {"k": 5}),
    (14, 4, "head:3", {"k": 2}),
    (10, 2, np.array([0, 1, 1, 0, 2, 2, 2, 3, 4, 3]), {"k": 3}),
    (12, 4, "2:4", {"share": 4}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_greedy_selections_are_what_they_say(case: int) -> None:
    n, rows, pattern, options = CASES[case]
    selection = random_selection(case, n, rows, pattern, **options)
    units = make_unit_search(selection)
    count, total = len(selection.members), int(selection.structure.capacity.sum())
    forward, backward = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
    for _ in range(total):
        forward = step(selection, forward, True)
    for _ in range(count - total):
        backward = step(selection, backward, False)
    assert np.array_equal(units.forward(), forward)
    assert np.array_equal(units.backward(), backward)
    assert np.array_equal(units.backward_in_parts(count), backward) or len(selection.structure.capacity) > 1
    assert int(units.backward_in_parts(2).sum()) == total


def neighbours(units: UnitSearch, kept: Bool) -> list[Bool]:
    group, result = units.structure.group, []
    for out in np.flatnonzero(kept):
        for into in np.flatnonzero(~kept & (group == group[out])):
            other = kept.copy()
            other[out], other[into] = False, True
            result.append(other)
    return result


@pytest.mark.parametrize("case", range(len(CASES)))
def test_exchanges_end_where_none_helps(case: int) -> None:
    n, rows, pattern, options = CASES[case]
    for seed in range(4):
        selection = random_selection(10 * seed + case, n, rows, pattern, **options)
        units = make_unit_search(selection)
        structure = selection.structure
        start = structure.kept_units(
            structure.keep_largest(np.random.default_rng(seed).random(len(structure.group)))[None].astype(float)
        )[0]
        random = np.array([7], dtype=np.uint64)
        kept = units.improved(start, 1e-9 * selection.energy, 0, random)
        assert np.all(units.slack(kept) == 0)
        value = error(selection, kept)
        assert value <= error(selection, start) + 1e-9 * selection.energy
        assert all(error(selection, other) >= value - 2e-9 * selection.energy for other in neighbours(units, kept))
        kicked = units.improved(kept, 1e-9 * selection.energy, 20, random)
        assert np.all(units.slack(kicked) == 0)
        assert error(selection, kicked) <= value + 1e-9 * selection.energy


def test_the_best_choice_is_usually_found() -> None:
    found = 0
    for seed in range(12):
        selection = random_selection(seed, 12, 3, "head:2", k=3)
        first_incumbents(selection, control())
        best = min(error(selection, np.isin(np.arange(6), c)) for c in combinations(range(6), 3))
        assert selection.incumbent.value >= best - 1e-9 * selection.energy
        found += selection.incumbent.value <= best + 1e-9 * selection.energy
    assert found >= 11


@pytest.mark.parametrize("kind", ["copies", "few rows", "zero weights", "all kept", "none kept"])
def test_degenerate_problems_get_choices(kind: str) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(40, 8))
    if kind == "copies":
        inputs[:, 4:] = inputs[:, :4]
    if kind == "few rows":
        inputs = inputs[:3]
    weight = np.zeros((3, 8)) if kind == "zero weights" else rng.normal(size=(3, 8))
    layer = lb.Layer(weight, inputs.T @ inputs / len(inputs))
    k = {"all kept": 8, "none kept": 0}.get(kind, 4)
    selection = selection_of(lb.pruning_problem(layer, pattern="column", k=k))
    units = make_unit_search(selection)
    for kept in (units.forward(), units.backward(), units.backward_in_parts(2)):
        assert np.all(units.slack(kept) >= 0)
        assert np.all(units.slack(units.improved(kept, 0.0, 5, np.array([3], dtype=np.uint64))) >= 0)
    first_incumbents(selection, control())
    weights = selection.best
    assert np.count_nonzero(np.abs(weights).max(axis=0)) <= k
    if kind != "none kept":
        # Three rows of data, or four different inputs, leave no error that four inputs cannot mend.
        assert selection.incumbent.value <= 1e-9 * max(selection.energy, 1e-300)


def test_without_time_the_warm_start_counts() -> None:
    selection = random_selection(3, 10, 2, "column", k=4)
    start = np.zeros((2, 10))
    start[:, :4] = 1.0
    task = replace(selection.task, warm_start=start)
    selection = make_selection(task)
    first_incumbents(selection, control(0.0))
    assert selection.incumbent.value <= error(selection, np.arange(10) < 4) + 1e-9 * selection.energy
