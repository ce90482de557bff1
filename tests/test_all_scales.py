"""Joint problems over all scales: enclosed by problems at fixed scales, against every choice of codes and supports."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.exceptions import InputError
from layerbounds.orders.all_scales import joint_over_scales
from layerbounds.problems.joint import JointProblem


def _least(problem: JointProblem, channel: int) -> float:
    """The least error over all positive scales: every choice of codes with its best scale."""
    layer = problem.layer
    gram, target = layer.channel_gram(channel), layer.target[channel]
    energy = float(target @ gram @ target)
    best = energy
    for q in product(np.union1d(problem.grid.codes, 0.0).tolist(), repeat=layer.in_features):
        codes = np.array(q)
        if problem.structure.excess(codes[None])[0]:
            continue
        slope, square = float(codes @ gram @ target), float(codes @ gram @ codes)
        if slope > 0.0 and square > 0.0:
            best = min(best, energy - slope**2 / square)
    return best + float(layer.constant[channel])


def _layer(seed: int, n: int, out: int = 1) -> lb.Layer:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, n)) + 0.7 * rng.normal(size=(40, 1))
    return lb.Layer(rng.normal(size=(out, n)), x.T @ x / 40)


@pytest.mark.parametrize(
    "how",
    [
        {"bits": 2, "k": 2},
        {"bits": 2, "pattern": "1:2"},
        {"bits": 1, "k": 3},
        {"bits": 3, "k": 2},
        {"codebook": "ternary", "pattern": "block:2", "k": 2},
    ],
)
def test_every_choice_of_codes_is_enclosed(how: dict[str, object]) -> None:
    for seed in range(3):
        layer = _layer(seed, 4)
        problem = lb.joint_problem(layer, **how)  # type: ignore[arg-type]
        found = joint_over_scales(problem, tolerance=1e-3)
        optimum = _least(problem, 0)
        assert found.bounds[0, 0] <= optimum * (1 + 1e-9)
        assert found.bounds[0, 1] >= optimum * (1 - 1e-9)
        assert found.bounds[0, 1] - found.bounds[0, 0] <= 1.01e-3 * found.bounds[0, 1]
        at_best = lb.joint_problem(
            layer,
            grid=lb.Grid(problem.grid.codes, found.scale[:, None], 0.0, 4),
            pattern=problem.pattern,
            **({"k": problem.kept} if problem.pattern.needs_count else {}),
        )
        scored = lb.evaluate(at_best, found.weights)
        assert scored.feasible.all()
        assert scored.error[0] == pytest.approx(found.bounds[0, 1], rel=1e-9)


def test_the_best_scale_is_no_worse_than_the_fitted_one() -> None:
    problem = lb.joint_problem(_layer(5, 6, 3), 2, k=3)
    found = joint_over_scales(problem, channels=[2, 0], tolerance=0.01)
    fixed = lb.solve(problem, channels=[2, 0])
    assert np.all(found.bounds[:, 1] <= fixed.upper_bound * (1 + 1e-9))
    assert np.all(found.bounds[:, 0] <= found.bounds[:, 1]) and np.all(found.bounds[:, 0] > 0)


def test_other_inputs_and_dead_ones() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 4))
    x[:, 1] = 0.0
    seen = x + 0.2 * rng.normal(size=x.shape) * (x != 0)
    layer = lb.Layer.from_activations(rng.normal(size=(1, 4)), x, compressed_inputs=seen)
    problem = lb.joint_problem(layer, 2, k=2)
    found = joint_over_scales(problem, tolerance=1e-3)
    # The dead input is dropped first: it takes nothing from what may be kept.
    live = layer.live()
    small = lb.Layer(
        layer.matrix[:, live],
        layer.gram[0][np.ix_(live, live)],
        target=layer.target[:, live],
        constant=layer.constant,
    )
    optimum = _least(lb.joint_problem(small, 2, k=2), 0)
    assert found.bounds[0, 0] <= optimum * (1 + 1e-9) and found.bounds[0, 1] >= optimum * (1 - 1e-9)
    assert found.bounds[0, 0] >= layer.constant[0] > 0
    assert found.weights[0, 1] == 0.0


def test_a_singular_gram_matrix_keeps_the_trivial_bound() -> None:
    x = np.random.default_rng(4).normal(size=(2, 4))
    found = joint_over_scales(lb.joint_problem(lb.Layer(np.ones((1, 4)), x.T @ x), 2, k=2))
    assert found.bounds[0, 0] == 0.0 <= found.bounds[0, 1]


def test_what_it_is_not_for() -> None:
    layer = _layer(0, 4)
    with pytest.raises(InputError, match="one scale for each channel"):
        joint_over_scales(lb.joint_problem(layer, 2, k=2, granularity=2))
    with pytest.raises(InputError, match="no zero points"):
        joint_over_scales(lb.joint_problem(layer, 2, k=2, symmetric=False))
