"""Compressed inputs, quantized and pruned activations, re-fitted biases: f(v) is what is measured."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from matrices import assert_close

import layerbounds as lb
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import bias_change, with_refitted_bias
from layerbounds.layers.normal_equations import least_norm_solution

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import Tensor, nn  # noqa: E402

from layerbounds.capturing.activations import (  # noqa: E402
    ActivationPruner,
    ActivationQuantizer,
    prune_activations,
    quantize_activations,
)
from layerbounds.capturing.targets import CaptureWarning  # noqa: E402

# Few images serve as well as many for comparing formulas with measurements.
pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for")

EXACT = 1e-10
LAYERS = ["0", "2", "4", "6"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Sequential:
    """Plain, grouped and depthwise convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding="same", groups=6, padding_mode="circular"),
        nn.Flatten(),
        nn.Linear(96, 5),
    ).double()


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.randn(16, 3, 8, 8, dtype=torch.float64) for _ in range(4)]


def disturbed(model: nn.Module, size: float) -> nn.Module:
    """A copy with changed weights: a compressed prefix."""
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return clone


def with_biases_of(dense: nn.Module, other: nn.Module) -> nn.Module:
    """Outputs are compared layer by layer, and the bias is not what changes there."""
    for name in LAYERS:
        other.get_submodule(name).bias.data = dense.get_submodule(name).bias.detach().clone()
    return other


def outputs(model: nn.Module, name: str, images: list[Tensor], weight: Tensor | None = None) -> np.ndarray:
    """What a layer returns, (positions, channels), with other weights if given but its inputs unchanged."""
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    changed = copy.deepcopy(module)
    changed._forward_pre_hooks.clear()
    changed._forward_pre_hooks_with_kwargs.clear()
    if weight is not None:
        changed.weight.data = weight
    handle = module.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    with torch.no_grad():
        for batch in images:
            model(batch)
        handle.remove()
        rows = [changed(x).movedim(1, -1).reshape(-1, changed.weight.shape[0]) for x in seen]
    return torch.cat(rows).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.1, 1e-7])
def test_error_behind_a_compressed_prefix_is_exact(images: list[Tensor], size: float) -> None:
    dense = network()
    other = with_biases_of(dense, disturbed(dense, size))
    layers = lb.capture(dense, images, compressed_model=other)
    assert list(layers) == LAYERS
    for name, layer in layers.items():
        module = dense.get_submodule(name)
        for scale in (0.3, size):
            v = module.weight.detach() + scale * torch.randn_like(module.weight)
            difference = outputs(other, name, images, v) - outputs(dense, name, images)
            ev = lb.evaluate(lb.pruning_problem(layer, density=1.0), v.numpy())
            np.testing.assert_allclose(ev.error, np.mean(difference**2, axis=0), rtol=1e-9)
        # The target is the minimiser: no step improves on it, and what is left there is the constant.
        best = torch.from_numpy(layer.target.reshape(layer.weight.shape))
        left = outputs(other, name, images, best) - outputs(dense, name, images)
        cost = np.mean((outputs(other, name, images, module.weight.detach()) - outputs(dense, name, images)) ** 2, 0)
        np.testing.assert_allclose(layer.constant, np.mean(left**2, axis=0), rtol=1e-6, atol=1e-9 * cost.max())
        np.testing.assert_allclose(layer.residual_mean, left.mean(0), rtol=1e-6, atol=1e-7 * size)
        assert layer.provenance["normal_equation_residual"] <= 1e-12
        assert layer.provenance["compressed_inputs"] is True
    # The first layer sees the same inputs in both models.
    np.testing.assert_array_equal(layers["0"].target, layers["0"].matrix)
    assert not layers["0"].constant.any()


def test_singular_inputs_keep_the_weights_where_nothing_is_known(rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 9))
    xc = np.where(rng.random(x.shape) < 0.5, x, 0.0)
    xc[:, 4] = 0.0
    weight = rng.normal(size=(3, 9))
    layer = lb.Layer.from_activations(weight, x, compressed_inputs=xc)
    np.testing.assert_array_equal(layer.target[:, 4], weight[:, 4])
    # The least change of the weights that minimises the error: it has no part in the null space.
    np.testing.assert_allclose(
        layer.target - weight, np.linalg.lstsq(xc, (x - xc) @ weight.T, rcond=1e-12)[0].T, atol=1e-9
    )
    v = rng.normal(size=(3, 9))
    measured = np.mean((xc @ v.T - x @ weight.T) ** 2, axis=0)
    error = lb.evaluate(lb.pruning_problem(layer, density=1.0), v).error
    np.testing.assert_allclose(error, measured, rtol=EXACT)
    assert layer.provenance["normal_equation_residual"] < 1e-12


def test_the_constant_keeps_its_digits_where_the_inputs_nearly_agree(rng: np.random.Generator) -> None:
    x = rng.normal(size=(200, 5))
    xc = x + 1e-9 * rng.normal(size=x.shape)
    weight = rng.normal(size=(2, 5))
    layer = lb.Layer.from_activations(weight, x, compressed_inputs=xc)
    error = (x - xc) @ weight.T
    left = error - xc @ np.linalg.lstsq(xc, error, rcond=None)[0]
    # About 1e-18 beside energies of order 1: a difference of energies would be rounding alone.
    np.testing.assert_allclose(layer.constant, np.mean(left**2, axis=0), rtol=1e-6)
    assert np.all(layer.constant < 1e-16)


def test_least_norm_solution_of_regular_and_singular_systems(rng: np.random.Generator, random_gram: Any) -> None:
    right = rng.normal(size=(3, 8))
    gram = random_gram(8)
    np.testing.assert_allclose(least_norm_solution(gram, right) @ gram, right, rtol=1e-9)
    flat = random_gram(8, rank=5)
    solution = least_norm_solution(flat, right @ flat)
    np.testing.assert_allclose(solution, right @ flat @ np.linalg.pinv(flat, rcond=1e-12, hermitian=True), atol=1e-9)
    assert not least_norm_solution(np.zeros((8, 8)), right).any()


@pytest.mark.parametrize("compressed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_refitted_bias_is_the_best_bias(images: list[Tensor], compressed: bool) -> None:
    dense = network()
    other = with_biases_of(dense, disturbed(dense, 0.2)) if compressed else dense
    layers = lb.capture(dense, images, compressed_model=other if compressed else None)
    for name, layer in layers.items():
        problem = lb.quantization_problem(layer, bits=3, bias="refit")
        assert problem.label.endswith("bias re-fitted") and problem.layer.bias == "refit"
        v = problem.project(problem.layer.matrix, list(range(layer.out_features)))
        difference = outputs(other, name, images, torch.from_numpy(v.reshape(layer.weight.shape)))
        difference = difference - outputs(dense, name, images)
        np.testing.assert_allclose(lb.evaluate(problem, v).error, difference.var(axis=0), rtol=1e-9)
        np.testing.assert_allclose(bias_change(problem.layer, v), -difference.mean(axis=0), rtol=1e-8, atol=1e-12)
        assert np.all(lb.evaluate(problem, v).error <= lb.evaluate(lb.quantization_problem(layer, 3), v).error)
        assert not bias_change(layer, v).any()


def test_refitted_bias_through_solve_and_files(rng: np.random.Generator, tmp_path: Any) -> None:
    x = rng.normal(size=(60, 5)) + 2.0
    x[:, 3] = 1.5
    layer = lb.Layer.from_activations(rng.normal(size=(2, 5)), x, "fc")
    centred = with_refitted_bias(layer)
    assert with_refitted_bias(centred) is centred
    assert centred.gram_reports[0].dead == 1  # the constant input, which the bias replaces
    np.testing.assert_allclose(centred.gram[0], np.cov(x.T, bias=True), atol=1e-12)
    keep, refit = (lb.solve(lb.quantization_problem(layer, 2, bias=b), time_limit=5) for b in ("keep", "refit"))
    assert np.all(refit.upper_bound <= keep.upper_bound)
    residual = x @ (refit.weights - layer.matrix).T
    np.testing.assert_allclose(refit.upper_bound, residual.var(axis=0), rtol=1e-9)
    lb.save_layers(tmp_path / "l.safetensors", [centred])
    loaded = lb.load_layers(tmp_path / "l.safetensors")["fc"]
    assert loaded.bias == "refit"
    assert_close(bias_change(loaded, refit.weights), bias_change(centred, refit.weights))
    with pytest.raises(InputError, match="bias is 'free'; choose 'keep' or 'refit'"):
        lb.pruning_problem(layer, density=0.5, bias="free")
    with pytest.raises(InputError, match="has no input_mean, which a re-fitted bias needs"):
        lb.pruning_problem(lb.Layer(layer.weight, layer.gram), density=0.5, bias="refit")


def test_residual_mean_is_stored(images: list[Tensor], tmp_path: Any) -> None:
    dense = network()
    (layer,) = lb.capture(dense, images, "2", compressed_model=disturbed(dense, 0.1)).values()
    lb.save_layers(tmp_path / "l.safetensors", [layer])
    (loaded,) = lb.load_layers(tmp_path / "l.safetensors").values()
    assert layer.residual_mean.any()
    for key in ("target", "constant", "residual_mean", "input_mean"):
        np.testing.assert_array_equal(getattr(loaded, key), getattr(layer, key))


def test_both_models_must_run_the_same_layers(images: list[Tensor]) -> None:
    dense = network()
    shorter = copy.deepcopy(dense)
    del shorter[6]
    with pytest.raises(InputError, match="the compressed model has no module '6'"):
        lb.capture(dense, images, compressed_model=shorter)
    idle = copy.deepcopy(dense)
    idle.forward = lambda x: idle[0](x)
    with pytest.raises(InputError, match="layer '2' is called less often in the compressed model"):
        lb.capture(dense, images, "2", compressed_model=idle)
    twice = copy.deepcopy(dense)
    twice.forward = lambda x: twice[0](twice[0](x)[:, :3])
    with pytest.raises(InputError, match="layer '0' is called more often in the compressed model"):
        lb.capture(dense, images, "0", compressed_model=twice)
    cropped = copy.deepcopy(dense)
    cropped.forward = lambda x: cropped[0](x[:, :, 1:])
    with pytest.raises(InputError, match=r"\(16, 3, 7, 8\) in the compressed model and \(16, 3, 8, 8\)"):
        lb.capture(dense, images, "0", compressed_model=cropped)


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return levels[np.abs(x[..., None] - levels).argmin(-1)]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activation_quantizers_round_to_the_nearest_level(bits: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 7)) + 0.4
    symmetric = ActivationQuantizer(bits, True, -1)(torch.from_numpy(x)).numpy()
    asymmetric = ActivationQuantizer(bits, False, -1)(torch.from_numpy(x)).numpy()
    static = ActivationQuantizer(bits, True, -1, -1.0, 0.5)(torch.from_numpy(x)).numpy()
    top = 2 ** (bits - 1) - 1
    for row in range(5):
        step = np.abs(x[row]).max() / top
        np.testing.assert_allclose(symmetric[row], nearest(x[row], step * np.arange(-top, top + 1)), atol=1e-12)
        low, high = min(x[row].min(), 0.0), max(x[row].max(), 0.0)
        step = (high - low) / (2**bits - 1)
        levels = step * (np.arange(2**bits) - np.round(-low / step))
        assert 0.0 in levels
        # The zero point is rounded, so that the ends of the range may move by half a step.
        assert np.abs(asymmetric[row] - x[row]).max() <= step * (1 + 1e-9)
        np.testing.assert_allclose(asymmetric[row], nearest(asymmetric[row], levels), atol=1e-12)
        assert len(np.unique(asymmetric[row])) <= 2**bits
    np.testing.assert_allclose(static, nearest(x, np.arange(-top, top + 1) / top), atol=1e-12)
    zeros = torch.zeros(2, 3)
    assert torch.equal(ActivationQuantizer(bits, True, -1)(zeros), zeros)
    assert torch.equal(ActivationQuantizer(bits, False, -1)(zeros), zeros)


def test_pruned_activations_keep_the_largest(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.normal(size=(2, 8, 3, 3)))
    kept = ActivationPruner(0.25, -3)(x)
    assert torch.all((kept != 0).sum(1) == 2)
    assert torch.all(kept.abs().amax(1) == x.abs().amax(1))
    assert torch.equal(kept[kept != 0], x[kept != 0])


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_models_with_quantized_activations(images: list[Tensor], scheme: str) -> None:
    dense = network()
    other = quantize_activations(dense, 4, layers=["2", "6"], scheme=scheme, symmetric=False, batches=images)
    assert not any(m._forward_pre_hooks for m in dense.modules())
    layers = lb.capture(dense, images, compressed_model=other)
    seen: list[Tensor] = []
    other[6].register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    for batch in images:
        other(batch)
    x = torch.cat(seen).detach().numpy()
    assert len(np.unique(x)) <= 16 if scheme == "static" else all(len(np.unique(row)) <= 16 for row in x)
    assert_close(layers["6"].gram[0], x.T @ x / len(x))
    difference = outputs(other, "6", images) - outputs(dense, "6", images)
    error = lb.evaluate(lb.pruning_problem(layers["6"], density=1.0), layers["6"].weight).error
    np.testing.assert_allclose(error, np.mean(difference**2, axis=0), rtol=1e-8)
    assert np.all(error >= layers["6"].constant)
    # The interval knows the part that no weights can repair.
    solution = lb.solve(lb.pruning_problem(layers["2"], density=0.5), channels=[0], time_limit=0.0)
    assert solution.lower_bound[0] >= layers["2"].constant[0] > 0


def test_models_with_pruned_activations(images: list[Tensor]) -> None:
    dense = network()
    other = prune_activations(dense, 0.5, layers="2")
    (layer,) = lb.capture(dense, images, "2", compressed_model=other).values()
    difference = outputs(other, "2", images) - outputs(dense, "2", images)
    error = lb.evaluate(lb.pruning_problem(layer, density=1.0), layer.weight).error
    np.testing.assert_allclose(error, np.mean(difference**2, axis=0), rtol=1e-9)
    assert layer.constant.min() > 0 and np.all(layer.constant < error)


def test_too_few_positions_are_said(images: list[Tensor]) -> None:
    dense = network()
    with pytest.warns(CaptureWarning, match="layer '6' has 64 positions for 96 inputs"):
        lb.capture(dense, images, "6", compressed_model=disturbed(dense, 0.1))


def test_wrong_activation_options(images: list[Tensor]) -> None:
    for bits in (1, 9, True, 4.0):
        with pytest.raises(InputError, match="pass 2 to 8"):
            quantize_activations(network(), bits)
    with pytest.raises(InputError, match="choose 'dynamic' or 'static'"):
        quantize_activations(network(), 8, scheme="both")
    with pytest.raises(InputError, match="pass batches"):
        quantize_activations(network(), 8, scheme="static")
    with pytest.raises(InputError, match="are not finite"):
        quantize_activations(network(), 8, scheme="static", batches=[images[0] * torch.nan])
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"in \(0, 1\]"):
            prune_activations(network(), density)
