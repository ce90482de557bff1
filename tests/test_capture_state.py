"""Random numbers, buffers and routing: both models of a capture run alike, and are left as they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matrices import assert_close

import layerbounds as lb
from layerbounds.exceptions import InputError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import Tensor, nn  # noqa: E402

from layerbounds.capturing.activations import prune_activations, quantize_activations  # noqa: E402
from layerbounds.capturing.targets import CaptureWarning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def batches(number: int = 3) -> list[Tensor]:
    return [torch.randn(40, 4, dtype=torch.float64) for _ in range(number)]


class Noisy(nn.Module):
    """Noise before each layer, from one of the sources that a model may have."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.own = torch.Generator()
        self.numpy = np.random.default_rng(5)
        self.legacy = np.random.RandomState(5)
        self.python = random.Random(5)
        self.source = source

    def noise(self, x: Tensor) -> Tensor:
        draw: dict[str, Callable[[], Any]] = {
            "torch": lambda: torch.randn(x.shape),
            "dropout": lambda: nn.functional.dropout(torch.ones(x.shape)),
            "python": lambda: [[random.gauss(0, 1) for _ in row] for row in x],
            "numpy": lambda: np.random.standard_normal(x.shape),  # noqa: NPY002
            "own torch": lambda: torch.randn(x.shape, generator=self.own),
            "own numpy": lambda: self.numpy.standard_normal(x.shape),
            "own legacy": lambda: self.legacy.standard_normal(x.shape),
            "own python": lambda: [[self.python.gauss(0, 1) for _ in row] for row in x],
        }
        return x + torch.as_tensor(draw[self.source](), dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.noise(self.a(self.noise(x))))


SOURCES = ["torch", "dropout", "python", "numpy", "own torch", "own numpy", "own legacy", "own python"]


def states(model: Noisy) -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        model.own.get_state().tolist(),
        model.numpy.bit_generator.state,
        model.legacy.get_state()[1].tolist(),
        model.python.getstate(),
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_both_models_draw_the_same_numbers(source: str) -> None:
    model = Noisy(source)
    other = quantize_activations(model, 8, layers="a")
    # The models have not drawn equally often.
    model(torch.zeros(1, 4, dtype=torch.float64))
    data = batches()
    before = states(model), states(other)
    pair = lb.capture(model, data, compressed_model=other)
    assert before == (states(model), states(other))
    # Rounding to 8 bits is small; other noise would be as large as the inputs.
    assert np.all(pair["b"].constant < 1e-3)


@pytest.mark.parametrize("source", SOURCES)
def test_repeated_passes_draw_the_same_numbers(source: str) -> None:
    model, data = Noisy(source), batches()
    whole = lb.capture(model, data)
    parts = lb.capture(model, data, memory_limit=8 * 4**2)
    assert len(parts.report.plan.passes) == 2
    for name in ("a", "b"):
        assert_close(parts[name].gram, whole[name].gram)
    torch.manual_seed(1)
    if not source.startswith("own") and source in ("torch", "dropout"):
        assert not np.array_equal(lb.capture(model, data)["b"].gram, whole["b"].gram)
    # Batches do not all get the same noise.
    same = [data[0]] * 2
    assert not np.allclose(lb.capture(model, same)["b"].gram, lb.capture(model, same[:1])["b"].gram, rtol=1e-6)


def test_a_shuffling_loader_gives_every_pass_the_same_batches() -> None:
    x = torch.randn(64, 4, dtype=torch.float64)
    loader = torch.utils.data.DataLoader(x, batch_size=24, shuffle=True, drop_last=True)
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4)).double()
    whole = lb.capture(model, loader)
    parts = lb.capture(model, loader, memory_limit=8 * 4**2)
    for name in ("0", "2"):
        assert_close(parts[name].gram, whole[name].gram)


def test_a_model_that_gives_other_values_each_time_is_noticed() -> None:
    hidden = np.random.default_rng(0)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + torch.from_numpy(hidden.standard_normal(x.shape)))

    model = Hidden()
    with pytest.raises(InputError, match="layer 'fc' sees other inputs each time the model runs on the same batch"):
        lb.capture(model, batches(), compressed_model=copy.deepcopy(model))


class Counting(nn.Module):
    """Buffers that change when the model runs, even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4).double(), nn.BatchNorm1d(4).double()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("resized", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        self.calls += 1
        self.cache = x.sum(0)
        self.resized.data = torch.ones(len(x))
        return self.norm(self.fc(x + self.calls))


def test_buffers_are_left_as_they_were() -> None:
    model = Counting()
    other = copy.deepcopy(model)
    data = batches()
    buffers = {name: id(value) for name, value in model.named_buffers()}

    def check(*models: nn.Module) -> None:
        for one in models:
            assert one.calls == 0 and one.cache is None and one.resized.tolist() == [0.0]
            assert not one.norm.running_mean.any() and one.norm.num_batches_tracked == 0
        assert {name: id(value) for name, value in model.named_buffers()} == buffers

    whole = lb.capture(model, data)
    check(model)
    assert_close(lb.capture(model, data)["fc"].gram, whole["fc"].gram)
    pair = lb.capture(model, data, compressed_model=other)
    check(model, other)
    assert not pair["fc"].constant.any()
    result = lb.compress(model, data, "rtn", bits=4, intervals=False)
    check(model, result.model)
    quantize_activations(model, 8, scheme="static", batches=data)
    with pytest.raises(InputError):
        lb.capture(model, [data[0], data[0] * torch.nan])
    check(model)


def test_masks_change_no_state() -> None:
    class Masked(Counting):
        def forward(self, values: Tensor, attention_mask: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(values + torch.randn(4, dtype=torch.float64))

    model = Masked()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = {"values": torch.randn(2, 3, 4, dtype=torch.float64), "attention_mask": mask}
    state = torch.get_rng_state()
    layer = lb.capture(model, [batch])["fc"]
    assert torch.equal(torch.get_rng_state(), state) and model.calls == 0
    # What is found out about the axes takes no numbers away from the run itself.
    everything = lb.capture(model, [{**batch, "attention_mask": torch.ones(2, 3)}])["fc"]
    assert layer.samples == 3 and everything.samples == 6
    some = lb.capture(model, [batch], mask=lambda _: torch.tensor([[1, 1, 1], [1, 1, 0]]))["fc"]
    last = 6 * everything.gram - 5 * some.gram
    assert np.linalg.matrix_rank(last[0], tol=1e-9) == 1


class Experts(nn.Module):
    """Experts that get the tokens which a router chooses for them."""

    def __init__(self, kind: str, number: int = 3, features: int = 6) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(features, features), nn.Linear(features, number)
        self.experts = nn.ModuleList(nn.Linear(features, features) for _ in range(number))
        self.last = nn.Linear(features, 2)
        self.kind = kind
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        scores = self.router(x)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if self.kind == "token choice":
                rows = torch.where(scores.argmax(1) == number)[0]
            elif self.kind == "mask":
                rows = (scores.argmax(1) == number).nonzero()[:, 0]
            else:
                rows = scores[:, number].topk(8).indices
            if self.kind == "one-hot":
                dispatch = nn.functional.one_hot(rows, len(x)).to(x.dtype)
                result += dispatch.T @ expert(dispatch @ x)
            else:
                result.index_add_(0, rows, expert(x[rows]))
        return self.last(x + result)


def routed_elsewhere(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.router.weight.add_(0.3 * torch.randn_like(other.router.weight))
    return other


@pytest.mark.parametrize("kind", ["experts choose", "one-hot", "token choice", "mask"])
def test_rows_of_other_tokens_are_noticed(kind: str) -> None:
    model, data = Experts(kind), [torch.randn(60, 6, dtype=torch.float64)]
    alike = copy.deepcopy(model)
    with torch.no_grad():
        alike.experts[0].weight.add_(0.1)
    layers = lb.capture(model, data, compressed_model=alike)
    assert not layers["experts.0"].constant.any()
    other = routed_elsewhere(model)
    with pytest.raises(InputError, match=r"layer 'experts\.\d' sees (other tokens|inputs of shape)"):
        lb.capture(model, data, "experts.*", compressed_model=other)
    if kind == "one-hot":
        # What comes back through a matrix product cannot be followed.
        return
    # Layers that see all tokens are captured behind the experts, however those were chosen.
    assert list(lb.capture(model, data, ["first", "router", "last"], compressed_model=other)) == [
        "first",
        "router",
        "last",
    ]


@pytest.mark.parametrize("kind", ["experts choose", "token choice"])
def test_compress_lists_the_experts_that_it_cannot_do(kind: str) -> None:
    model, data = Experts(kind), [torch.randn(60, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)]
    with pytest.warns(CaptureWarning, match=r"layer 'experts\.\d' is not compressed: layer"):
        result = lb.compress(model, data, "rtn", bits=2, intervals=False)
    assert {"first", "router", "last"} <= set(result.layers)
    assert result.refused and all(name.startswith("experts.") for name in result.refused)
    assert set(result.layers) | set(result.refused) | set(result.unreached) == {
        "first",
        "router",
        "last",
        *(f"experts.{i}" for i in range(3)),
    }
    for name in result.refused:
        assert torch.equal(result.model.get_submodule(name).weight, model.get_submodule(name).weight)
    independent = lb.compress(model, data, "rtn", bits=2, intervals=False, sequential=False)
    assert not independent.refused


def test_experts_without_tokens() -> None:
    model = Experts("token choice")
    with torch.no_grad():
        model.router.bias[:] = torch.tensor([100.0, 0.0, -100.0])
    data = [torch.randn(50, 6, dtype=torch.float64)]
    with pytest.warns(CaptureWarning, match=r"never reached, and not captured: experts\.1, experts\.2"):
        layers = lb.capture(model, data)
    assert list(layers) == ["first", "router", "experts.0", "last"]
    with pytest.warns(CaptureWarning, match="never reached"):
        result = lb.compress(model, data, "rtn", bits=4, intervals=False)
    assert set(result.unreached) == {"experts.1", "experts.2"} and "experts.0" in result.layers
    quantize_activations(model, 8, scheme="static", batches=data)
    for other in (quantize_activations(model, 8), prune_activations(model, 0.5)):
        with pytest.warns(CaptureWarning, match="never reached"):
            lb.capture(model, data, compressed_model=other)


def test_compress_keeps_what_is_finished_when_a_later_layer_fails() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * torch.inf)

    with pytest.warns(CaptureWarning, match="layer 'b' is not compressed: batch 0"):
        result = lb.compress(Late(), batches(), "rtn", bits=4, intervals=False)
    assert list(result.layers) == ["a"] and "NaN or infinite" in result.refused["b"]
    with pytest.raises(InputError, match="NaN or infinite"):
        lb.compress(Late(), batches(), "rtn", bits=4, intervals=False, layers="b")
