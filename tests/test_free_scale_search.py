"""Native search over all scales: against trying everything, the search at one scale, and what is stated of limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrices import correlated
from zoo import SINGULAR, brute_force, layers

import layerbounds as lb
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, BoundKind
from layerbounds.search.scale.channel import ScaleSearch

KINDS: dict[str, dict[str, Any]] = {
    "binary": {"bits": 1},
    "2 bits": {"bits": 2},
    "2 bits, both signs": {"bits": 2, "signed_scale": True},
    "2 bits, zero points": {"bits": 2, "zero_point": "free"},
    "2 bits, real zero points": {"bits": 2, "zero_point": "real"},
    "ternary": {"codebook": "ternary"},
    "uneven": {"codebook": [-1.0, 0.3, 2.0]},
    "no zero": {"codebook": [0.5, 1.0, 2.0]},
}

#: Layers that say little beyond what the others say.
OFTEN = {"diagonal", "twins", "all dead", "unequal inputs", "tiny", "huge", "three", "plain"}


def _check(problem: lb.FreeScaleProblem, solution: lb.Solution, optimum: float, exactly: bool) -> None:
    lower, upper, energy = solution.lower_bound[0], solution.upper_bound[0], solution.energy[0]
    slack = 1e-9 * optimum + 1e-13 * energy
    assert lower <= optimum + slack
    assert upper >= optimum - slack
    channels = list(range(len(solution.channels)))
    assert lb.evaluate(problem, solution.weights, channels).feasible.all()
    if exactly:
        assert solution.status[0] == lb.Status.OPTIMAL
        assert upper <= optimum + 1.01 * (OPTIMAL_RELATIVE * optimum + OPTIMAL_ABSOLUTE * energy) + slack


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in OFTEN else n for n in layers()])
def test_agreement_with_all_codes(name: str, kind: str) -> None:
    layer = layers()[name]
    problem = lb.quantization_problem(layer, scale="free", **KINDS[kind])
    solution = lb.solve(problem, jobs=1, time_limit=20.0)
    # Where no code is 0 the error of no weights is approached by ever smaller scales only.
    vanishing = kind in ("binary", "uneven", "no zero") and (name in ("zero weights", "zero rows") or name in SINGULAR)
    _check(problem, solution, brute_force(problem), exactly=not vanishing)


@pytest.mark.parametrize("kind", ["2 bits", "binary", "2 bits, zero points", "2 bits, both signs", "ternary"])
def test_channels_that_share_their_scale(kind: str) -> None:
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    for rows, n in ((2, 3), (3, 2), (2, 1)):
        weight = rng.normal(size=(rows, n))
        weight[0] *= 3.0
        layer = lb.Layer(weight, correlated(rng, n))
        problem = lb.quantization_problem(layer, scale="free", granularity="tensor", **KINDS[kind])
        solution = lb.solve(problem, jobs=2, time_limit=20.0)
        assert solution.sets == [list(range(rows))]
        _check(problem, solution, brute_force(problem), exactly=True)
        apart = lb.solve(lb.quantization_problem(layer, scale="free", **KINDS[kind]), jobs=2)
        assert apart.lower_bound.sum() <= solution.upper_bound[0] * (1 + 1e-9)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if "2" not in k else k for k in KINDS])
def test_scales_of_groups(kind: str) -> None:
    rng = np.random.default_rng(100 + sorted(KINDS).index(kind))
    for n, size in ((4, 2), (5, 3), (3, 1)):
        layer = lb.Layer(rng.normal(size=(1, n)), correlated(rng, n))
        problem = lb.quantization_problem(layer, scale="free", granularity=size, **KINDS[kind])
        solution = lb.solve(problem, jobs=1, time_limit=0.4)
        _check(problem, solution, brute_force(problem), exactly=False)
        one = lb.solve(lb.quantization_problem(layer, scale="free", **KINDS[kind]), jobs=1)
        assert solution.lower_bound[0] <= one.upper_bound[0] * (1 + 1e-9)


def test_powers_of_two() -> None:
    rng = np.random.default_rng(3)
    for n in (1, 3):
        layer = lb.Layer(rng.normal(size=(1, n)), correlated(rng, n))
        problem = lb.quantization_problem(layer, scale="free", codebook="mxfp4", granularity="channel")
        solution = lb.solve(problem, jobs=1)
        assert np.log2(solution.scale) == np.rint(np.log2(solution.scale))
        best = min(
            lb.solve(
                lb.quantization_problem(layer, grid=lb.Grid(problem.codes, np.array([[2.0**e]]), 0.0, n)),
                jobs=1,
            ).upper_bound[0]
            for e in range(-5, 3)
        )
        assert solution.status[0] == lb.Status.OPTIMAL
        assert solution.lower_bound[0] <= best * (1 + 1e-9)
        assert solution.upper_bound[0] == pytest.approx(best, rel=1e-5, abs=1e-15)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.slow
def test_no_single_scale_is_better(bits: int) -> None:
    rng = np.random.default_rng(bits)
    layer = lb.Layer(rng.normal(size=(2, 18)), correlated(rng, 18))
    free = lb.solve(lb.quantization_problem(layer, bits, scale="free"), jobs=1)
    assert free.status == [lb.Status.OPTIMAL] * 2
    assert free.scale is not None
    at_best = lb.solve(lb.quantization_problem(layer, bits, scale=free.scale[:, 0]), jobs=1)
    np.testing.assert_allclose(at_best.upper_bound, free.upper_bound, rtol=1e-6)
    for factor in (0.4, 0.8, 0.97, 1.03, 1.3, 2.0):
        other = lb.solve(lb.quantization_problem(layer, bits, scale=factor * free.scale[:, 0]), jobs=1)
        assert np.all(other.upper_bound >= free.lower_bound)
    more = lb.solve(lb.quantization_problem(layer, bits, scale="free", zero_point="free"), jobs=1)
    real = lb.solve(lb.quantization_problem(layer, bits, scale="free", zero_point="real"), jobs=1)
    assert np.all(more.lower_bound <= free.upper_bound)
    assert np.all(real.lower_bound <= more.upper_bound)


def test_a_bias_that_is_fitted_again_costs_nothing() -> None:
    rng = np.random.default_rng(12)
    inputs = rng.normal(size=(60, 8)) + 1.0
    layer = lb.Layer.from_activations(rng.normal(size=(2, 8)), inputs)
    for zero in (None, "free", "real"):
        kept, fitted = (
            lb.solve(lb.quantization_problem(layer, 2, scale="free", zero_point=zero, bias=bias), jobs=1)
            for bias in ("keep", "refit")
        )
        assert kept.status == fitted.status == [lb.Status.OPTIMAL] * 2
        assert np.all(fitted.lower_bound <= kept.upper_bound)


def test_scaling_changes_nothing() -> None:
    rng = np.random.default_rng(13)
    weight, gram = rng.normal(size=(1, 12)), correlated(rng, 12)
    plain = lb.solve(lb.quantization_problem(lb.Layer(weight, gram), 3, scale="free"), jobs=1)
    for w, h in ((1e-6, 1.0), (1.0, 1e8), (3e4, 1e-5)):
        moved = lb.solve(lb.quantization_problem(lb.Layer(w * weight, h * gram), 3, scale="free"), jobs=1)
        np.testing.assert_allclose(moved.upper_bound, plain.upper_bound * w**2 * h, rtol=1e-6)
        assert moved.status[0] == lb.Status.OPTIMAL


def test_limits_and_starts() -> None:
    rng = np.random.default_rng(14)
    layer = lb.Layer(rng.normal(size=(1, 40)), correlated(rng, 40))
    problem = lb.quantization_problem(layer, 3, scale="free")
    first, again = (lb.solve(problem, jobs=1, node_limit=3000, time_limit=60.0) for _ in range(2))
    assert first.nodes[0] == again.nodes[0] <= 3000
    assert first.lower_bound[0] == again.lower_bound[0]
    assert first.upper_bound[0] == again.upper_bound[0]
    done = lb.solve(problem, jobs=1, time_limit=60.0)
    assert done.status[0] == lb.Status.OPTIMAL
    assert done.bound_kind[0] == BoundKind.SEARCH
    assert first.lower_bound[0] <= done.upper_bound[0]
    loose = lb.solve(problem, jobs=1, gap=0.3, time_limit=60.0)
    assert loose.status[0] in (lb.Status.GAP_REACHED, lb.Status.OPTIMAL)
    assert loose.lower_bound[0] <= done.upper_bound[0]
    started = lb.solve(problem, jobs=1, node_limit=1, warm_start=done.weights)
    assert started.upper_bound[0] <= done.upper_bound[0] * (1 + 1e-12)


@pytest.mark.slow
def test_a_bound_without_a_search(reference_data: Any) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer2.1.conv1"]
    solution = lb.solve(lb.quantization_problem(layer, 3, scale="free"), channels=[0], jobs=1, time_limit=3.0)
    assert solution.bound_kind[0] in (BoundKind.DUAL, BoundKind.SEARCH)
    assert 0.3 < solution.lower_bound[0] / solution.upper_bound[0] <= 1.0


def test_no_scale_is_best() -> None:
    layer = lb.Layer(-np.ones((1, 2)), np.eye(2))
    solution = lb.solve(lb.quantization_problem(layer, codebook=[1.0, 2.0], scale="free"), jobs=1)
    assert "small scales only" in solution.notes[0][0]
    assert solution.upper_bound[0] == pytest.approx(2.0)
    assert solution.lower_bound[0] == pytest.approx(2.0, rel=1e-6)


def test_low_targets_are_proven_before_long_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lb.demo_layers()["conv3"]
    # What is proven without the targets that rise at the end.
    monkeypatch.setattr(ScaleSearch, "rise", lambda self: None)
    problem = lb.quantization_problem(layer, bits=4, scale="free")
    solution = lb.solve(problem, channels=[0], jobs=1, node_limit=1_500_000, time_limit=60.0)
    assert solution.status[0] not in (lb.Status.OPTIMAL, lb.Status.TIME_LIMIT)
    assert solution.gap[0] < 0.75
