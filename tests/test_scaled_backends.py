"""Problems over all scales for other solvers: zero points, scale groups, codebooks, and the ranges of the variables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from zoo import brute_force

import layerbounds as lb
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.tasks import make_task
from layerbounds.solvers.formulation import formulate, incumbent
from layerbounds.solvers.registry import get_backend
from layerbounds.solvers.scaled import Scaling, sublevel_range

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "groups": (6, {"bits": 1, "granularity": 3}),
    "integer zero points of groups": (4, {"bits": 2, "granularity": 2, "zero_point": "free"}),
    "real zero points of groups": (5, {"bits": 1, "granularity": 3, "zero_point": "real"}),
    "uneven codes": (4, {"codebook": [-1.0, 0.0, 0.3, 1.0]}),
    "no code 0": (4, {"codebook": [1.0, 2.0]}),
    "both signs": (5, {"codebook": [-1.0, 0.0, 2.0], "signed_scale": True}),
    "powers of two": (3, {"codebook": [-1.0, 0.0, 1.0, 1.5], "powers": True}),
    "powers of two of groups": (3, {"codebook": [-1.0, 1.0], "granularity": 2, "powers": True}),
}


def problem_of(kind: str, rank: int | None = None) -> Any:
    n, how = KINDS[kind]
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rank or 4 * n, n)) + 0.8 * rng.normal(size=(rank or 4 * n, 1))
    how = dict(how)
    powers, bits = how.pop("powers", False), how.pop("bits", None)
    problem = lb.quantization_problem(lb.Layer(rng.normal(size=(1, n)), x.T @ x), bits, scale="free", **how)
    return replace(problem, powers_of_two=powers)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if "groups" in k else k for k in KINDS])
@pytest.mark.parametrize("name", ["scip", "gurobi"])
def test_agreement_with_brute_force(name: str, kind: str) -> None:
    state = get_backend(name).availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")
    problem = problem_of(kind)
    optimum = brute_force(problem)
    solution = lb.solve(problem, name, time_limit=60.0, jobs=1)
    assert solution.upper_bound[0] == pytest.approx(optimum, rel=1.01e-6)
    assert solution.status[0] in (lb.Status.CLAIMED, lb.Status.OPTIMAL)
    assert optimum * (1 - 1e-5) <= solution.claimed_lower_bound[0] <= solution.upper_bound[0]
    assert lb.evaluate(problem, solution.weights).feasible.all()
    assert solution.notes == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [None, 2])
def test_formulations_have_the_objective_of_the_task(kind: str, rank: int | None) -> None:
    task = make_task(problem_of(kind, rank), 0, None, None)
    start = incumbent(task, 0)
    form = formulate(task, start)
    u = form.start
    assert np.all(np.isfinite(form.low)) and np.all(np.isfinite(form.high))
    slack = 1e-9 * np.maximum(form.high - form.low, 1.0)
    assert np.all((u >= form.low - slack) & (u <= form.high + slack))
    assert np.array_equal(u[form.integer], np.rint(u[form.integer]))
    deviation = start - task.target
    assert form.value(u) * form.unit == pytest.approx(deviation @ task.gram @ deviation, rel=1e-6)
    for product, s, x in form.products:
        assert u[product] == pytest.approx(u[s] * u[x], rel=1e-12)
    for row in form.rows:
        assert row.low - 1e-9 <= row.coefficients @ u[row.index] <= row.high + 1e-9
    again = form.decode(u)
    assert task.allowed.violation(again) == 0.0
    np.testing.assert_allclose(again, start, rtol=1e-6, atol=1e-9 * np.abs(start).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranges_hold_every_better_point(kind: str) -> None:
    task = make_task(problem_of(kind), 0, None, None)
    allowed, scaling = task.allowed, Scaling(task)
    rng = np.random.default_rng(0)
    start = incumbent(task, 0) - task.target
    unit = 3.0 * float(start @ task.gram @ start)
    found = sublevel_range(task, unit)
    seen = 0
    for _ in range(40):
        fit = allowed.fit(allowed.nearest(task.target + rng.normal(size=len(task.target)) * rng.uniform(0.0, 0.3)))
        assert fit is not None
        best = scaling.best(fit.codes, fit.zero_point, fit.scale)
        weights = scaling.weights(best)
        deviation = weights - task.target
        if deviation @ task.gram @ deviation > unit:
            continue
        assert np.all((weights >= found.low) & (weights <= found.high))
        fit = allowed.fit(weights)
        assert fit is not None
        told = [np.unique(fit.codes[allowed.group == g]).size > 1 for g in range(allowed.groups)]
        size = np.abs(fit.scale)[told]
        assert np.all((size >= found.least[told]) & (size <= found.most[told]))
        seen += 1
    assert seen


def test_scales_that_channels_share_are_refused() -> None:
    layer = lb.Layer(np.array([[0.3, -1.0], [0.7, 0.2]]), np.eye(2) + 0.2)
    problem = lb.quantization_problem(layer, 2, scale="free", granularity="tensor")
    if not get_backend("scip").availability().available:
        pytest.skip("SCIP is not installed")
    with pytest.raises(UnsupportedProblemError, match="several output channels share"):
        lb.solve(problem, "scip")
