"""The pruning heuristics: feasible, never below the optimum, right on easy instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError, UnsupportedProblemError

NAMES = ["magnitude", "wanda", "obs", "sparsegpt", "thanos", "fistapruner", "sparseswaps", "swap"]
NAMES += ["hard_thresholding", "admm"]
SINGLE_ONLY = {"sparsegpt", "thanos", "fistapruner"}


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:3"])
@pytest.mark.parametrize("name", NAMES)
def test_feasible_and_above_the_lower_bound(
    name: str, pattern: str, refit: bool, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    gram = random_gram(14)
    gram[3] = gram[:, 3] = 0.0
    layer = lb.Layer(rng.normal(size=(2, 14)), gram)
    count = {} if pattern == "2:4" else {"k": 6}
    problem = lb.pruning_problem(layer, pattern=pattern, refit=refit, **count)
    if pattern.startswith("block") and name in SINGLE_ONLY:
        with pytest.raises(UnsupportedProblemError):
            lb.run_heuristic(name, problem)
        return
    evaluation = lb.evaluate(problem, lb.run_heuristic(name, problem))
    assert np.all(evaluation.feasible)
    assert np.all(evaluation.error >= lb.solve(problem, time_limit=5, jobs=1).lower_bound)


@pytest.mark.parametrize("name", NAMES)
def test_optimal_where_inputs_are_uncorrelated(name: str, rng: np.random.Generator) -> None:
    layer = lb.Layer(rng.normal(size=(3, 12)), np.eye(12))
    problem = lb.pruning_problem(layer, k=5)
    options: dict[str, Any] = {"sparsegpt": {"damp": 0.0}, "thanos": {"damp": 0.0}, "fistapruner": {"refit": True}}.get(
        name, {}
    )
    error = lb.evaluate(problem, lb.run_heuristic(name, problem, **options)).error
    best = np.sort(layer.matrix**2, axis=1)[:, :7].sum(axis=1)
    np.testing.assert_allclose(error, best, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_singular_gram(name: str, rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    layer = lb.Layer(rng.normal(size=(2, 12)), random_gram(12, 5))
    problem = lb.pruning_problem(layer, k=4)
    evaluation = lb.evaluate(problem, lb.run_heuristic(name, problem))
    assert np.all(evaluation.feasible)
    assert np.all(np.isfinite(evaluation.error))


def test_a_method_for_another_kind_of_problem_is_refused(small_layer: lb.Layer) -> None:
    with pytest.raises(UnsupportedProblemError, match="these can: magnitude"):
        lb.run_heuristic("gptq", lb.pruning_problem(small_layer, k=3))
    with pytest.raises(UnsupportedProblemError, match="these can: rtn"):
        lb.run_heuristic("wanda", lb.quantization_problem(small_layer, bits=3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("admm", {"growth": 1.0}),
        ("hard_thresholding", {"steps": 0}),
        ("swap", {"start": "x"}),
        ("sparsegpt", {"damp": -1}),
        ("thanos", {"damp": -1}),
        ("thanos", {"block_size": 0}),
        ("fistapruner", {"ratio": 1.5}),
        ("fistapruner", {"steps": 0}),
        ("fistapruner", {"start": "x"}),
        ("sparseswaps", {"start": "x"}),
        ("sparseswaps", {"iterations": -1}),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], small_layer: lb.Layer) -> None:
    with pytest.raises(InputError):
        lb.run_heuristic(name, lb.pruning_problem(small_layer, k=3), **options)
