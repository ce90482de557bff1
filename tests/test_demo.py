"""The embedded demo network: its file, its layers, and its forward pass."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import pytest

from layerbounds.demo import demo_accuracy, demo_info, demo_layers
from layerbounds.exceptions import InputError, UnknownNameError

NAMES = ["conv1", "conv2", "conv3", "fc"]


def test_file_is_small() -> None:
    file = resources.files("layerbounds.demo") / "digits_cnn.safetensors"
    assert len(file.read_bytes()) < 2 * 1024**2


def test_layers_have_the_promised_shapes() -> None:
    layers = demo_layers()
    assert list(layers) == NAMES
    assert {name: layer.weight.shape for name, layer in layers.items()} == {
        "conv1": (16, 1, 3, 3),
        "conv2": (16, 16, 3, 3),
        "conv3": (24, 16, 2, 2),
        "fc": (10, 96),
    }
    assert layers["conv3"].in_features <= 64 < layers["conv2"].in_features
    for name, positions in zip(NAMES, [64, 16, 4, 1], strict=True):
        layer = layers[name]
        assert layer.weight.dtype == np.float32
        assert layer.samples == positions * layer.provenance["calibration_images"]
        assert layer.input_mean is not None


@pytest.mark.parametrize("name", NAMES)
def test_gram_is_symmetric_and_positive_semidefinite(name: str) -> None:
    layer = demo_layers()[name]
    gram = layer.gram[0]
    assert np.array_equal(gram, gram.T)
    eigenvalues = np.linalg.eigvalsh(gram)
    assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]
    assert not layer.gram_reports[0].projected
    # The Gram of the centred inputs is one too, which ties the stored mean to the stored Gram.
    assert layer.input_mean is not None
    mean = layer.input_mean[0]
    assert np.linalg.eigvalsh(gram - np.outer(mean, mean))[0] >= -1e-12 * eigenvalues[-1]


def test_accuracy_is_the_recorded_one() -> None:
    info = demo_info()
    assert info.test_images.shape == (len(info.test_labels), 1, 8, 8)
    assert info.test_images.dtype == np.uint8 and info.test_images.max() == 16
    assert list(info.biases) == NAMES
    assert info.test_accuracy >= 0.97
    assert demo_accuracy() == info.test_accuracy


def test_accuracy_with_replaced_weights() -> None:
    layers = demo_layers()
    same = {name: layer.matrix for name, layer in layers.items()}
    assert demo_accuracy(same) == demo_info().test_accuracy
    assert demo_accuracy({"conv3": layers["conv3"].weight}) == demo_info().test_accuracy
    # Without weights only the biases of the last layer speak: one class for all images.
    assert demo_accuracy({"fc": np.zeros((10, 96))}) < 0.2


def test_wrong_replacements_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="conv4"):
        demo_accuracy({"conv4": np.zeros((10, 96))})
    with pytest.raises(InputError, match=r"\(10, 96\)"):
        demo_accuracy({"fc": np.zeros((10, 95))})
    with pytest.raises(InputError, match="NaN"):
        demo_accuracy({"fc": np.full((10, 96), np.nan)})


def _torch_modules(torch: Any) -> dict[str, Any]:
    """Rebuild the layers as torch modules from nothing but the file."""
    modules = {}
    biases = demo_info().biases
    for name, layer in demo_layers().items():
        shape, spec = layer.weight.shape, layer.provenance
        if spec["kind"] == "conv2d":
            module = torch.nn.Conv2d(shape[1], shape[0], spec["kernel"], spec["stride"], spec["padding"])
        else:
            module = torch.nn.Linear(shape[1], shape[0])
        module.load_state_dict({"weight": torch.tensor(layer.weight), "bias": torch.tensor(biases[name])})
        modules[name] = module.double()
    return modules


@pytest.mark.parametrize("name", ["conv2", "conv3"])
def test_error_is_the_output_change_of_the_torch_layer(name: str) -> None:
    torch = pytest.importorskip("torch", reason="the parity test needs PyTorch")
    datasets = pytest.importorskip("sklearn.datasets", reason="the calibration images come from scikit-learn")
    selection = pytest.importorskip("sklearn.model_selection", reason="the split comes from scikit-learn")
    layer = demo_layers()[name]
    digits = datasets.load_digits()
    # The split of examples/train_demo.py, so that the stored Gram itself is what is compared.
    train, test = selection.train_test_split(
        np.arange(len(digits.target)), test_size=400, stratify=digits.target, random_state=0
    )
    calibration, _ = selection.train_test_split(
        train,
        train_size=layer.provenance["calibration_images"],
        stratify=digits.target[train],
        random_state=0,
    )
    assert np.array_equal(demo_info().test_images[:, 0], digits.images[test])

    modules = _torch_modules(torch)
    x = torch.tensor(digits.images[calibration][:, None] / 16.0)
    with torch.no_grad():
        for previous in NAMES[: NAMES.index(name)]:
            x = torch.relu(modules[previous](x))
        delta = np.random.default_rng(0).normal(size=layer.matrix.shape)
        before = modules[name](x)
        modules[name].weight.add_(torch.tensor(delta).reshape(layer.weight.shape))
        measured = (modules[name](x) - before).square().mean(dim=(0, 2, 3)).numpy()
    predicted = np.einsum("ci,ij,cj->c", delta, layer.gram[0], delta)
    np.testing.assert_allclose(predicted, measured, rtol=1e-10)
