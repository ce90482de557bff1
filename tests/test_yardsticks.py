"""Yardsticks: closed forms, simulation of what they claim, and where they say nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import assert_close, correlated
from scipy.optimize import brentq

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.network.records import read_record
from layerbounds.network.yardsticks import YARDSTICKS, log2_count, yardsticks
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.theory.lattice import chance_below, typical_error
from layerbounds.theory.rate_distortion import least_distortion, normal_variance
from layerbounds.theory.spectra import spectrum

SEEDS = st.integers(0, 2**32 - 1)


def known(value: float | None) -> float:
    assert value is not None
    return value


def least_errors(gram: Float, scale: Float, targets: Float, reach: int) -> Float:
    """The least error of each target in [0, 1)ⁿ steps, by trying all points of the grid near it."""
    points = np.array(list(itertools.product(range(-reach, reach + 2), repeat=len(gram))), dtype=float)
    distance = (points[None] - targets[:, None]) * scale
    return np.asarray(np.einsum("tpi,ij,tpj->tp", distance, gram, distance).min(axis=1))


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_one_input_is_exact(height: float, scale: float) -> None:
    # A target uniform between two levels: s²h/12 on average, and within r of a level with probability 2r/(s√h).
    assert known(typical_error([[height]], scale)) == pytest.approx(scale**2 * height / 12)
    assert known(chance_below([[height]], [-scale], (0.1 * scale) ** 2 * height)) == pytest.approx(0.2)


def test_known_lattices() -> None:
    # The integer lattice is n/12 per channel; a ball of volume 1 comes closer, n/(2πe) in the end.
    for n in (2, 3, 8, 300):
        assert known(typical_error(np.eye(n), 1.0)) < n / 12
    assert known(typical_error(np.eye(2), 1.0)) == pytest.approx(1 / (2 * math.pi))
    assert known(typical_error(np.eye(300), 1.0)) / 300 == pytest.approx(1 / (2 * math.pi * math.e), rel=0.02)
    # The hexagonal lattice, the best of the plane: 5/(18√3) for cells of area 1, and hardly more than the bound.
    hexagonal = np.array([[1.0, 0.5], [0.5, 1.0]]) / math.sqrt(0.75)
    exact = 5 / (18 * math.sqrt(3))
    assert 0.99 * exact < known(typical_error(hexagonal, 1.0)) < exact
    errors = least_errors(hexagonal, np.ones(2), np.random.default_rng(0).random((5000, 2)), 1)
    assert errors.mean() == pytest.approx(exact, rel=0.04)


@pytest.mark.parametrize("n", [2, 3])
def test_lattice_bounds_hold_for_uniform_targets(n: int, rng: np.random.Generator) -> None:
    for _ in range(3):
        gram, scale = correlated(rng, n, strength=0.7), rng.uniform(0.5, 2, size=n)
        errors = least_errors(gram, scale, rng.random((4000, n)), 2)
        deviation = errors.std() / math.sqrt(len(errors))
        assert errors.mean() >= known(typical_error(gram, scale)) - 5 * deviation
        for quantile in (0.02, 0.1, 0.3, 0.9):
            error = float(np.quantile(errors, quantile))
            slack = 5 * math.sqrt(quantile * (1 - quantile) / len(errors))
            assert quantile <= known(chance_below(gram, scale, error)) + slack
    # Within the largest ball of a cell the bound is exact.
    assert known(chance_below(np.eye(n), 1.0, 0.25)) == pytest.approx(math.pi / 4 if n == 2 else math.pi / 6)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 6), st.sampled_from([1e-290, 1e-20, 3.0, 1e280]))
def test_lattice_invariances(seed: int, n: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    gram, scale = correlated(rng, n, strength=0.5), rng.uniform(0.5, 2, size=n)
    value = known(typical_error(gram, scale))
    order = rng.permutation(n)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    # Another basis of the same lattice: a step is added to another.
    shear = np.eye(n)
    shear[0, -1] += n > 1
    assert_close(known(typical_error(gram[np.ix_(order, order)], scale[order])), value, 1e-9)
    assert_close(known(typical_error(factor * gram, scale)) / factor, value, 1e-9)
    assert_close(known(typical_error(gram, 3.0 * scale)) / 9.0, value, 1e-9)
    assert_close(known(typical_error(basis.T @ gram @ basis, 1.0)), known(typical_error(gram, 1.0)), 1e-9)
    scaled = gram * np.outer(scale, scale)
    assert_close(known(typical_error(shear.T @ scaled @ shear, 1.0)), value, 1e-8)
    # Rounding every weight of a uniform target errs by s²·H_ii/12 on average, and the best weights by no more.
    assert value <= float(np.sum(scale**2 * np.diag(gram))) / 12 * (1 + 1e-12)
    assert known(chance_below(gram, scale, value)) <= 1.0 and chance_below(gram, scale, 0.0) == 0.0


def test_nothing_is_said_where_lattice_points_are_dense() -> None:
    gram = np.outer([1.0, math.sqrt(2)], [1.0, math.sqrt(2)])
    assert typical_error(gram, 1.0) is None and chance_below(gram, 1.0, 0.1) is None
    assert typical_error(np.zeros((2, 2)), 1.0) is None
    # With enough levels every target is met: no typical error but 0 would be true.
    codes = np.arange(-300, 301)
    errors = (codes[:, None] + math.sqrt(2) * codes[None] - 0.3771) ** 2
    assert errors.min() < 1e-5
    assert typical_error(np.zeros((0, 0)), 1.0) == 0.0 and chance_below(np.zeros((0, 0)), 1.0, 0.0) == 1.0


@settings(deadline=None)
@given(st.integers(1, 8), st.floats(0, 8), st.floats(1e-3, 1e3))
def test_equal_variances_share_the_bits(n: int, bits: float, deviation: float) -> None:
    weights = np.full(n, -deviation)
    assert least_distortion(np.eye(n), weights, bits) == pytest.approx(n * deviation**2 * 4.0**-bits)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 8), st.integers(1, 8), st.floats(0.01, 5))
def test_water_filling(seed: int, n: int, rank: int, bits: float) -> None:
    rng = np.random.default_rng(seed)
    gram = correlated(rng, n, rank, strength=1.0)
    weights = rng.normal(size=n)
    found = least_distortion(gram, weights, bits)
    variances = normal_variance(weights) * spectrum(gram)
    variances = variances[variances > 0]

    def spent(level: float) -> float:
        return float(0.5 * np.maximum(np.log2(variances / level), 0.0).sum()) - n * bits

    level = brentq(spent, variances.min() * 4.0 ** (-n * bits) / 2, variances.max(), xtol=1e-300, rtol=1e-13)
    assert found == pytest.approx(np.minimum(level, variances).sum(), rel=1e-8)
    # Equal bits for all coordinates are one way to spend them; without bits all is lost.
    assert found <= variances.sum() * 4.0**-bits * (1 + 1e-12)
    assert least_distortion(gram, weights, 0.0) == pytest.approx(variances.sum())
    assert least_distortion(gram, weights, bits + 0.5) <= found
    order = rng.permutation(n)
    assert least_distortion(gram[np.ix_(order, order)], weights, bits) == pytest.approx(found, rel=1e-6)
    for factor in (1e-280, 1e280):
        assert least_distortion(factor * gram, weights, bits) / factor == pytest.approx(found, rel=1e-6)
        assert least_distortion(gram, weights * math.sqrt(factor), bits) / factor == pytest.approx(found, rel=1e-6)


def test_no_code_beats_the_rate(rng: np.random.Generator) -> None:
    gram = np.array([[2.0, 1.2], [1.2, 1.0]])
    weights = rng.normal(size=(3000, 2))
    for bits in (0.5, 1.0, 1.5, 2.0):
        # Lloyd's algorithm: points that suit the weights drawn, whose errors are smaller than those of others.
        points = weights[: round(4.0**bits)].copy()
        for _ in range(15):
            distance = weights[:, None] - points[None]
            errors = np.einsum("wpi,ij,wpj->wp", distance, gram, distance)
            nearest = errors.argmin(axis=1)
            points = np.array([weights[nearest == i].mean(axis=0) for i in range(len(points))])
        least = least_distortion(gram, np.ones(2), bits)
        assert least < errors.min(axis=1).mean() < 2.5 * least
    # One bit of one weight: the best two levels leave 1 − 2/π.
    assert least_distortion([[1.0]], [1.0], 1.0) == 0.25 < 1 - 2 / math.pi


def test_extreme_numbers() -> None:
    assert least_distortion(np.eye(2), [1e200, 1e200], 1.0) == math.inf
    assert least_distortion(np.eye(2), [0.0, 0.0], 1.0) == 0.0
    assert least_distortion(np.zeros((3, 3)), [1.0], 1.0) == least_distortion(np.zeros((0, 0)), [], 1.0) == 0.0
    assert typical_error(1e300 * np.eye(2), 1e200) == math.inf
    assert typical_error(1e-300 * np.eye(2), 1e-200) == 0.0
    assert known(typical_error(np.diag([1e-9, 1.0]), 1.0)) > 0.0
    assert spectrum(np.diag([1e-20, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: typical_error(np.ones((2, 3)), 1.0), "square"),
        (lambda: typical_error(np.eye(2), 0.0), "none of them 0"),
        (lambda: typical_error(np.eye(2), [1.0, 2.0, 3.0]), "2 steps"),
        (lambda: typical_error([[math.nan]], 1.0), "NaN"),
        (lambda: chance_below(np.eye(2), 1.0, -1.0), "error is -1"),
        (lambda: least_distortion(np.eye(2), [1.0], -1), "bits is -1"),
        (lambda: least_distortion(np.eye(2), ["a"], 1), "weights"),
    ],
)
def test_bad_arguments(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    x = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6))
    x[:, 2] = 0.0
    return lb.Layer.from_activations(rng.normal(size=(4, 6)), x, "layer")


def test_yardsticks_are_sums_over_channels(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, 3, granularity=2)
    live = layer.live()
    gram = layer.gram[0][np.ix_(live, live)]
    found = yardsticks(problem, [1, 3])
    assert tuple(found) == YARDSTICKS
    lattice = [known(typical_error(gram, problem.allowed(c).scale[live])) for c in (1, 3)]
    assert found["typical lattice"] == pytest.approx(sum(lattice))
    information = [least_distortion(gram, layer.matrix[c][live], 3.0) for c in (1, 3)]
    assert found["rate-distortion (Gaussian)"] == pytest.approx(sum(information))
    parts = [yardsticks(problem, [c]) for c in range(4)]
    for name, value in yardsticks(problem).items():
        assert value == pytest.approx(sum(known(part[name]) for part in parts))


def test_yardsticks_count_what_no_weights_repair(rng: np.random.Generator) -> None:
    x = rng.normal(size=(60, 5))
    weight = rng.normal(size=(2, 5))
    shifted = lb.Layer.from_activations(weight, x, "layer", compressed_inputs=x + 0.1 * rng.normal(size=x.shape))
    plain = lb.Layer(shifted.target, shifted.gram[0])
    grid = lb.quantization_problem(shifted, 3).grid
    ours = yardsticks(lb.quantization_problem(shifted, grid=grid))
    theirs = yardsticks(lb.quantization_problem(plain, grid=grid))
    assert shifted.constant.sum() > 0
    for name in YARDSTICKS:
        assert known(ours[name]) == pytest.approx(known(theirs[name]) + shifted.constant.sum())


def test_groups_have_their_own_matrices(rng: np.random.Generator) -> None:
    grams = np.stack([correlated(rng, 3), 100.0 * correlated(rng, 3)])
    weight = rng.normal(size=(4, 3))
    whole = yardsticks(lb.quantization_problem(lb.Layer(weight, grams), 2))
    for name in YARDSTICKS:
        parts = [yardsticks(lb.quantization_problem(lb.Layer(weight[2 * g : 2 * g + 2], grams[g]), 2)) for g in (0, 1)]
        assert known(whole[name]) == pytest.approx(sum(known(part[name]) for part in parts))


def test_where_yardsticks_say_nothing(layer: lb.Layer, rng: np.random.Generator) -> None:
    applies = {
        "uniform": (lb.quantization_problem(layer, 3), (True, True)),
        "asymmetric": (lb.quantization_problem(layer, 2, symmetric=False), (True, True)),
        "codebook": (lb.quantization_problem(layer, codebook="nf4"), (False, True)),
        "free scale": (lb.quantization_problem(layer, 3, scale="free"), (False, False)),
        "free codebook": (lb.quantization_problem(layer, 2, codebook="free"), (False, False)),
        "pruning": (lb.pruning_problem(layer, density=0.5), (False, False)),
        "mask only": (lb.pruning_problem(layer, density=0.5, refit=False), (False, False)),
        "joint": (lb.joint_problem(layer, bits=3, density=0.5), (False, True)),
    }
    for name, (problem, (lattice, information)) in applies.items():
        found = yardsticks(problem)
        assert [found[y] is not None for y in YARDSTICKS] == [lattice, information], name
    few = lb.Layer.from_activations(rng.normal(size=(2, 6)), rng.normal(size=(3, 6)), "few")
    found = yardsticks(lb.quantization_problem(few, 3))
    assert found["typical lattice"] is None and known(found["rate-distortion (Gaussian)"]) > 0
    dead = lb.Layer(np.ones((1, 3)), np.zeros((3, 3)))
    assert yardsticks(lb.quantization_problem(dead, 3)) == dict.fromkeys(YARDSTICKS, 0.0)
    with pytest.raises(InputError, match="channels"):
        yardsticks(applies["uniform"][0], [9])


@pytest.mark.parametrize("codebook", ["ternary", "binary"])
@pytest.mark.parametrize("rule", [{"density": 0.5}, {"pattern": "2:4"}, {"pattern": "block:3", "density": 0.5}])
def test_bits_of_patterns_count_all_weights(rng: np.random.Generator, codebook: str, rule: dict[str, Any]) -> None:
    n = 6 if rule.get("pattern") == "block:3" else 8 if "pattern" in rule else 7
    layer = lb.Layer(rng.normal(size=(1, n)), correlated(rng, n))
    allowed = lb.joint_problem(layer, codebook=codebook, **rule).allowed(0)
    assert isinstance(allowed, LevelsOnSupport)
    count = len({point.tobytes() for point, _, _ in allowed.pieces()})
    assert log2_count(allowed) == pytest.approx(math.log2(count))


def test_runs_add_the_yardsticks_of_their_chunks(layer: lb.Layer, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("layerbounds.network.survey.LEAST_ROWS", 2)
    run = lb.run(
        [layer], out=tmp_path / "run", bits=2, density=0.5, methods=[], time_limit=0.0, jobs=1, parallel="threads"
    )
    quantized, pruned = run.entries
    assert len(quantized.chunks) == 2
    for found in (quantized.yardsticks, lb.load_run(tmp_path / "run").entries[0].yardsticks):
        assert found == pytest.approx(yardsticks(lb.quantization_problem(layer, 2)))
    assert pruned.yardsticks == dict.fromkeys(YARDSTICKS)
    # Half of the chunks say nothing about the layer.
    half = replace(quantized, yardsticks={})
    half.absorb(read_record(next((tmp_path / "run" / "records").glob("*.safetensors"))), 0)
    assert half.yardsticks == {}


def test_yardsticks_of_a_real_layer(reference_data: Path) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer3.2.conv2"]
    problem = lb.quantization_problem(layer, 3)
    found = yardsticks(problem, [0, 1, 2])
    trace = float(np.trace(layer.gram[0]))
    live = layer.live()
    # Plain rounding of uniform targets, and equal bits for all directions, do no better than what they bound.
    rounding = sum(float(problem.allowed(c).scale[0]) ** 2 * trace / 12 for c in range(3))
    equal = sum(normal_variance(layer.matrix[c][live]) * trace / 64 for c in range(3))
    assert 0 < known(found["typical lattice"]) < rounding
    assert 0 < known(found["rate-distortion (Gaussian)"]) < equal
