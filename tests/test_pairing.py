"""Weights from elsewhere are paired with output channels by their shape, never by their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import bias_change

Use = Callable[[lb.Layer, Any, "list[int] | None"], Any]


def _evaluate(layer: lb.Layer, weights: Any, channels: list[int] | None) -> Any:
    return lb.evaluate(lb.pruning_problem(layer, k=2), weights, channels).error


def _warm_start(layer: lb.Layer, weights: Any, channels: list[int] | None) -> Any:
    problem = lb.quantization_problem(layer, 2)
    found = lb.solve(problem, channels=channels, time_limit=5.0, jobs=1, warm_start=weights)
    return found.upper_bound


def _compare(layer: lb.Layer, weights: Any, channels: list[int] | None) -> Any:
    rows = lb.compare(layer, bits=2, methods=[], weights={"w": weights}, channels=channels, time_limit=1.0, jobs=1)
    return next(row["error"] for row in rows if row["method"] == "w")


USES: dict[str, Use] = {"evaluate": _evaluate, "warm_start": _warm_start, "compare": _compare}


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    """Four channels of 2x2x2 weights: 8 inputs, so that (8, 4), (2, 16), (4, 2, 4) … have as many entries."""
    x = rng.normal(size=(60, 8)) + rng.normal(size=(60, 1))
    return lb.Layer(rng.normal(size=(4, 2, 2, 2)), x.T @ x / 60, "conv")


SHAPES_BY_SIZE = [(8, 4), (32,), (2, 16), (4, 2, 4), (4, 4, 2), (2, 4, 2, 2), (1, 4, 8), (4, 8, 1), (4, 1, 8), (1, 32)]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", SHAPES_BY_SIZE)
def test_another_shape_of_the_same_size_is_refused(layer: lb.Layer, use: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"has shape .*; pass shape \(4, 8\) or \(4, 2, 2, 2\)"):
        USES[use](layer, layer.matrix.reshape(shape), None)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", [(8, 2), (16,), (4, 4), (1, 16), (2, 2, 4), (2, 8, 1), (3, 8), (5, 8), (0, 8)])
def test_channels_are_the_chosen_ones_or_all(layer: lb.Layer, use: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"has shape .*; pass shape \(2, 8\) or \(4, 8\)"):
        USES[use](layer, np.zeros(shape), [3, 1])


@pytest.mark.parametrize("use", USES)
def test_every_allowed_shape_means_the_same(layer: lb.Layer, use: str, rng: np.random.Generator) -> None:
    weights = layer.weight + 0.1 * rng.normal(size=layer.weight.shape)
    channels = [3, 1]
    given = [
        weights,
        weights.reshape(4, 8),
        weights[channels],
        weights.reshape(4, 8)[channels],
        weights.astype(np.float64).tolist(),
    ]
    results = [USES[use](layer, value, channels) for value in given]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-12)


def test_a_permutation_of_all_channels_is_in_its_own_order(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, 2)
    order = [2, 0, 3, 1]
    solution = lb.solve(problem, channels=order, time_limit=5.0, jobs=1)
    score = lb.evaluate(problem, solution.weights, solution.channels)
    assert score.feasible.all()
    np.testing.assert_allclose(score.error, solution.upper_bound, rtol=1e-9)


def test_square_weights_are_taken_as_they_are(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    layer = lb.Layer(rng.normal(size=(6, 6)), random_gram(6))
    problem = lb.pruning_problem(layer, k=6)
    np.testing.assert_allclose(lb.evaluate(problem, layer.weight).error, 0.0, atol=1e-20)
    assert np.all(lb.evaluate(problem, layer.weight.T).error > 0)


def test_a_transposed_array_is_called_so(layer: lb.Layer) -> None:
    with pytest.raises(InputError, match="it looks transposed"):
        lb.evaluate(lb.pruning_problem(layer, k=2), layer.matrix.T)


@pytest.mark.parametrize("shape", [(8, 4), (32,), (4, 2, 4), (4, 8, 1), (4, 2, 2, 2, 1)])
def test_targets_and_biases_are_paired_the_same_way(layer: lb.Layer, shape: tuple[int, ...]) -> None:
    values = layer.matrix.reshape(shape)
    with pytest.raises(InputError, match="target has shape"):
        lb.Layer(layer.weight, layer.gram[0], target=values)
    mean = np.full(8, 0.01)
    refit = lb.pruning_problem(lb.Layer(layer.weight, layer.gram[0], input_mean=mean), k=2, bias="refit").layer
    with pytest.raises(InputError, match="weights has shape"):
        bias_change(refit, values)
    np.testing.assert_allclose(bias_change(refit, layer.weight), 0.0, atol=1e-15)
