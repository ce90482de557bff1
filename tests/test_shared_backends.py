"""Other solvers on masks that several rows share; the conformance tests have more of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from zoo import brute_force

import layerbounds as lb
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.evaluation import squared_error
from layerbounds.problems.tasks import make_task
from layerbounds.solvers.formulation import formulate, incumbent
from layerbounds.solvers.registry import get_backend

Generator = np.random.Generator
PATTERNS: tuple[dict[str, Any], ...] = (
    {"k": 2, "pattern": [0, 0, 1, 2, 2, 1]},
    {"pattern": "1:3", "share": 2},
    {"k": 3, "pattern": "column", "share": "all"},
)


def make_layer(rng: Generator, rows: int) -> lb.Layer:
    x = rng.normal(size=(40, 6)) + rng.normal(size=(40, 1))
    other = x + 0.3 * rng.normal(size=x.shape)
    return lb.Layer.from_activations(rng.normal(size=(rows, 6)), x, compressed_inputs=other)


def available(name: str) -> None:
    state = get_backend(name).availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")


@pytest.mark.parametrize("form", ["bigm", "perspective", "indicator"])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_form_is_the_error(form: str, rows: int, rng: Generator) -> None:
    for how in PATTERNS:
        problem = lb.pruning_problem(make_layer(rng, rows), **how)
        task = make_task(problem, problem.sets(range(rows))[0], None, None)
        start = incumbent(task, 0)
        written = formulate(task, start, form)
        assert start.shape == task.target.shape
        for _ in range(5):
            point = task.allowed.nearest(task.target + rng.normal(size=task.target.shape))
            u = written.encode(point)
            best = written.decode(u)
            # Weights of the same units, re-fitted.
            assert np.array_equal(np.any(np.atleast_2d(best) != 0, axis=0), np.any(np.atleast_2d(point) != 0, axis=0))
            error = squared_error(task.gram, best - task.target)
            assert error <= squared_error(task.gram, point - task.target) * (1 + 1e-9)
            assert written.value(u) * written.unit == pytest.approx(error, rel=1e-7)
        u = written.start
        assert np.all(u >= written.low - 1e-9) and np.all(u <= written.high + 1e-9)
        for row in written.rows:
            assert row.low - 1e-9 <= row.coefficients @ u[row.index] <= row.high + 1e-9


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_masks_are_a_form_of_their_units(rows: int, rng: Generator) -> None:
    for how in PATTERNS:
        problem = lb.pruning_problem(make_layer(rng, rows), refit=False, **how)
        task = make_task(problem, problem.sets(range(rows))[0], None, None)
        written = formulate(task, incumbent(task, 0))
        assert written.size == len(task.allowed.structure.group)
        for _ in range(5):
            u = rng.integers(2, size=written.size).astype(np.float64)
            error = squared_error(task.gram, written.decode(u) - task.target)
            assert written.value(u) * written.unit == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "form"),
    [("scip", "perspective"), ("scip", "indicator"), ("highs", "perspective"), ("gurobi", "indicator")],
)
def test_every_form_ends_at_the_optimum(name: str, form: str, rng: Generator) -> None:
    available(name)
    problem = lb.pruning_problem(make_layer(rng, 3), k=2, pattern=[0, 0, 1, 2, 2, 1])
    solution = lb.solve(problem, name, options={"formulation": form}, time_limit=30.0, jobs=1)
    assert solution.upper_bound[0] == pytest.approx(brute_force(problem), rel=1e-6)
    assert solution.claimed_lower_bound[0] == pytest.approx(brute_force(problem), rel=1e-4)


def test_a_better_warm_start_is_taken(rng: Generator) -> None:
    available("scip")
    problem = lb.pruning_problem(make_layer(rng, 3), k=2, pattern=[0, 0, 1, 2, 2, 1])
    best = lb.solve(problem, "scip", time_limit=30.0, jobs=1)
    again = lb.solve(problem, "scip", time_limit=0.0, jobs=1, warm_start=best.weights)
    assert again.upper_bound[0] <= best.upper_bound[0] * (1 + 1e-12)


def test_what_is_refused(rng: Generator) -> None:
    layer = make_layer(rng, 3)
    shared = lb.pruning_problem(layer, k=2, pattern="column")
    for refit in (True, False):
        with pytest.raises(UnsupportedProblemError, match="cannot treat shared pruning"):
            lb.solve(lb.pruning_problem(layer, k=2, pattern="column", refit=refit), "sdp")
    available("highs")
    singular = lb.Layer(layer.weight, np.ones((6, 6)))
    with pytest.raises(UnsupportedProblemError, match="singular"):
        lb.solve(lb.pruning_problem(singular, k=2, pattern="column"), "highs")
    large = lb.Layer(rng.normal(size=(60, 60)), np.eye(60) + 0.5)
    with pytest.raises(UnsupportedProblemError, match="channels 0 to 59 have 3600 weights on one mask"):
        lb.solve(lb.pruning_problem(large, k=5, pattern="column"), "highs", jobs=1)
    assert shared.requirement in get_backend("highs").capabilities
