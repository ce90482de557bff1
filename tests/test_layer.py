"""Layers: shapes, groups, validation and repair of Gram matrices, targets from compressed inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matrices import assert_close

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer

MakeGram = Callable[..., Float]


def test_weight_is_flattened_in_the_order_channel_kh_kw(rng: np.random.Generator, random_gram: MakeGram) -> None:
    weight = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    layer = Layer(weight, random_gram(12), "conv")
    assert (layer.out_features, layer.in_features, layer.groups) == (4, 12, 1)
    assert layer.weight.dtype == np.float32
    assert layer.matrix.dtype == np.float64
    assert layer.matrix[2, 1 * 4 + 1 * 2 + 0] == weight[2, 1, 1, 0]
    assert layer.target is layer.matrix
    assert not layer.constant.any()
    assert repr(layer) == "Layer('conv', weight 4x3x2x2, n=12, groups=1)"


def test_energy_is_the_error_of_removal(rng: np.random.Generator) -> None:
    x, weight = rng.normal(size=(50, 6)), rng.normal(size=(3, 6))
    layer = Layer.from_activations(weight, x)
    np.testing.assert_allclose(layer.energy(), np.mean((x @ weight.T) ** 2, axis=0), rtol=1e-12)


def test_groups_have_their_own_gram(rng: np.random.Generator) -> None:
    inputs = rng.normal(size=(3, 40, 4))  # three groups of four inputs
    weight = rng.normal(size=(6, 4))
    gram = np.stack([x.T @ x / 40 for x in inputs])
    layer = Layer(weight, gram)
    assert layer.groups == 3
    assert [layer.group_of(c) for c in range(6)] == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(layer.channel_gram(5), layer.gram[2])
    measured = [np.mean((inputs[c // 2] @ weight[c]) ** 2) for c in range(6)]
    np.testing.assert_allclose(layer.energy(), measured, rtol=1e-12)


def test_depthwise_convolution_has_one_group_per_channel(rng: np.random.Generator, random_gram: MakeGram) -> None:
    layer = Layer(rng.normal(size=(5, 1, 3, 3)), np.stack([random_gram(9) for _ in range(5)]))
    assert layer.groups == 5
    assert [layer.group_of(c) for c in range(5)] == list(range(5))


def test_torch_tensors_are_taken(rng: np.random.Generator, random_gram: MakeGram) -> None:
    torch = pytest.importorskip("torch", reason="the test is about PyTorch tensors")
    gram = random_gram(6)
    weight = torch.tensor(rng.normal(size=(2, 6)), requires_grad=True)
    layer = Layer(weight, torch.tensor(gram))
    np.testing.assert_array_equal(layer.matrix, weight.detach().numpy())
    np.testing.assert_array_equal(layer.gram[0], Layer(layer.matrix, gram).gram[0])
    half = Layer(weight.detach().to(torch.bfloat16), torch.tensor(gram))
    np.testing.assert_array_equal(half.matrix, weight.detach().to(torch.bfloat16).double().numpy())


@pytest.mark.parametrize(
    ("weight", "gram", "words"),
    [
        (np.ones(6), np.eye(6), "weight has shape"),
        (np.ones((0, 6)), np.eye(6), "weight has shape"),
        (np.ones((2, 6)), np.eye(5), r"\(5, 5\) but the weight has 6 inputs"),
        (np.ones((2, 6)), np.ones((6, 5)), r"\(6, 5\) but"),
        (np.ones((2, 6)), np.ones(6), "gram has shape"),
        (np.ones((2, 6)), np.stack([np.eye(6)] * 3), "3 groups do not divide the 2 output channels"),
        (np.ones((2, 6)), np.empty((0, 6, 6)), "0 groups"),
        (np.full((2, 6), np.nan), np.eye(6), "weight holds 12 NaN"),
        (np.ones((2, 6)), np.diag([1.0, 1, 1, 1, 1, np.inf]), "gram holds 1 NaN or infinite value;"),
        (np.ones((2, 6), dtype=complex), np.eye(6), "complex128"),
        ([["a", "b"]], np.eye(2), "not real and numeric"),
        ([[1.0, 2.0], [1.0]], np.eye(2), "cannot be read as an array"),
    ],
)
def test_wrong_arrays_are_refused(weight: object, gram: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Layer(weight, gram, "conv7")  # type: ignore[arg-type]
    assert "'conv7'" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": np.ones((2, 3))}, r"target has shape \(2, 3\); pass shape \(2, 6\)"),
        ({"constant": np.ones(3)}, r"constant has shape \(3,\); pass shape \(2,\)"),
        ({"constant": [-1.0, 0.0]}, "constant is negative"),
        ({"target": np.full((2, 6), np.inf)}, "target holds 12"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": "many"}, "samples is 'many'"),
        ({"samples": 1.5}, "samples is 1.5"),
        ({"input_mean": np.ones(5)}, "input_mean has shape"),
        ({"input_mean": np.ones((2, 6))}, "input_mean has shape"),
    ],
)
def test_wrong_optional_arguments_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Layer(np.ones((2, 6)), np.eye(6), **arguments)  # type: ignore[arg-type]


def test_target_may_have_the_shape_of_the_weight(rng: np.random.Generator, random_gram: MakeGram) -> None:
    target = rng.normal(size=(2, 3, 2, 2))
    layer = Layer(rng.normal(size=(2, 3, 2, 2)), random_gram(12), target=target, constant=[0.5, 0.0])
    np.testing.assert_array_equal(layer.target, target.reshape(2, 12))
    expected = [t @ layer.gram[0] @ t for t in layer.target]
    np.testing.assert_allclose(layer.energy(), np.add(expected, [0.5, 0.0]), rtol=1e-12)


def test_small_asymmetry_is_averaged_and_reported(random_gram: MakeGram) -> None:
    gram = random_gram(6)
    gram[1, 2] += 1e-8 * np.abs(gram).max()
    layer = Layer(np.ones((1, 6)), gram)
    assert np.array_equal(layer.gram[0], layer.gram[0].T)
    assert layer.gram[0, 1, 2] == 0.5 * (gram[1, 2] + gram[2, 1])
    assert layer.gram_reports[0].asymmetry == pytest.approx(1e-8, rel=1e-3)
    assert not layer.gram_reports[0].projected


def test_asymmetric_gram_is_refused(random_gram: MakeGram) -> None:
    gram = random_gram(6)
    gram[1, 2] += 1e-4 * np.abs(gram).max()
    with pytest.raises(InputError, match="not symmetric"):
        Layer(np.ones((1, 6)), gram)


def test_small_negative_eigenvalues_are_projected_and_reported(random_gram: MakeGram) -> None:
    gram = random_gram(6, rank=3)
    top = np.linalg.eigvalsh(gram)[-1]
    layer = Layer(np.ones((1, 6)), gram - 1e-7 * top * np.eye(6))
    report = layer.gram_reports[0]
    assert report.projected
    assert report.min_eigenvalue == pytest.approx(-1e-7, rel=1e-3)
    eigenvalues = np.linalg.eigvalsh(layer.gram[0])
    assert eigenvalues[0] >= -1e-14 * top
    np.testing.assert_allclose(layer.gram[0], gram, atol=1.1e-7 * top)


def test_indefinite_gram_is_refused(random_gram: MakeGram) -> None:
    gram = random_gram(6)
    with pytest.raises(InputError, match="not positive semidefinite"):
        Layer(np.ones((1, 6)), gram - 0.5 * np.linalg.eigvalsh(gram)[-1] * np.eye(6))
    with pytest.raises(InputError, match="not positive semidefinite"):
        Layer(np.ones((1, 2)), -np.eye(2))
    # A zero diagonal entry with energy beside it.
    with pytest.raises(InputError, match="not positive semidefinite"):
        Layer(np.ones((1, 2)), [[0.0, 1.0], [1.0, 1.0]])


def test_singular_gram_is_kept_as_it_is(random_gram: MakeGram) -> None:
    gram = random_gram(8, rank=3)
    layer = Layer(np.ones((1, 8)), gram)
    assert not layer.gram_reports[0].projected
    np.testing.assert_array_equal(layer.gram[0], 0.5 * (gram + gram.T))


def test_dead_inputs_are_found(random_gram: MakeGram) -> None:
    gram = np.zeros((6, 6))
    live = [0, 2, 3, 5]
    gram[np.ix_(live, live)] = random_gram(4)
    layer = Layer(np.ones((2, 6)), gram)
    assert layer.gram_reports[0].dead == 2
    np.testing.assert_array_equal(np.flatnonzero(layer.live()), live)


def test_gram_of_zeros_is_allowed() -> None:
    layer = Layer(np.ones((2, 3)), np.zeros((3, 3)))
    assert layer.gram_reports[0].dead == 3
    assert not layer.live().any()
    assert not layer.energy().any()


def test_arrays_handed_over_are_not_changed(random_gram: MakeGram) -> None:
    gram = random_gram(4)
    gram[0, 1] += 1e-9
    before = gram.copy()
    layer = Layer(np.ones((1, 4)), gram)
    layer.gram[:] = 0.0
    np.testing.assert_array_equal(gram, before)


def test_from_activations(rng: np.random.Generator) -> None:
    x, weight = rng.normal(size=(30, 12)), rng.normal(size=(2, 3, 2, 2))
    layer = Layer.from_activations(weight, x, "conv")
    assert_close(layer.gram[0], x.T @ x / 30)
    assert layer.samples == 30
    assert layer.input_mean is not None
    np.testing.assert_allclose(layer.input_mean[0], x.mean(axis=0))
    assert layer.weight.shape == (2, 3, 2, 2)


@pytest.mark.parametrize("rank", [8, 3])
def test_compressed_inputs_give_the_measured_error(rng: np.random.Generator, rank: int) -> None:
    # Rank 3: the normal equations are singular, and the identity has to hold all the same.
    x = rng.normal(size=(60, 8))
    compressed = np.round(x) if rank == 8 else x @ rng.normal(size=(8, rank)) @ rng.normal(size=(rank, 8))
    weight = rng.normal(size=(4, 8))
    layer = Layer.from_activations(weight, x, compressed_inputs=compressed)
    assert layer.provenance["normal_equation_residual"] < 1e-12
    for v in rng.normal(size=(3, 4, 8)):
        measured = np.mean((compressed @ v.T - x @ weight.T) ** 2, axis=0)
        deviation = v - layer.target
        stored = np.einsum("ci,ij,cj->c", deviation, layer.gram[0], deviation) + layer.constant
        np.testing.assert_allclose(stored, measured, rtol=1e-10)
    np.testing.assert_allclose(layer.energy(), np.mean((x @ weight.T) ** 2, axis=0), rtol=1e-10)


def test_equal_compressed_inputs_change_nothing(rng: np.random.Generator) -> None:
    x, weight = rng.normal(size=(60, 8)), rng.normal(size=(4, 8))
    layer = Layer.from_activations(weight, x, compressed_inputs=x)
    np.testing.assert_allclose(layer.target, weight, rtol=1e-10)
    np.testing.assert_allclose(layer.constant, 0.0, atol=1e-25)


@pytest.mark.parametrize(
    ("weight", "inputs", "compressed", "words"),
    [
        (np.ones((2, 4)), np.ones((9, 5)), None, "5 columns but the weight has 4 inputs"),
        (np.ones(4), np.ones((9, 4)), None, "weight has shape"),
        (np.ones((2, 4)), np.ones(4), None, "pass \\(positions, inputs\\)"),
        (np.ones((2, 4)), np.ones((0, 4)), None, "pass \\(positions, inputs\\)"),
        (np.ones((2, 4)), np.ones((9, 4)), np.ones((8, 4)), "compressed_inputs have shape"),
        (np.ones((2, 4)), np.full((9, 4), np.nan), None, "inputs holds 36 NaN"),
    ],
)
def test_wrong_activations_are_refused(weight: Float, inputs: Float, compressed: Float | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Layer.from_activations(weight, inputs, compressed_inputs=compressed)
