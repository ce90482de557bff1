"""Models that hold other things than plain weights: captured as they compute, or refused in one sentence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.exceptions import InputError, LayerboundsError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

from layerbounds.capturing.activations import prune_activations, quantize_activations  # noqa: E402
from layerbounds.capturing.loading import save_state  # noqa: E402
from layerbounds.capturing.targets import CaptureWarning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for", "ignore:never reached")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pruned() -> nn.Module:
    module = nn.Linear(4, 4).double()
    prune.random_unstructured(module, "weight", 0.5)
    return module


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(4, 4).double())


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "prune": pruned,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4).double()),
    "weight norm as hooks": old_weight_norm,
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4).double()),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4).double()),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("training", [False, True])
def test_computed_weights_are_those_that_the_model_uses(name: str, training: bool) -> None:
    model = nn.Sequential(COMPUTED[name](), nn.Tanh(), nn.Linear(4, 3).double())
    # With a gradient history, which copies cannot have.
    model(torch.randn(2, 4, dtype=torch.float64)).sum().backward()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(1.5)
    model.train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(40, 4, dtype=torch.float64)
    # Its own evaluation: the outputs of unit vectors.
    evaluated = copy.deepcopy(prune_activations(model, 1.0)).eval()
    with torch.no_grad():
        used = (evaluated[0](torch.eye(4, dtype=torch.float64)) - evaluated[0](torch.zeros(1, 4).double())).T
    layers = lb.capture(model, [x])
    np.testing.assert_allclose(layers["0"].weight, used.numpy(), rtol=1e-9, atol=1e-12)
    assert layers.report.other_parameters == ()
    pair = lb.capture(model, [x], compressed_model=quantize_activations(model, 8))
    np.testing.assert_allclose(pair["0"].weight, used.numpy(), rtol=1e-9, atol=1e-12)
    assert np.all(pair["0"].constant < 1e-2)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    with pytest.raises(
        InputError, match=r"layer '0' computes its weight from other parameters.*make it permanent first"
    ):
        lb.compress(model, [x], bits=4)
    result = lb.compress(model, [x], "rtn", bits=4, layers="2", intervals=False)
    assert list(result.layers) == ["2"]


class Extra(nn.Module):
    """State beside the tensors."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize("state", [{"scale": 3}, None, torch.ones(2)])
def test_models_with_extra_state(state: Any, tmp_path: Path) -> None:
    model = Extra(state)
    x = torch.randn(9, 4)
    assert list(lb.capture(model, [x])) == ["fc"]
    result = lb.compress(model, [x], "rtn", bits=4, intervals=False)
    names = {"fc.weight", "fc.bias"} | ({"_extra_state"} if isinstance(state, Tensor) else set())
    assert set(result.state_dict) == names
    save_state(tmp_path / "m.safetensors", result.state_dict, list(result.layers))


class Branches(nn.Module):
    """A linear layer over tokens, then a normalisation over the second axis, which holds the tokens."""

    def __init__(self, tokens: int, tokens_first: bool) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(tokens)
        self.flat, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.double()
        for norm in (self.norm, self.last):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.flat(self.norm(self.fc(x)).mean(1)))


@pytest.mark.parametrize("tokens", [5, 6])
def test_normalisation_over_tokens_is_not_folded(tokens: int) -> None:
    model, data = Branches(tokens, True), [torch.randn(9, tokens, 4, dtype=torch.float64)]
    layers = lb.capture(model, data, fold_batchnorm=True)
    assert layers.report.folded == {"flat": "last"}
    np.testing.assert_array_equal(layers["fc"].weight, model.fc.weight.detach().numpy())
    result = lb.compress(model, data, "rtn", bits=8, fold_batchnorm=True, intervals=False)
    with torch.no_grad():
        torch.testing.assert_close(result.model.eval()(data[0]), model.eval()(data[0]), rtol=0.1, atol=0.1)


class Subclass(Tensor):
    """A tensor of a class of its own, as libraries use for packed weights."""


def with_weight(value: Any, what: str = "weight") -> nn.Module:
    module = nn.Linear(3, 3)
    setattr(module, what, nn.Parameter(value, requires_grad=False))
    return nn.Sequential(nn.Linear(3, 3), module)


FOREIGN: dict[str, Callable[[], Tensor]] = {
    "fp8": lambda: torch.ones(3, 3).to(torch.float8_e4m3fn),
    "fp8 with another exponent": lambda: torch.ones(3, 3).to(torch.float8_e5m2),
    "complex": lambda: torch.ones(3, 3, dtype=torch.complex64),
    "int8": lambda: torch.ones(3, 3, dtype=torch.int8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(3, 3, device="meta"),
    "subclass": lambda: torch.ones(3, 3).as_subclass(Subclass),
    "packed": lambda: torch.eye(3).to_mkldnn(),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*quantized tensor")
def test_foreign_weights_and_biases_are_refused(name: str) -> None:
    for what in ("weight", "bias"):
        value = FOREIGN[name]()
        if what == "bias":
            if name in ("compressed rows", "packed"):
                continue
            value = value[0] if name not in ("sparse", "subclass") else value
        model = with_weight(value, what)
        with pytest.raises(InputError, match="layer '1' has"):
            lb.capture(model, [torch.randn(2, 3)], ["0", "1"])
        with pytest.warns(CaptureWarning, match="layer '1' has"):
            layers = lb.capture(model, [torch.randn(2, 3)], forward=lambda m, x: m[0](x))
        assert list(layers) == ["0"] and set(layers.report.refused) == {"1"}
        with pytest.raises(LayerboundsError):
            lb.compress(model, [torch.randn(2, 3)], bits=4, layers=["0", "1"])


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "subclass"])
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*quantized tensor")
def test_foreign_inputs_are_refused(name: str) -> None:
    class Accepting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(3, 3)

    with pytest.raises(InputError, match=r"(layer '0' is called with|a batch cannot be moved to cpu) .*plain tensor"):
        lb.capture(nn.Sequential(Accepting(3, 3)), [{"input": FOREIGN[name]()}], check=False)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_inputs_are_refused() -> None:
    class Accepting(nn.Linear):
        def forward(self, x: Any) -> Tensor:
            return torch.ones(3, 3)

    for value in ([1.0], None, "x", torch.arange(3), torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])):
        with pytest.raises(InputError, match="layer 'accepting' is called with"):
            lb.capture(Accepting(3, 3), [[value]], forward=lambda m, b: m(b[0]), check=False)


def test_quantized_modules_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), {nn.Linear})
    with pytest.raises(InputError, match="layer '0' has quantized weights; pass the model before its quantization"):
        lb.capture(model, [torch.randn(2, 3)], "0")


def test_devices_that_are_none() -> None:
    model = nn.Linear(3, 3)
    for call in (
        lambda device: lb.capture(model, [torch.randn(2, 3)], device=device),
        lambda device: lb.compress(model, [torch.randn(2, 3)], bits=4, device=device),
        lambda device: quantize_activations(model, 8, scheme="static", batches=[torch.randn(2, 3)], device=device),
    ):
        with pytest.raises(InputError, match="device is 'gpu'; pass a name such as"):
            call("gpu")
        with pytest.raises(InputError, match=r"device is 1\.5"):
            call(1.5)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="the model cannot be moved to cuda"):
            lb.capture(model, [torch.randn(2, 3)], device="cuda")


@pytest.mark.parametrize(
    "options",
    [
        {"model": 5},
        {"batches": 5},
        {"batches": "text"},
        {"batches": {"a": torch.ones(2, 3)}},
        {"batches": torch.ones(2, 3)},
        {"layers": 5},
        {"layers": [5]},
        {"compressed_model": 5},
        {"mask": "all"},
        {"mask": 5, "batches": [{"input": torch.ones(2, 3)}]},
        {"forward": 5},
        {"device": 5.0},
        {"dtype": 5},
        {"spill_dir": "/absent"},
        {"memory_limit": []},
    ],
    ids=str,
)
def test_wrong_types_get_a_sentence(options: dict[str, Any]) -> None:
    arguments = {"model": nn.Linear(3, 3), "batches": [torch.ones(2, 3)], **options}
    with pytest.raises(LayerboundsError):
        lb.capture(**arguments)
    if not options.keys() & {"dtype", "spill_dir", "memory_limit"}:
        with pytest.raises(LayerboundsError):
            lb.compress(bits=4, intervals=False, **arguments)
    if not options.keys() & {"dtype", "spill_dir", "memory_limit", "compressed_model"}:
        with pytest.raises(LayerboundsError):
            quantize_activations(bits=8, scheme="static", **arguments)


def test_what_cannot_be_copied_is_said() -> None:
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle a lock")

    with pytest.raises(InputError, match=r"the model cannot be copied \(TypeError: cannot pickle a lock\)"):
        lb.compress(nn.Sequential(Locked(3, 3)), [torch.randn(2, 3)], bits=4)


@pytest.mark.parametrize("level", [0.0, 30.0, 3000.0, 1e5])
@pytest.mark.parametrize("compressed", [False, True])
def test_float32_sums_of_inputs_with_a_large_constant(level: float, compressed: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 3)).double()
    # The first batch is not like the others.
    data = [torch.randn(n, 4, 5, 5, dtype=torch.float64) + level + n / 50 for n in (1, 60, 80)]
    other = None
    if compressed:
        other = copy.deepcopy(model)
        for module in (other[0], other[2]):
            # Errors with a constant part, in front of the layer and behind it.
            module.register_forward_pre_hook(lambda _, x: (x[0] + 0.01 * torch.sin(x[0]) + 0.001 * level,))
    rough, exact = (lb.capture(model, data, dtype=d, compressed_model=other) for d in ("float32", "float64"))
    for name, layer in rough.items():
        assert layer.provenance["accumulated_in"] == "float32"
        sure = exact[name]
        np.testing.assert_allclose(layer.input_mean, sure.input_mean, rtol=1e-6, atol=1e-6 * (1 + level))
        for own, true in zip(layer.gram, sure.gram, strict=True):
            assert np.abs(own - true).max() <= 1e-5 * np.abs(true).max()
        for bias in ("keep", "refit"):
            a, b = (lb.quantization_problem(one, 3, bias=bias).layer for one in (layer, sure))
            if bias == "refit":
                size = np.abs(b.gram).max()
                assert np.abs(a.gram - b.gram).max() <= 1e-5 * size + 1e-12 * level**2
            energy = b.energy() + 1e-13 * (1 + level) ** 2
            np.testing.assert_allclose(a.constant / energy, b.constant / energy, atol=1e-4)
            v = sure.weight + 0.1 * np.random.default_rng(0).standard_normal(sure.weight.shape)
            errors = [lb.evaluate(lb.pruning_problem(one, density=1.0, bias=bias), v).error for one in (layer, sure)]
            np.testing.assert_allclose(errors[0], errors[1], rtol=1e-3, atol=1e-11 * level**2)


def test_layers_of_the_same_name_must_be_the_same_layers() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
    for other in (nn.Conv2d(2, 2, 3, padding=1, stride=2), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, padding=1, groups=2)):
        with pytest.raises(
            InputError, match="layer '0' has other sizes, strides, paddings or groups in the compressed"
        ):
            lb.capture(model, [torch.randn(9, 2, 5, 5)], compressed_model=nn.Sequential(other, nn.ReLU()))


def test_errors_of_the_batches_are_not_those_of_the_file(tmp_path: Path) -> None:
    def batches() -> Any:
        yield torch.randn(8, 3)
        raise FileNotFoundError("image 7")

    with pytest.raises(FileNotFoundError, match="image 7"):
        lb.capture_to_file(tmp_path / "out.safetensors", nn.Sequential(nn.Linear(3, 2)), batches())
    assert not list(tmp_path.iterdir())
