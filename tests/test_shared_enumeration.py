"""Every choice of units: tried or excluded, by savings and by errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float, Int
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import Control
from layerbounds.search.shared.drops import DropSearch, make_drop_basis
from layerbounds.search.shared.enumeration import (
    Exhausted,
    exhaust,
    exhaust_choices,
    exhaust_drops,
    exhaust_exactly,
    number_of_choices,
    seconds_of,
)
from layerbounds.search.shared.exact_choices import ExactChoices
from layerbounds.search.shared.incumbents import first_incumbents
from layerbounds.search.shared.independent_choices import ChoiceEnumeration
from layerbounds.search.shared.selection import Selection, make_selection


def control(seconds: float = 60.0) -> Control:
    return Control(seconds, 0.0, None, 0, 1, threading.Event())


def selection_of(problem: Problem) -> Selection:
    rows = problem.sets(list(range(problem.layer.out_features)))[0]
    return make_selection(make_task(problem, rows, None, None))


def random_selection(
    rng: np.random.Generator, n: int, rows: int, pattern: str | Int, scale: float = 1.0, **options: Any
) -> Selection:
    inputs = rng.normal(size=(3 * n, n)) @ rng.normal(size=(n, n))
    inputs *= np.exp(rng.normal(size=n))
    layer = lb.Layer(rng.normal(size=(rows, n)) * scale, inputs.T @ inputs / len(inputs))
    return selection_of(lb.pruning_problem(layer, pattern=pattern, **options))


def errors(selection: Selection) -> dict[tuple[int, ...], float]:
    """The error of each fullest choice, in extended precision up to a solve."""
    structure = selection.structure
    groups = [
        combinations(np.flatnonzero(structure.group == g).tolist(), int(capacity))
        for g, capacity in enumerate(structure.capacity)
    ]
    result = {}
    for choice in product(*groups):
        units = sorted(sum(choice, ()))
        inputs = np.flatnonzero(np.isin(structure.unit, units))
        weights = np.zeros_like(selection.rows)
        for _ in range(3):
            residual = selection.gram[inputs].astype(np.longdouble) @ (selection.rows - weights).T
            block = selection.gram[np.ix_(inputs, inputs)]
            weights[:, inputs] += np.linalg.solve(block, residual.astype(np.float64)).T
        deviation = (selection.rows - weights).astype(np.longdouble)
        result[tuple(units)] = float(np.sum(deviation @ selection.gram * deviation))
    return result


CASES: list[tuple[int, int, Any, dict[str, Any]]] = [
    (8, 3, "column", {"k": 3}),
    (8, 1, "head:2", {"k": 2}),
    (9, 4, "head:2", {"k": 2}),
    (10, 2, np.array([0, 1, 1, 0, 2, 2, 2, 3, 4, 3]), {"k": 2}),
    (8, 4, "2:4", {"share": 2}),
    (9, 2, "1:3", {"share": None}),
    (6, 12, "column", {"k": 5}),
    (6, 2, "column", {"k": 0}),
    (6, 2, "head:3", {"k": 2}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_sets_below_a_cut_are_found(case: int) -> None:
    n, rows, pattern, options = CASES[case]
    selection = random_selection(np.random.default_rng(case), n, rows, pattern, **options)
    truth = errors(selection)
    basis = make_drop_basis(selection.gram, selection.rows, selection.structure)
    assert basis is not None and basis.share < 1e-6
    values = np.sort(list(truth.values()))
    cut = float(values[len(values) // 3]) * (1 + 1e-6) + 1e-12
    search = DropSearch(basis, cut, selection.rounding, lowers=False)
    while not search.run(100):
        assert not search.broken
    kept, computed = search.found()
    found = {tuple(np.flatnonzero(row).tolist()): value for row, value in zip(kept, computed, strict=True)}
    assert found.keys() == {units for units, value in truth.items() if value <= cut}
    for units, value in found.items():
        assert value == pytest.approx(truth[units], rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_best_choice_is_proven(case: int) -> None:
    n, rows, pattern, options = CASES[case]
    for scale in (1.0, 1e-60, 1e70):
        selection = random_selection(np.random.default_rng(case), n, rows, pattern, scale, **options)
        best = min(errors(selection).values())
        proof = exhaust_drops(selection, control(), 60.0)
        assert proof is not None
        assert proof.cut <= best * (1 + 1e-14) + 1e-18
        assert selection.incumbent.value == pytest.approx(best, rel=1e-8, abs=1e-13)
        assert proof.cut >= best * (1 - 1e-6) - 1e-12


def test_fixed_units_stay_fixed(rng: np.random.Generator) -> None:
    selection = random_selection(rng, 12, 3, "head:2", k=2)
    truth = errors(selection)
    basis = make_drop_basis(selection.gram, selection.rows, selection.structure)
    assert basis is not None
    search = DropSearch(basis, 10.0, dropped=np.array([1, 4]), free=np.array([0, 2, 3]))
    assert search.run(10**9)
    kept, _ = search.found()
    # Unit 5 is kept, two of three others are dropped.
    best = min((value, units) for units, value in truth.items() if 5 in units and not {1, 4} & set(units))
    assert tuple(np.flatnonzero(kept[0]).tolist()) == best[1]


def with_condition(rng: np.random.Generator, n: int, smallest: float) -> Float:
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return np.asarray((basis * np.geomspace(1.0, smallest, n)) @ basis.T)


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
def test_nearly_singular_matrices_are_refused_or_right(smallest: float) -> None:
    rng = np.random.default_rng(3)
    gram = with_condition(rng, 8, smallest)
    layer = lb.Layer(rng.normal(size=(3, 8)), 0.5 * (gram + gram.T))
    selection = selection_of(lb.pruning_problem(layer, pattern="column", k=4))
    truth = errors(selection)
    proof = exhaust_drops(selection, control(), 60.0)
    if smallest >= 1e-6:
        assert proof is not None
    if proof is not None:
        assert proof.cut <= min(truth.values()) * (1 + 1e-12)


def test_sets_of_a_node(rng: np.random.Generator) -> None:
    selection = random_selection(rng, 12, 3, "head:2", k=2)
    truth = errors(selection)
    basis = make_drop_basis(selection.gram, selection.rows, selection.structure)
    assert basis is not None
    cut = sorted(truth.values())[5] * (1 + 1e-6)
    for dropped, free in (([], range(6)), ([2], [0, 1, 3, 5]), ([0, 3, 5], [1, 2]), ([0, 3, 5, 4], [1])):
        parts = np.array(dropped, dtype=np.int64), np.array(free, dtype=np.int64)
        search = DropSearch(basis, cut, 0.0, *parts, lowers=False)
        while not search.run(1000):
            assert not search.broken
        others = set(range(6)) - set(dropped) - set(free)
        assert {tuple(np.flatnonzero(row).tolist()) for row in search.found()[0]} == {
            units
            for units, value in truth.items()
            if value <= cut and not set(units) & set(dropped) and set(units) >= others
        }


def savings_search(selection: Selection) -> Exhausted | None:
    first_incumbents(selection, control())
    return exhaust_choices(selection, control(), 60.0)


@pytest.mark.parametrize("case", [c for c in range(len(CASES)) if CASES[c][3].get("k") != 0])
def test_every_choice_is_tried_by_what_it_saves(case: int) -> None:
    n, rows, pattern, options = CASES[case]
    for scale in (1.0, 1e-60, 1e70):
        selection = random_selection(np.random.default_rng(case), n, rows, pattern, scale, **options)
        truth = errors(selection)
        best = min(truth.values())
        proof = savings_search(selection)
        assert proof is not None and proof.nodes == len(truth)
        assert best * (1 - 1e-6) - 1e-12 <= proof.cut <= best * (1 + 1e-14) + 1e-18


@pytest.mark.parametrize("case", range(len(CASES)))
def test_choices_within_the_cut_are_found_by_what_they_save(case: int) -> None:
    n, rows, pattern, options = CASES[case]
    selection = random_selection(np.random.default_rng(case), n, rows, pattern, **options)
    if not np.any(selection.structure.capacity):
        return
    truth = errors(selection)
    cut = float(np.sort(list(truth.values()))[len(truth) // 3]) * (1 + 1e-6) + 1e-12
    result = ChoiceEnumeration(selection).run(cut, control())
    assert result is not None and not result.circuits
    assert {tuple(np.flatnonzero(row).tolist()) for row in result.found} == {u for u, v in truth.items() if v <= cut}


def exact_least(selection: Selection) -> Fraction:
    task = selection.task
    every = ExactChoices(task, control())
    return min(every.error(flags) for flags in task.allowed.structure.choices(full=True))


def singular_layers(rng: np.random.Generator) -> Iterator[tuple[str, lb.Layer, Any, dict[str, Any]]]:
    inputs = rng.normal(size=(30, 8))
    weight = rng.normal(size=(3, 8))
    copies = inputs.copy()
    copies[:, 1], copies[:, 4] = copies[:, 0], -copies[:, 3]
    yield "copies", lb.Layer(weight, copies.T @ copies), "column", {"k": 3}
    yield "copies in units", lb.Layer(weight, copies.T @ copies), "head:2", {"k": 2}
    yield "copies in groups", lb.Layer(weight, copies.T @ copies), "2:4", {"share": None}
    sums = inputs.copy()
    sums[:, 5] = sums[:, 2] + sums[:, 3]
    yield "sums", lb.Layer(weight, sums.T @ sums), "column", {"k": 4}
    few = rng.normal(size=(5, 8))
    yield "few data", lb.Layer(weight, few.T @ few), "column", {"k": 3}
    yield "fewer data", lb.Layer(weight, few[:2].T @ few[:2]), "head:2", {"k": 2}
    near = inputs.copy()
    near[:, 6] = near[:, 7] + 1e-7 * rng.normal(size=30)
    yield "nearly copies", lb.Layer(weight, near.T @ near), "column", {"k": 5}
    whole = rng.integers(-3, 4, size=(30, 8)).astype(float)
    whole[:, 2] = whole[:, 0] - whole[:, 1]
    yield "whole numbers", lb.Layer(weight, whole.T @ whole), "column", {"k": 4}


@pytest.mark.parametrize("number", range(8))
def test_singular_matrices(number: int) -> None:
    _, layer, pattern, options = list(singular_layers(np.random.default_rng(5)))[number]
    selection = selection_of(lb.pruning_problem(layer, pattern=pattern, **options))
    least = float(exact_least(selection)) * selection.factor**2
    scale = 1e-12 * selection.energy
    first_incumbents(selection, control())
    basis = make_drop_basis(selection.gram, selection.rows, selection.structure)
    for proof in (
        exhaust_choices(selection, control(), 60.0),
        exhaust_exactly(selection, control()),
        exhaust(selection, control(), 60.0, basis),
    ):
        assert proof is None or proof.cut <= least * (1 + 1e-13)
    proof = exhaust(selection, control(), 60.0, basis)
    assert proof is not None
    assert selection.incumbent.value - proof.cut <= 1e-6 * selection.incumbent.value + scale


def test_exact_choices_agree(rng: np.random.Generator) -> None:
    selection = random_selection(rng, 8, 3, "head:2", k=2)
    truth = errors(selection)
    every = ExactChoices(selection.task, control())
    for flags in selection.structure.choices(full=True):
        error = float(every.error(flags)) * selection.factor**2
        assert error == pytest.approx(truth[tuple(np.flatnonzero(flags).tolist())], rel=1e-10)
    proof = exhaust_exactly(selection, control())
    assert proof is not None
    assert selection.incumbent.value == pytest.approx(min(truth.values()), rel=1e-10)


def test_numbers_of_choices(rng: np.random.Generator) -> None:
    assert number_of_choices(random_selection(rng, 9, 2, "column", k=3)) == 84
    assert number_of_choices(random_selection(rng, 8, 2, "2:4", share=None)) == 36
    many = lb.Layer(rng.normal(size=(2, 1200)), np.eye(1200))
    selection = selection_of(lb.pruning_problem(many, pattern="column", k=600))
    assert number_of_choices(selection) == seconds_of(selection) == np.inf


def test_node_limits_do_not_ask_for_the_time() -> None:
    selection = random_selection(np.random.default_rng(8), 20, 4, "column", k=10)
    limited = Control(60.0, 0.0, 3, 0, 1, threading.Event())
    assert exhaust_choices(selection, limited, 60.0) is None
    # The search by errors looks at the limit after a part of its work, whatever the seconds.
    results = [exhaust_drops(selection, limited, seconds) for seconds in (0.0, 60.0)]
    assert (results[0] is None) == (results[1] is None)
    enough = Control(60.0, 0.0, 10**6, 0, 1, threading.Event())
    proofs = [exhaust_choices(selection, enough, seconds) for seconds in (0.0, 60.0)]
    assert proofs[0] is not None and proofs[0] == proofs[1]
