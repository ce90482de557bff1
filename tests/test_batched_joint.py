"""The batched backend on joint problems: intervals that hold on every grid, pattern and matrix, and good weights."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import correlated
from test_joint_bounds import GRIDS, PATTERNS, N, best_point, degenerate, optimum_of, tasks_of
from test_rows_of_supports import KINDS, layer_of

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.least import least
from layerbounds.kernels.batched.joint import joint_step, level_savings
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import BoundKind, DualPoint
from layerbounds.solvers.batched.support_layout import lay_out


def problem_of(kind: str, grid: int, pattern: int) -> lb.JointProblem:
    """That of `tasks_of`."""
    layer = layer_of(kind, N, 2, grid + 7 * pattern)
    given = {"weights": layer.matrix} if "weights" in GRIDS[grid] else GRIDS[grid]
    rule = dict(PATTERNS[pattern])
    if "k" in rule:
        rule["k"] = min(rule["k"], layer.in_features)
    return lb.joint_problem(layer, **given, **rule)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_on_every_kind_of_matrix(kind: str) -> None:
    for grid in range(len(GRIDS)):
        pattern = (2 * grid + KINDS.index(kind)) % len(PATTERNS)
        problem, tasks = problem_of(kind, grid, pattern), tasks_of(kind, grid, pattern)
        found = lb.solve(problem, "batched", jobs=1)
        assert np.all(lb.evaluate(problem, found.weights).feasible)
        assert set(found.status) <= {lb.Status.RELAXED, lb.Status.OPTIMAL}
        for row, task in enumerate(tasks):
            optimum = optimum_of(task)
            assert Fraction(float(found.lower_bound[row])) <= optimum <= Fraction(float(found.upper_bound[row]))


@pytest.mark.parametrize("case", range(8))
def test_degenerate_layers(case: int) -> None:
    name, layer, bias = list(degenerate())[case]
    n = layer.in_features
    for given in ({"bits": 2}, {"bits": 1}):
        for rule in ({"k": 0}, {"k": min(2, n)}, {"k": n}, {"pattern": "1:2"}):
            problem = lb.joint_problem(layer, **given, **rule, bias=bias)  # type: ignore[arg-type]
            found = lb.solve(problem, "batched", jobs=1)
            assert np.all(lb.evaluate(problem, found.weights).feasible)
            for row in range(layer.out_features):
                task = make_task(problem, row, None, None)
                optimum = optimum_of(task) + Fraction(float(task.constant))
                assert Fraction(float(found.lower_bound[row])) <= optimum <= Fraction(float(found.upper_bound[row]))
            if rule.get("k") == 0:
                np.testing.assert_allclose(found.upper_bound, found.energy, rtol=1e-12, err_msg=name)
            if name == "no live input":
                assert set(found.status) == {lb.Status.OPTIMAL}


@pytest.mark.parametrize(
    "rule", [{"k": 6}, {"k": 12}, {"pattern": "2:4"}, {"pattern": "1:3"}, {"pattern": "block:3", "k": 12}]
)
@pytest.mark.parametrize("bits", [1, 3])
def test_bounds_are_useful_and_weights_good(rng: np.random.Generator, bits: int, rule: dict[str, Any]) -> None:
    inputs = rng.normal(size=(100, 24)) @ (np.eye(24) + 0.1 * rng.normal(size=(24, 24)))
    layer = lb.Layer.from_activations(rng.normal(size=(12, 24)), inputs)
    problem = lb.joint_problem(layer, bits, **rule)
    found = lb.solve(problem, "batched", jobs=1)
    assert all(kind == BoundKind.DUAL for kind in found.bound_kind)
    # Inputs are nearly independent: what a diagonal proves is most of the error.
    assert found.lower_bound.sum() >= 0.6 * found.upper_bound.sum()
    # No better than many rounded starting points of one row.
    task = make_task(problem, 0, None, None)
    points = [task.allowed.nearest(task.target + 0.3 * rng.normal(size=24)) for _ in range(300)]
    errors = [float((v - task.target) @ task.gram @ (v - task.target)) for v in points]
    assert found.upper_bound[0] <= min(errors) * (1 + 1e-9)


def test_small_rows_get_their_optima() -> None:
    for grid in range(len(GRIDS)):
        for pattern in (1, 3, 5):
            problem, tasks = problem_of("plain", grid, pattern), tasks_of("plain", grid, pattern)
            found = lb.solve(problem, "batched", jobs=1)
            optima = np.array([float(optimum_of(task)) for task in tasks])
            np.testing.assert_allclose(found.upper_bound, optima, rtol=0.05, atol=1e-9)


def test_warm_starts_are_never_lost() -> None:
    problem, tasks = problem_of("few positions", 4, 1), tasks_of("few positions", 4, 1)
    start = np.stack([best_point(task) for task in tasks])
    found = lb.solve(problem, "batched", warm_start=start, jobs=1)
    for row, task in enumerate(tasks):
        assert found.upper_bound[row] <= float(optimum_of(task)) * (1 + 1e-9) + 1e-12 * task.energy


def test_without_time_there_are_weights(rng: np.random.Generator) -> None:
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(5, 30)), correlated(rng, 30)), 2, k=10)
    found = lb.solve(problem, "batched", time_limit=0.0, jobs=1)
    assert np.all(lb.evaluate(problem, found.weights).feasible)
    assert np.all(found.upper_bound <= found.energy * (1 + 1e-9))


def test_the_result_depends_on_the_seed_alone(rng: np.random.Generator) -> None:
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(40, 20)), correlated(rng, 20)), 3, pattern="2:4")
    first, second, third = (lb.solve(problem, "batched", jobs=jobs, seed=3) for jobs in (1, 1, 2))
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_allclose(third.upper_bound, first.upper_bound, rtol=0.02)
    np.testing.assert_allclose(third.lower_bound, first.lower_bound, rtol=1e-3)


def envelope(levels: Float, d: float, price: float, y: Float) -> Float:
    """The convex hull of d v² plus a price where v is not zero, at some points."""
    v = np.unique(levels)
    cost = d * v**2 + np.where(v == 0.0, 0.0, price)
    best = np.full(len(y), np.inf)
    for a in range(len(v)):
        for b in range(a, len(v)):
            inside = (y >= v[a]) & (y <= v[b])
            share = (y - v[a]) / (v[b] - v[a]) if b > a else np.zeros_like(y)
            best = np.where(inside, np.minimum(best, cost[a] + share * (cost[b] - cost[a])), best)
    return best


@pytest.mark.parametrize("pattern", ["2:4", "unstructured", "1:5"])
def test_proximal_steps_are_least_at_their_prices(rng: np.random.Generator, pattern: str) -> None:
    n, rows = 13, 5
    layout = lay_out(parse_pattern(pattern).structure((n,), 5))
    e, w, y, t = (rng.normal(size=(rows, n)).astype(np.float32) for _ in range(4))
    d, p = rng.uniform(0.1, 1.0, size=n).astype(np.float32), rng.uniform(0.3, 2.0, size=n).astype(np.float32)
    values = np.sort(2.0 * rng.normal(size=(rows, n, 5)), axis=2).astype(np.float32)
    values[np.arange(rows)[:, None], np.arange(n), rng.integers(0, 5, size=(rows, n))] = 0.0
    values = np.sort(values, axis=2)
    q = (1.6 * (w + e) - 0.6 * y + t).astype(np.float64)
    share, theta = np.zeros((rows, n), np.float32), np.zeros((rows, len(layout.capacity)), np.float32)
    spread, right = np.zeros((2, rows, n), np.float32)
    joint_step(
        e, w, d, p, values, layout.inputs, layout.units, layout.capacity, theta, y, t, share, spread, right, 0, rows
    )
    group = np.repeat(np.arange(len(layout.capacity)), np.diff(layout.units))
    for r in range(rows):
        kept = np.bincount(group, weights=share[r])
        assert np.all(kept <= layout.capacity + 0.01) or np.any(theta[r] > 0)
        for i in range(n):
            levels = values[r, i].astype(np.float64)
            grid = np.append(np.linspace(levels.min(), levels.max(), 4001), levels)
            costs = envelope(levels, d[i], theta[r, group[i]], grid) + p[i] * (grid - q[r, i]) ** 2
            assert abs(y[r, i] - grid[np.argmin(costs)]) <= 3e-3 * np.ptp(grid)
            assert spread[r, i] >= 0.0
    np.testing.assert_allclose(t, q - y, atol=1e-5)
    np.testing.assert_allclose(right, d * w + p * (y - t - w), atol=1e-4)


def test_shares_of_units_of_several_inputs_are_least_at_their_price(rng: np.random.Generator) -> None:
    n, rows = 6, 8
    layout = lay_out(parse_pattern("block:3").structure((n,), 3))
    e, w, y, t = (rng.normal(size=(rows, n)).astype(np.float32) for _ in range(4))
    d, p = rng.uniform(0.1, 1.0, size=n).astype(np.float32), rng.uniform(0.3, 2.0, size=n).astype(np.float32)
    values = np.sort(np.concatenate([2.0 * rng.normal(size=(rows, n, 3)), np.zeros((rows, n, 1))], axis=2), axis=2)
    values = values.astype(np.float32)
    q = (1.6 * (w + e) - 0.6 * y + t).astype(np.float64)
    share, theta = np.zeros((rows, 2), np.float32), np.zeros((rows, 1), np.float32)
    spread, right = np.zeros((2, rows, n), np.float32)
    joint_step(
        e, w, d, p, values, layout.inputs, layout.units, layout.capacity, theta, y, t, share, spread, right, 0, rows
    )
    shares = np.linspace(1e-6, 1.0, 400)
    for r in range(rows):
        assert share[r].sum() <= 1.02
        for u in range(2):
            costs = shares * float(theta[r, 0])
            for i in range(3 * u, 3 * u + 3):
                v = values[r, i].astype(np.float64)
                grid = np.linspace(v.min(), v.max(), 1001)
                squares = envelope(v, d[i], 0.0, grid)
                costs += np.min(shares[:, None] * squares + p[i] * (shares[:, None] * grid - q[r, i]) ** 2, axis=1)
            found = np.interp(max(float(share[r, u]), 1e-6), shares, costs)
            assert found <= costs.min() + 2e-3 * (1.0 + abs(costs.min()))


def test_savings_are_those_of_the_best_level(rng: np.random.Generator) -> None:
    c, d = rng.normal(size=(4, 7)), rng.normal(size=7)
    values = rng.normal(size=(4, 7, 5)).astype(np.float32)
    saving = np.empty((4, 7))
    level_savings(c, d, values, saving, 0, 4)
    wide = values.astype(np.float64)
    expected = (2.0 * c[:, :, None] - d[:, None] * wide) * wide
    np.testing.assert_allclose(saving, np.maximum(expected.max(axis=2), 0.0))


def test_the_points_are_near_the_best_for_their_diagonal(rng: np.random.Generator) -> None:
    layer = lb.Layer(rng.normal(size=(8, 20)), correlated(rng, 20, strength=0.5))
    problem = lb.joint_problem(layer, 2, pattern="2:4")
    found = lb.solve(problem, "batched", jobs=1)
    for row in range(8):
        task = make_task(problem, row, None, None)
        d = np.full(20, 0.9 * float(np.linalg.eigvalsh(task.gram)[0]))
        plain = max(least(task.gram, task.target, task.allowed, DualPoint(s * task.target, d)) for s in (0.5, 0.8, 1.0))
        assert found.lower_bound[row] > plain


@pytest.mark.slow
def test_real_rows(reference_data: Path) -> None:
    layer = lb.load_layers(reference_data / "minilm_layers.safetensors")["encoder.layer.2.attention.output.dense"]
    for rule, least_share in (({"density": 0.5}, 0.55), ({"pattern": "2:4"}, 0.55)):
        problem = lb.joint_problem(layer, 4, **rule)  # type: ignore[arg-type]
        found = lb.solve(problem, "batched", channels=range(6), jobs=1)
        assert found.lower_bound.sum() >= least_share * found.upper_bound.sum()
