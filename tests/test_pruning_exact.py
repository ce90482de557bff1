"""Pruning against brute force, in every pattern."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.problems.patterns import Structure


def choices(structure: Structure) -> list[np.ndarray]:
    """Every allowed mask of inputs."""
    per_group = []
    for g, capacity in enumerate(structure.capacity):
        units = np.flatnonzero(structure.group == g)
        per_group.append([c for r in range(int(capacity) + 1) for c in combinations(units, r)])
    return [np.isin(structure.unit, [u for part in parts for u in part]) for parts in product(*per_group)]


def best_error(problem: lb.PruningProblem, channel: int) -> float:
    """The smallest error, by trying every mask."""
    layer = problem.layer
    gram, target = layer.channel_gram(channel), layer.target[channel]
    best = np.inf
    for mask in choices(problem.structure):
        v = np.zeros(len(target))
        if problem.refit:
            s = np.flatnonzero(mask)
            if len(s):
                v[s] = np.linalg.lstsq(gram[np.ix_(s, s)], (gram @ target)[s], rcond=1e-10)[0]
        else:
            v[mask] = layer.matrix[channel, mask]
        best = min(best, float((v - target) @ gram @ (v - target)))
    return max(best, 0.0) + layer.constant[channel]


def check(problem: lb.PruningProblem, optimal: bool = True) -> lb.Solution:
    solution = lb.solve(problem, time_limit=20, jobs=1)
    evaluation = lb.evaluate(problem, solution.weights)
    assert np.all(evaluation.feasible)
    energy = problem.layer.energy()
    for c in range(problem.layer.out_features):
        exact = best_error(problem, c)
        slack = 1e-12 * energy[c]
        assert solution.lower_bound[c] <= exact + slack
        assert solution.upper_bound[c] >= exact - slack
        assert evaluation.error[c] <= solution.upper_bound[c] + slack
        if optimal:
            assert solution.status[c] == lb.Status.OPTIMAL
            assert solution.upper_bound[c] <= exact * (1 + 2e-6) + 2 * slack
    return solution


CASES = [
    ("unstructured", 10, {"k": 3}),
    ("unstructured", 9, {"density": 0.5}),
    ("unstructured", 8, {"k": 0}),
    ("unstructured", 8, {"k": 8}),
    ("unstructured", 8, {"k": 7}),
    ("1:3", 11, {}),
    ("2:4", 12, {}),
    ("2:4", 9, {}),
    ("3:4", 10, {}),
    ("block:2", 11, {"k": 5}),
    ("block:3", 14, {"k": 7}),
    ("block:3", 10, {"k": 10}),
    ("block:4", 8, {"k": 3}),
]


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize(("pattern", "n", "count"), CASES)
def test_matches_brute_force(
    pattern: str,
    n: int,
    count: dict[str, float],
    refit: bool,
    rng: np.random.Generator,
    random_gram: Callable[..., Float],
) -> None:
    layer = lb.Layer(rng.normal(size=(3, n)), random_gram(n))
    check(lb.pruning_problem(layer, pattern=pattern, refit=refit, **count))


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:3"])
def test_dead_inputs_target_and_constant(
    pattern: str, refit: bool, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    n = 11
    gram = random_gram(n)
    gram[[0, 4, 5]] = 0.0
    gram[:, [0, 4, 5]] = 0.0
    layer = lb.Layer(rng.normal(size=(2, n)), gram, target=rng.normal(size=(2, n)), constant=np.array([0.3, 0.0]))
    count = {} if pattern == "2:4" else {"k": 6}
    solution = check(lb.pruning_problem(layer, pattern=pattern, refit=refit, **count))
    assert np.all(solution.weights[:, [0, 4, 5]] == 0.0)


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2"])
def test_duplicated_inputs(
    pattern: str, refit: bool, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    gram = random_gram(9)
    index = np.array([0, 1, 2, 2, 3, 4, 5, 0, 6, 7, 8, 1])
    layer = lb.Layer(rng.normal(size=(2, 12)), gram[np.ix_(index, index)])
    count = {} if pattern == "2:4" else {"k": 4}
    check(lb.pruning_problem(layer, pattern=pattern, refit=refit, **count), optimal=pattern != "block:2" or not refit)


@pytest.mark.parametrize("rank", [3, 6])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:3"])
@pytest.mark.parametrize("refit", [True, False])
def test_singular_gram(
    pattern: str, rank: int, refit: bool, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    layer = lb.Layer(rng.normal(size=(2, 10)), random_gram(10, rank))
    count = {} if pattern == "2:4" else {"k": 4}
    check(lb.pruning_problem(layer, pattern=pattern, refit=refit, **count), optimal=pattern != "block:3" or not refit)
