"""The examples run, and the ResNet-20 of the examples is the network that its weights belong to."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import layerbounds as lb

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import an example as it is when run from its folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("score_your_method", monkeypatch)
    layer = lb.demo_layers()["conv3"]
    grid = lb.uniform_grid(layer.weight, 3)
    problem = lb.quantization_problem(layer, grid=grid)
    score = lb.evaluate(problem, module.pass_it_on(layer, grid))
    assert score.feasible.all()
    assert score.error.sum() < lb.evaluate(problem, lb.run_heuristic("rtn", problem)).error.sum()
    monkeypatch.setattr(sys, "argv", ["score_your_method.py", "--layer", "conv1", "--time-limit", "0.2"])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["certified interval", "pass it on", "rtn", "gptq"]
    assert all("% above the optimum" in line for line in lines)


@pytest.fixture
def network(reference_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any, Any, Any]]:
    """The example's module, the trained network, and its test images and labels."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    # Spinning threads make small convolutions many times slower on a busy machine.
    torch.set_num_threads(1)
    monkeypatch.setenv("LAYERBOUNDS_DATA", str(reference_data))
    module = example("resnet20_ptq", monkeypatch)
    images = np.load(reference_data / "cifar10_subset.npz")
    test = module.preprocess(torch.from_numpy(images["test_images"]))
    labels = torch.from_numpy(images["test_labels"].astype(np.int64))
    yield module, module.load(reference_data / "resnet20_cifar10.safetensors"), test, labels
    torch.set_num_threads(threads)


def test_the_network_has_its_published_accuracy(network: tuple[Any, Any, Any, Any]) -> None:
    module, model, images, labels = network
    assert module.accuracy(model, images, labels, {}) == pytest.approx(0.9172, abs=5e-5)
    zeros = {"layer3.2.conv2": np.zeros((64, 64, 3, 3))}
    before = model.layer3[2].conv2.weight.detach().clone()
    assert module.accuracy(model, images[:80], labels[:80], zeros) < 0.9
    assert bool((model.layer3[2].conv2.weight == before).all())


@pytest.mark.slow
def test_captured_grams_predict_the_output_error(network: tuple[Any, Any, Any, Any], rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    module, model, images, _ = network
    layers = module.capture_convolutions(model, images[:6])
    assert len(layers) == 19
    # A strided convolution in the middle, with its real inputs.
    name, seen = "layer2.0.conv1", []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images[:6])
        handle.remove()
        change = torch.tensor(rng.normal(size=(32, 16, 3, 3)), dtype=torch.float32)
        out = torch.nn.functional.conv2d(seen[0], change, stride=2, padding=1).double()
    measured = out.square().mean(dim=(0, 2, 3)).numpy()
    delta = change.numpy().reshape(32, -1).astype(np.float64)
    layer = layers[name]
    assert layer.samples == 6 * 16 * 16
    np.testing.assert_allclose(np.einsum("ci,ij,cj->c", delta, layer.gram[0], delta), measured, rtol=1e-4)


@pytest.mark.slow
def test_a_layer_of_the_network_is_quantized(
    network: tuple[Any, Any, Any, Any], reference_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *_ = network
    monkeypatch.setattr(module, "SEARCH", 0.01)
    monkeypatch.setattr(module, "CERTIFIED", 0.1)
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer1.0.conv1"]
    weights, row = module.quantize_layer(layer, 3, 1)
    assert module.sample_channels(16) == [0, 4, 8, 12] and row["sample"] == 4
    assert row["best"] < row["gptq"] < row["rtn"]
    assert 0 <= row["gap"] < 1 and 0 <= row["best_excess"] <= row["gptq_excess"] <= row["rtn_excess"]
    assert weights["best"].shape == layer.weight.shape
    assert [module.rounded_up(x) for x in (1.191, 71.04, 528.2, 2.0)] == pytest.approx([1.20, 71.1, 529.0, 2.0])
    text = module.markdown([row], {"dense": 0.9172})
    assert "| dense | 91.72 % |" in text and "| layer1.0.conv1 | 144 | 16 |" in text


def test_absent_data_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("LAYERBOUNDS_DATA", str(tmp_path))
    module = example("resnet20_ptq", monkeypatch)
    assert module.main([]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "resnet20_cifar10.safetensors does not exist; set LAYERBOUNDS_DATA" in err
