"""Pruning and quantization together on inputs that are meant to break it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.exceptions import InputError
from layerbounds.orders.all_scales import joint_over_scales
from layerbounds.problems.grids import Grid
from layerbounds.search.joint import channel_search


def test_gap_holds_where_most_of_the_error_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The incumbent counts as it is certified: float64 would see less, and end the search just short of the gap."""
    monkeypatch.setattr(channel_search, "FEWEST_INPUTS", 1)
    rng = np.random.default_rng(3)
    for _ in range(12):
        x = rng.normal(size=(12, 1)) @ rng.normal(size=(1, 6)) * 1e15
        weight = rng.normal(size=(1, 6))
        layer = lb.Layer.from_activations(weight, x)
        grid = Grid(np.arange(4.0), np.full((1, 1), 0.5), np.full((1, 1), 0.5), 6, uniform=False, label="codes")
        pruned = lb.pruning_problem(layer, k=5)
        problem = lb.JointProblem(layer, grid, pruned.pattern, pruned.kept)
        solution = lb.solve(problem, "native", gap=1e-3, jobs=1)
        assert solution.status[0] in ("optimal", "gap_reached")
        assert solution.trace[0][-1].upper == pytest.approx(solution.upper_bound[0], rel=1e-14)


def test_levels_far_beyond_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding of levels of 1e10 is larger than what a block's search looks at: no warnings, and a valid interval."""
    monkeypatch.setattr(channel_search, "FEWEST_INPUTS", 1)
    rng = np.random.default_rng(5)
    x = rng.integers(-2, 3, size=(8, 5)).astype(float)
    layer = lb.Layer.from_activations(rng.normal(size=(4, 5)), x)
    codes = np.array([-3.81e9, -8.46e7, 5.15e-11, 1.04e10])
    grid = Grid(codes, rng.uniform(0.1, 10.0, size=(4, 1)), np.zeros((4, 1)), 5, uniform=False, label="codes")
    problem = lb.JointProblem(layer, grid, lb.pruning_problem(layer, pattern="4:5").pattern, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = lb.solve(problem, "native", jobs=1)
    assert all(status == "optimal" for status in solution.status)


def test_storage_can_tell_all_allowed_weights_apart() -> None:
    """A mask of exactly so many kept weights does not say which of them are the zero that is beside the levels."""
    rng = np.random.default_rng(7)
    layer = lb.Layer.from_activations(rng.normal(size=(2, 16)), rng.normal(size=(40, 16)))
    binary = lb.joint_problem(layer, 1, pattern="2:4")
    more = 0.5 * math.log2(3)
    assert binary.zero == "extra"
    found = [binary.storage(mask) for mask in ("none", "bitmap", "entropy", "metadata")]  # type: ignore[arg-type]
    assert found == pytest.approx([0.5, 1.5, more + 0.75, more + 1.0])
    # Nothing says what is zero where everything may be kept, or within a block.
    assert lb.joint_problem(layer, 1, k=16).storage("bitmap") == pytest.approx(math.log2(3))
    assert lb.joint_problem(layer, 1, k=8, pattern="block:2").storage("bitmap") == pytest.approx(more + 0.5)
    assert lb.joint_problem(layer, 2, k=16).storage("bitmap") == 2.0


def test_weights_as_given_take_space() -> None:
    """Each weight's own value is no codebook of one."""
    rng = np.random.default_rng(8)
    layer = lb.Layer.from_activations(rng.normal(size=(2, 16)), rng.normal(size=(40, 16)))
    given = lb.joint_problem(layer, weights=layer.weight, k=4)
    assert given.storage("bitmap") == lb.pruning_problem(layer, k=4, refit=False).storage("bitmap") == 5.0


@pytest.mark.parametrize("weight", [[0.7], [0.7, -0.2, 0.4]])
def test_all_scales_where_nothing_may_be_kept(weight: list[float]) -> None:
    """Small scales come as near to f(0) as they like, and f(0) is the least error."""
    rng = np.random.default_rng(9)
    layer = lb.Layer.from_activations(np.array([weight]), rng.normal(size=(20, len(weight))))
    found = joint_over_scales(lb.joint_problem(layer, 3, k=0), tolerance=0.01)
    energy = layer.energy()[0]
    assert 0.99 * energy <= found.bounds[0, 0] <= energy <= found.bounds[0, 1] <= energy * (1 + 1e-12)


def test_scales_of_a_refit_that_is_not_unique_settle_nothing() -> None:
    """Two equal inputs in one kept block share a weight in many ways, and a scale is fitted to one of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    x[:, 1] = x[:, 0]
    layer = lb.Layer.from_activations(np.array([[1.0, 0.3, 0.1, -0.05]]), x)
    asked = {"pattern": "block:2", "k": 2, "orders": ["PQ", "MQ"], "jobs": 1}
    kept = lb.order_gap(layer, 3, scale_rule="kept", **asked)  # type: ignore[arg-type]
    assert not kept.settled["PQ"][0] and kept.settled["MQ"][0]
    dense = lb.order_gap(layer, 3, scale_rule="dense", **asked)  # type: ignore[arg-type]
    assert dense.settled["PQ"][0]


def test_all_scales_are_positive() -> None:
    """Codes from −4 to 3 at negative scales are other weights, which may be better."""
    layer = lb.Layer.from_activations(np.array([[1.0, -0.2]]), np.eye(2))
    with pytest.raises(InputError, match="positive scales"):
        lb.order_gap(layer, 3, k=1, scale=np.array([[-0.25]]), all_scales=True)


def test_targets_whose_error_is_rounding_end() -> None:
    """Weights that cancel to the last bit have an energy of rounding size, beside which every noise is a gain."""
    rng = np.random.default_rng(2)
    for scale in (1e-17, 1.0, 1e17):
        for _ in range(4):
            x = rng.normal(size=(16, 5))
            x[:, 2] = -x[:, 0]
            target = -0.59 * scale * np.array([[1.0, 0.0, 1.0, 0.0, 0.0]])
            layer = lb.Layer(rng.normal(size=(1, 5)), x.T @ x, target=target)
            grid = Grid(np.array([-0.59]), np.full((1, 1), scale), np.zeros((1, 1)), 5, uniform=False, label="one")
            problem = lb.JointProblem(layer, grid, lb.pruning_problem(layer, k=2).pattern, 2)
            solution = lb.solve(problem, "native", jobs=1, time_limit=5.0)
            assert solution.status[0] == "optimal"
