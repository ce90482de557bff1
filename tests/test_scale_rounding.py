"""Lower bounds over all scales hold for what rounding makes of weights, matrices and sums."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
from zoo import brute_force

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.scale.least import over_scales
from layerbounds.bounds.scale.projection import counted_from, project
from layerbounds.problems.tasks import make_task
from layerbounds.search.quantization.preparation import prepare
from layerbounds.search.scale.allowance import ray_allowance
from layerbounds.search.scale.envelope import scale_envelope
from layerbounds.search.scale.incumbents import Codes
from layerbounds.search.scale.rays import RayTree, make_ray
from layerbounds.search.scale.root import scale_dual


def _exactly(gram: Float, target: Float, weights: Float) -> Fraction:
    moved = [Fraction(float(v)) - Fraction(float(w)) for v, w in zip(weights, target, strict=True)]
    return sum(Fraction(float(gram[i, j])) * a * b for i, a in enumerate(moved) for j, b in enumerate(moved))


def test_real_zero_points_far_from_zero() -> None:
    """There the weights are rounded far more than their differences."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        n = int(rng.integers(3, 5))
        inputs = rng.normal(size=(n + 3, n))
        gram = inputs.T @ inputs / len(inputs)
        weight = rng.normal(size=(1, n)) + 10.0 ** rng.uniform(3, 9)
        problem = lb.quantization_problem(lb.Layer(weight=weight, gram=gram), bits=2, scale="free", zero_point="real")
        solution = lb.solve(problem, jobs=1, time_limit=10.0)
        found = solution.weights.ravel()
        steps = np.diff(np.unique(found))
        codes = np.rint((found - found.min()) / steps.min()) if steps.size else np.zeros(n)
        scale = (found.max() - found.min()) / max(codes.max(), 1.0)
        assert solution.lower_bound[0] > 0.0
        for _ in range(60):
            s = Fraction(scale * (1.0 + 1e-9 * rng.normal()))
            offset = Fraction(found.min() * (1.0 + 6e-16 * rng.normal()))
            near = np.array([float(s * Fraction(code) + offset) for code in codes])
            assert Fraction(solution.lower_bound[0]) <= _exactly(gram, weight[0], near)


def test_one_scale_for_channels_of_a_singular_layer() -> None:
    """Where choices are listed, the shift of the matrix and the rounding of sums are charged."""
    gram = np.array([[1.1176501557715808, -0.16790118918191552], [-0.16790118918191552, 0.025223285822601242]])
    weight = np.array([[0.4736875418753169, 1.1466581936681906], [0.40346139522068447, 1.141382766182298]])
    layer = lb.Layer(weight=weight, gram=gram)
    problem = lb.quantization_problem(layer, bits=2, scale="free", granularity="tensor", signed_scale=True)
    solution = lb.solve(problem, jobs=1, time_limit=10.0)
    exactly = sum(_exactly(gram, *pair) for pair in zip(weight, solution.weights, strict=True))
    assert 0.0 < sum(map(Fraction, solution.lower_bound)) <= exactly


def test_powers_of_two_next_to_the_limit() -> None:
    """The largest power that is allowed is the best where the best of all is too large."""
    codes = Codes(np.eye(2), np.array([10.0, 10.0]), np.array([-1.0, 0.0, 1.0]), limit=3.0, powers=True)
    assert codes.scale(np.array([2, 2])) == 2.0
    assert codes.error(np.array([2, 2])) == 128.0


def test_no_allowance_without_an_inverse() -> None:
    prep = prepare(np.diag([1.0, 2.0]), 1.0)
    codes = np.array([-1.0, 0.0, 1.0])
    found = []
    for error in (0.5, 0.8):
        tree = RayTree(make_ray(replace(prep, covariance_error=error), np.array([0.7, 0.4]), codes))
        tree.enter((0.9, 1.1), 0.1)
        found.append(ray_allowance(tree, 0.1, 0.8))
    assert found[0] < found[1] == np.inf


def test_a_real_zero_point_that_all_channels_share_is_left_open() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, 2))
    layer = lb.Layer(weight=rng.normal(size=(2, 2)), gram=inputs.T @ inputs / 6.0)
    problem = lb.quantization_problem(layer, bits=2, scale="free", granularity="tensor", zero_point="real")
    solution = lb.solve(problem, jobs=1, time_limit=5.0)
    best = brute_force(problem)
    assert solution.lower_bound.sum() <= best * (1.0 + 1e-9)
    assert solution.upper_bound.sum() >= best * (1.0 - 1e-9)
    assert lb.evaluate(problem, solution.weights).feasible.all()
    assert set(solution.status) == {lb.Status.UNRESOLVED}


def test_rows_that_share_a_real_zero_point_have_lists_of_codes_of_their_own() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(20, 3)) + 0.5 * rng.normal(size=(20, 1))
    layer = lb.Layer(rng.normal(size=(2, 3)), inputs.T @ inputs / 20.0)
    problem = lb.quantization_problem(layer, bits=2, scale="free", granularity="tensor", zero_point="real")
    task = make_task(problem, [0, 1], None, None)
    assert scale_dual(task, None, 1.0) is None
    # Points that would bound both rows if their codes counted from the same one.
    dropped = counted_from(task.gram, task.allowed.group)
    found = project(task.gram, task.allowed.group, dropped)
    assert found is not None
    differences = (task.targets - task.targets[:, dropped])[:, found[1]]
    steps = itertools.count()
    dual = scale_envelope(
        found[0], differences, task.allowed.boxes(), 0.5, 1.0, lambda: next(steps) > 100, dropped=dropped
    )[1]
    assert dual is not None
    assert over_scales(task.gram, task.targets, task.allowed, dual) <= brute_force(problem) * (1.0 + 1e-9)


def test_real_zero_points_that_leave_no_energy() -> None:
    layer = lb.Layer(np.array([[1.0, 2.0]]), np.array([[0.7, 0.7], [0.7, 0.7]]) * 1.1)
    solution = lb.solve(lb.quantization_problem(layer, bits=2, scale="free", zero_point="real"), jobs=1)
    assert solution.lower_bound[0] == 0.0 <= solution.upper_bound[0]
