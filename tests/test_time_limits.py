"""Searches end at their time limit, also where a single step of a large layer takes longer."""

from __future__ import annotations

import numpy as np
import pytest

import layerbounds as lb

#: Seconds beyond the limit that a busy machine may add.
SLACK = 1.5

KINDS = {
    "mask": {"density": 0.5, "refit": False},
    "mask 2:4": {"pattern": "2:4", "refit": False},
    "mask of blocks": {"density": 0.5, "pattern": "block:4", "refit": False},
    "unstructured": {"density": 0.5},
    "2:4": {"pattern": "2:4"},
    "blocks": {"density": 0.5, "pattern": "block:4"},
}


def layer(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(2 * n, n)) + rng.normal(size=(2 * n, 1))
    return lb.Layer(rng.normal(size=(1, n)), x.T @ x / len(x))


def check(problem, limit):
    solution = lb.solve(problem, "native", time_limit=limit, jobs=1)
    assert solution.seconds[0] < 1.05 * limit + SLACK
    assert 0.0 <= solution.lower_bound[0] <= solution.upper_bound[0] <= solution.energy[0]
    assert lb.evaluate(problem, solution.weights).feasible.all()
    return solution


@pytest.mark.parametrize("kind", KINDS)
def test_short_limits(kind):
    check(lb.pruning_problem(layer(300), **KINDS[kind]), 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.5, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_many_inputs(kind, limit):
    solution = check(lb.pruning_problem(layer(1536), **KINDS[kind]), limit)
    # Better than what keeping nothing would give, and a bound as soon as there is time for a few factorizations.
    assert solution.upper_bound[0] < 0.9 * solution.energy[0]
    if limit > 1.0:
        assert solution.lower_bound[0] > 0.05 * solution.upper_bound[0]


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["3 bits", "1 bit", "nf4"])
def test_quantization(grid):
    wide = layer(500)
    problem = lb.quantization_problem(
        wide, **({"grid": lb.codebook_grid(wide.weight, "nf4")} if grid == "nf4" else {"bits": int(grid[0])})
    )
    for limit in (0.3, 1.0):
        check(problem, limit)
