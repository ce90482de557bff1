"""Whole-model compression: every layer behind the compressed ones before it, with intervals that hold."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.compression.outcome import LayerOutcome
from layerbounds.exceptions import InputError

torch = pytest.importorskip("torch", reason="compression of models needs PyTorch")
from torch import Tensor, nn  # noqa: E402

from layerbounds.capturing.activations import quantize_activations  # noqa: E402
from layerbounds.capturing.loading import ArrayBatches, load_weights  # noqa: E402

# Few images serve as well as many for comparing formulas with measurements.
pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.randn(20, 2, 8, 8, dtype=torch.float64) + 0.5 for _ in range(3)]


def layer_outputs(model: nn.Module, name: str, images: list[Tensor]) -> np.ndarray:
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _, __, y: seen.append(y.movedim(1, -1).reshape(-1, y.shape[1])))
    model.eval()
    with torch.no_grad():
        for batch in images:
            model(batch)
    handle.remove()
    return torch.cat(seen).numpy()


LAYERS = ["0", "3", "6"]


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3},
        {"bits": 3, "bias": "refit"},
        {"bits": 2, "method": "rtn", "symmetric": False, "granularity": "tensor"},
        pytest.param({"density": 0.5, "method": "obs", "bias": "refit"}, marks=pytest.mark.slow),
        {"pattern": "2:4", "method": "magnitude", "refit": False},
        {"bits": 3, "pattern": "2:4"},
        {"bits": 2, "density": 0.5, "bias": "refit", "sequential": False},
    ],
)
def test_errors_are_those_of_the_compressed_model(images: list[Tensor], options: dict[str, Any]) -> None:
    dense = network()
    before = copy.deepcopy(dense.state_dict())
    done: list[tuple[int, int, str]] = []

    def progress(count: int, total: int, outcome: LayerOutcome) -> None:
        done.append((count, total, outcome.name))

    result = lb.compress(dense, images, progress=progress, **options)
    if "bits" in options and options.keys() & {"density", "pattern"}:
        assert all(outcome.allowed.startswith("joint") for outcome in result.layers.values())
    assert list(result.layers) == LAYERS and done == [(1, 3, "0"), (2, 3, "3"), (3, 3, "6")]
    assert all(torch.equal(value, dense.state_dict()[key]) for key, value in before.items())
    if options.get("bias") != "refit":
        assert result.state_dict.keys() == before.keys()
    both = "bits" in options and options.keys() & {"density", "pattern"}
    assert result.method == options.get("method", "obc" if both else "gptq")
    for name, outcome in result.layers.items():
        if options.get("sequential") is False and name != "0":
            continue
        # Each layer sees the compressed ones before it, and is compared with the dense model.
        difference = layer_outputs(result.model, name, images) - layer_outputs(dense, name, images)
        np.testing.assert_allclose(outcome.error, np.mean(difference**2, axis=0), rtol=1e-7, atol=1e-14)
        assert np.all(outcome.lower_bound <= outcome.upper_bound)
        assert np.all(outcome.lower_bound <= outcome.error)
        assert np.all(outcome.upper_bound <= outcome.error * (1 + 1e-9) + 1e-15)
        assert outcome.relative(outcome.error) == pytest.approx(outcome.error.sum() / outcome.energy.sum())
        assert outcome.to_dict()["layer"] == name


def test_a_compressed_prefix_is_made_up_for(images: list[Tensor]) -> None:
    dense = network()
    sequential = lb.compress(dense, images, "gptq", bits=3, intervals=False)
    independent = lb.compress(dense, images, "gptq", bits=3, intervals=False, sequential=False)
    assert sequential.layers["3"].lower_bound is None and sequential.layers["3"].relative(None) is None

    def output_error(model: nn.Module) -> float:
        return float(np.mean((layer_outputs(model, "6", images) - layer_outputs(dense, "6", images)) ** 2))

    assert output_error(sequential.model) < output_error(independent.model)


def test_solve_as_method_reaches_the_upper_bounds(images: list[Tensor]) -> None:
    result = lb.compress(network(), images, "solve", bits=2, layers=["0", "3"], time_limit=2.0, seed=1)
    for outcome in result.layers.values():
        np.testing.assert_allclose(outcome.error, outcome.upper_bound, rtol=1e-9)
    assert result.layers["0"].relative(result.layers["0"].lower_bound) > 0


def test_folding_and_quantized_activations(images: list[Tensor]) -> None:
    dense = network()
    start = quantize_activations(dense, 8)
    result = lb.compress(dense, images, bits=4, compressed_model=start, fold_batchnorm=True, intervals=False)
    assert result.folded == {"0": "1"}
    assert isinstance(result.model[1], nn.Identity) and "0.bias" in result.state_dict
    # The copy still quantizes its activations.
    difference = layer_outputs(result.model, "6", images) - layer_outputs(dense, "6", images)
    np.testing.assert_allclose(result.layers["6"].error, np.mean(difference**2, axis=0), rtol=1e-7)


def test_layers_that_are_called_differently_often(images: list[Tensor]) -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4).double() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(len(x) - 1):
                x = torch.tanh(self.a(x))
            return self.b(x) if len(x) > 2 else self.c(x)

    batches = [torch.randn(n, 4, dtype=torch.float64) for n in (2, 3, 4)]
    result = lb.compress(Sometimes(), batches, "rtn", bits=4, intervals=False)
    assert list(result.layers) == ["a", "c", "b"]
    assert result.unreached == ("d",)


def test_interruption_keeps_what_is_finished(images: list[Tensor]) -> None:
    def stop(count: int, *_: Any) -> None:
        if count == 2:
            raise KeyboardInterrupt

    result = lb.compress(network(), images, bits=3, intervals=False, progress=stop)
    assert result.interrupted
    assert list(result.layers) == ["0", "3"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "pass bits to quantize, density or pattern to prune, or both"),
        ({"bits": 3, "density": 0.5, "refit": False}, "for pruning alone"),
        ({"density": 0.5, "granularity": "tensor"}, "leave them out without bits"),
        ({"bits": 3, "density": 0.5, "pattern": "2:4"}, "leave out density"),
        ({"bits": 3, "pattern": "2:4", "method": "gptq"}, "cannot treat pruning with quantization"),
        ({"bits": 3, "intervals": False, "time_limit": 1.0}, "time_limit is for the search for intervals"),
        ({"bits": 3, "method": "solve", "damp": 0.1}, "method 'solve' has no option 'damp'"),
        ({"bits": 3, "method": "gptqq"}, "there is no heuristic 'gptqq'; did you mean gptq"),
        ({"bits": 3, "method": "obs"}, "cannot treat uniform grids"),
        ({"bits": 3, "layers": "9"}, "there is no layer '9'"),
    ],
)
def test_wrong_options(images: list[Tensor], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lb.compress(network(), images, **options)


def test_batches_must_be_readable_again(images: list[Tensor]) -> None:
    with pytest.raises(InputError, match="can be read only once"):
        lb.compress(network(), iter(images), bits=3)
    with pytest.raises(InputError, match="there are no batches"):
        lb.compress(network(), [], bits=3)


@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_at_4_bits(reference_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    sys.modules.pop("resnet20", None)
    from resnet20 import resnet20

    model = resnet20()
    load_weights(model, reference_data / "resnet20_cifar10.safetensors")
    data = np.load(reference_data / "cifar10_subset.npz")
    scaling = {"divide": 255.0, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    calibration = ArrayBatches(data["calib_images"][:128], 64, **scaling)
    test = ArrayBatches(data["test_images"], 256, **scaling)

    def accuracy(network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            answers = torch.cat([network(batch).argmax(1) for batch in test]).numpy()
        return float(np.mean(answers == data["test_labels"]))

    # The layers that take little time; `python -m benchmarks.whole_model` compresses all 20.
    layers = ["conv1", "layer1.*", "layer2.*", "layer3.0.conv1", "layer3.2.conv2", "linear"]
    result = lb.compress(model, calibration, "gptq", bits=4, layers=layers, intervals=False)
    assert len(result.layers) == 16
    for name, outcome in result.layers.items():
        rows = result.model.get_submodule(name).weight.detach().flatten(1)
        assert all(len(row.unique()) <= 16 for row in rows)
        assert outcome.relative(outcome.error) < 0.03
    # Uncompressed: 0.9172.
    assert accuracy(result.model) >= 0.9172 - 0.03


def test_mistyped_methods_cost_no_run_of_the_model(images: list[Tensor]) -> None:
    class Expensive(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the model runs")

    for arguments in ({"method": "no such"}, {"method": "gptq", "no_such": 1}):
        with pytest.raises(InputError, match=r"no such|no_such"):
            lb.compress(Expensive(3, 2), images, bits=3, **arguments)
