"""Pruning and quantization together for other solvers: what is written down, every form, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from zoo import brute_force

import layerbounds as lb
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.tasks import make_task
from layerbounds.solvers.formulation import choose_tie, formulate, incumbent
from layerbounds.solvers.registry import get_backend

KINDS: dict[str, dict[str, Any]] = {
    "integers": {"bits": 2, "k": 3},
    "integers in blocks": {"bits": 2, "pattern": "block:2", "k": 4},
    "integers, N:M": {"bits": 2, "pattern": "1:3"},
    "asymmetric, 3 inputs a scale": {"bits": 2, "symmetric": False, "granularity": 3, "pattern": "2:4"},
    "zero on top": {"bits": 1, "k": 3},
    "zero on top, in blocks": {"bits": 1, "pattern": "block:2", "k": 4},
    "zero a level of some": {"bits": 2, "scale": [[0.5, 0.7]], "zero_point": [[1.0, 1.5]], "k": 3},
    "uneven levels": {"codebook": [-2.0, -0.3, 0.1, 1.7], "pattern": "2:4"},
    "one level": {"codebook": [0.4], "k": 2},
}


def problem_of(kind: str, rank: int | None = None) -> lb.JointProblem:
    n = 6
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rank or 4 * n, n)) + 0.8 * rng.normal(size=(rank or 4 * n, 1))
    return lb.joint_problem(lb.Layer(rng.normal(size=(1, n)), x.T @ x / len(x)), **KINDS[kind])


@pytest.mark.parametrize("form", ["bigm", "perspective", "indicator"])
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_allowed_point_as_good_as_the_incumbent_is_written_down_with_its_error(
    kind: str, rank: int | None, form: str
) -> None:
    task = make_task(problem_of(kind, rank), 0, None, None)
    start = incumbent(task, 0)
    assert task.allowed.violation(start) == 0.0
    written = formulate(task, start, form)
    assert np.all(np.isfinite(written.low)) and np.all(np.isfinite(written.high))
    value = float((start - task.target) @ task.gram @ (start - task.target))
    seen = 0
    for weights, _, _ in task.allowed.pieces():
        error = float((weights - task.target) @ task.gram @ (weights - task.target))
        if error > value * (1 + 1e-9):
            continue
        seen += 1
        u = written.encode(weights)
        assert np.all((u >= written.low) & (u <= written.high))
        assert np.array_equal(u[written.integer], np.rint(u[written.integer]))
        assert written.value(u) * written.unit == pytest.approx(error, rel=1e-7, abs=1e-9 * task.energy)
        for row in written.rows:
            assert row.low - 1e-9 <= row.coefficients @ u[row.index] <= row.high + 1e-9
        for s, x, y in written.cones:
            assert u[x] ** 2 <= u[s] * u[y] + 1e-12
        for y, x in written.indicators:
            assert u[y] > 0 or u[x] == 0
        assert np.array_equal(written.decode(u), weights)
    assert seen


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_down_excludes_what_is_not_allowed(kind: str) -> None:
    task = make_task(problem_of(kind), 0, None, None)
    written = formulate(task, incumbent(task, 0))
    rng = np.random.default_rng(1)
    pattern = refused = 0
    for _ in range(200):
        u = np.floor(rng.uniform(written.low, written.high + 1.0))
        if any(not row.low <= row.coefficients @ u[row.index] <= row.high for row in written.rows):
            refused += 1
            continue
        pattern += 1
        assert task.allowed.violation(written.decode(u)) == 0.0
    assert refused and (pattern or kind != "one level")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["scip", "highs", "gurobi"])
def test_agreement_with_brute_force_in_every_form(name: str, kind: str) -> None:
    backend = get_backend(name)
    state = backend.availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")
    problem = problem_of(kind)
    optimum = brute_force(problem)
    for form in ("bigm", "perspective", *(() if name == "highs" else ("indicator",))):
        solution = lb.solve(problem, name, time_limit=60.0, jobs=1, options={"formulation": form})
        assert solution.upper_bound[0] == pytest.approx(optimum, rel=1.01e-6)
        assert optimum * (1 - 1e-5) <= solution.claimed_lower_bound[0] <= solution.upper_bound[0]
        assert lb.evaluate(problem, solution.weights).feasible.all()
        assert solution.notes == {}


def test_singular_gram_matrices_need_no_indicators() -> None:
    assert choose_tie(make_task(problem_of("integers", rank=3), 0, None, None), "auto") == "bigm"


def test_semidefinite_relaxations_refuse_in_a_sentence() -> None:
    if not get_backend("sdp").availability().available:
        pytest.skip("CVXPY is not installed")
    with pytest.raises(UnsupportedProblemError, match="backend 'sdp' cannot treat pruning with quantization; choose"):
        lb.solve(problem_of("integers"), "sdp")
