"""Layers that see the same inputs share one Gram matrix, and those that do not never do."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matrices import assert_close

import layerbounds as lb
from layerbounds.layers.gram import ValidatedGram

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import Tensor, nn  # noqa: E402

from layerbounds.capturing.capture_run import CaptureRun  # noqa: E402
from layerbounds.capturing.moments import InputSums  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for")

N = 6


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Attention(nn.Module):
    """Four projections; ``between`` is done to the inputs of the first one before the others see them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(N, N) for _ in range(4))
        self.norm = nn.LayerNorm(N)
        self.between = between
        self.seen: dict[str, list[Tensor]] = {}
        for name in "qkvo":
            self.get_submodule(name).register_forward_hook(self._note(name))

    def _note(self, name: str) -> Callable[..., None]:
        return lambda _, arguments, __: self.seen.setdefault(name, []).append(arguments[0].detach().clone())

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.norm(hidden)
        q = self.q(x)
        x = self.between(x)
        return self.o(torch.tanh(q + self.k(x)) * self.v(x))


def exact(seen: list[Tensor]) -> np.ndarray:
    rows = torch.cat([x.reshape(-1, N) for x in seen]).double()
    return (rows.T @ rows / len(rows)).numpy()


def sequences(number: int = 3) -> list[Tensor]:
    return [torch.randn(4, 5, N) for _ in range(number)]


def shared(layers: dict[str, lb.Layer]) -> list[set[str]]:
    """The layers of each matrix, where they are several."""
    names: dict[int, set[str]] = {}
    for name, layer in layers.items():
        names.setdefault(id(layer.gram), set()).add(name)
        assert layer.gram is layer.validated_gram.matrices
    return [group for group in names.values() if len(group) > 1]


def test_projections_of_one_tensor_share_their_matrix() -> None:
    model = Attention()
    layers = lb.capture(model, sequences())
    assert shared(layers) == [{"q", "k", "v"}]
    for name, layer in layers.items():
        assert_close(layer.gram[0], exact(model.seen[name]))
        assert_close(layer.input_mean[0], torch.cat(model.seen[name]).double().mean((0, 1)).numpy())
        assert layer.samples == 60


def scaled_in_place(x: Tensor) -> Tensor:
    return x.mul_(2.0)


def scaled_unseen(x: Tensor) -> Tensor:
    """As kernels do that write to memory themselves: torch counts no new version."""
    x.data.mul_(2.0)
    return x


def one_number_changed(x: Tensor) -> Tensor:
    x.data[-1, -1, -1] += 1.0
    return x


def reordered(x: Tensor) -> Tensor:
    return x.flip(0)


CHANGES = [scaled_in_place, scaled_unseen, one_number_changed, reordered]


@pytest.mark.parametrize("between", CHANGES)
def test_inputs_that_change_between_two_layers_are_not_shared(between: Callable[[Tensor], Tensor]) -> None:
    model = Attention(between)
    layers = lb.capture(model, sequences())
    assert shared(layers) == [{"k", "v"}]
    for name, layer in layers.items():
        assert_close(layer.gram[0], exact(model.seen[name]))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_layers_part_at_the_first_difference(batch: int) -> None:
    count = 0

    def between(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return scaled_unseen(x) if count == batch + 1 else x

    model = Attention(between)
    layers = lb.capture(model, sequences(4))
    assert shared(layers) == [{"k", "v"}]
    for name, layer in layers.items():
        assert_close(layer.gram[0], exact(model.seen[name]))
        assert layer.samples == 80


def test_a_layer_that_is_called_more_often_goes_its_own_way() -> None:
    class Twice(Attention):
        def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
            x = self.norm(hidden)
            y = self.q(x) + self.k(x)
            if hidden.shape[0] == 3:
                y = y + self.q(x) + self.v(x)
            return self.o(y + self.v(x))

    model = Twice()
    layers = lb.capture(model, [torch.randn(size, 5, N) for size in (4, 3, 4)])
    assert shared(layers) == []
    assert {name: layer.samples for name, layer in layers.items()} == {"q": 70, "k": 55, "v": 70, "o": 55}
    for name, layer in layers.items():
        assert_close(layer.gram[0], exact(model.seen[name]))


def test_a_layer_that_is_not_always_called() -> None:
    class Sometimes(Attention):
        def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
            x = self.norm(hidden)
            y = self.q(x) + self.k(x)
            return y if hidden.shape[0] == 3 else self.o(y * self.v(x))

    model = Sometimes()
    layers = lb.capture(model, [torch.randn(size, 5, N) for size in (4, 3, 4)])
    assert shared(layers) == [{"q", "k"}]
    for name, layer in layers.items():
        assert_close(layer.gram[0], exact(model.seen[name]))


def test_layers_that_read_a_tensor_with_others_between_them() -> None:
    class Parallel(Attention):
        """The feed-forward part reads what attention reads, after attention is done."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(N, 2 * N)

        def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
            x = self.norm(hidden)
            y = self.o(self.q(x) * self.k(x) + self.v(x))
            return torch.cat([y, self.up(x)], -1)

    layers = lb.capture(Parallel(), sequences())
    assert shared(layers) == [{"q", "k", "v", "up"}]


def test_masked_positions_do_not_part_layers() -> None:
    mask = torch.ones(4, 5, dtype=torch.long)
    mask[1, 3:] = mask[3, 2:] = 0
    batches = [{"hidden": x, "attention_mask": mask} for x in sequences()]
    model = Attention()
    layers = lb.capture(model, batches)
    assert shared(layers) == [{"q", "k", "v"}]
    rows = torch.cat([model.norm(b["hidden"])[mask.bool()] for b in batches]).detach().double()
    for name in "qkv":
        assert layers[name].samples == len(rows) == 45
        assert_close(layers[name].gram[0], (rows.T @ rows / len(rows)).numpy(), 1e-6)


def test_compressed_inputs_share_the_matrix_and_not_the_target() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.q, self.k = nn.Linear(N, N), nn.Linear(N, N), nn.Linear(N, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return torch.cat([self.q(x), self.k(x)], -1)

    model = Block().double()
    other = Block().double()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.first.weight += 0.1 * torch.randn(N, N)
    batches = [torch.randn(40, N, dtype=torch.float64) for _ in range(2)]
    layers = lb.capture(model, batches, compressed_model=other)
    assert shared(layers) == [{"q", "k"}]
    alone = {name: lb.capture(model, batches, name, compressed_model=other)[name] for name in layers}
    for name, layer in layers.items():
        for what in ("gram", "target", "constant", "input_mean", "residual_mean"):
            assert_close(getattr(layer, what), getattr(alone[name], what), 1e-11)
        if name != "first":
            dense, compressed = (torch.cat([torch.tanh(m.first(x)) for x in batches]) for m in (model, other))
            weight = model.get_submodule(name).weight
            change = torch.randn_like(weight)
            measured = ((compressed @ (weight + change).T - dense @ weight.T) ** 2).mean(0).detach().numpy()
            ev = lb.evaluate(lb.pruning_problem(layer, density=1.0), (weight + change).detach().numpy())
            np.testing.assert_allclose(ev.error, measured, rtol=1e-9)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": 1}, {"groups": 2}])
def test_convolutions_share_only_where_they_unfold_alike(options: dict[str, int]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 2, 3)
            self.c = nn.Conv2d(4, 8, 3, **options)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum() + self.b(x).sum() + self.c(x).sum()

    layers = lb.capture(Two(), [torch.randn(3, 4, 9, 9) for _ in range(2)])
    assert shared(layers) == [{"a", "b", "c"} if not options else {"a", "b"}]


def test_sums_in_float32_and_on_disk_are_shared_too(tmp_path: Path) -> None:
    model, batches = Attention(), sequences()
    plain = lb.capture(model, batches)
    rough = lb.capture(model, batches, dtype="float32")
    # Each layer is larger than that.
    spilled = lb.capture(model, batches, memory_limit=8 * N * N - 1, spill_dir=tmp_path)
    for layers in (rough, spilled):
        assert shared(layers) == [{"q", "k", "v"}]
    for name in plain:
        assert_close(spilled[name].gram, plain[name].gram)
        assert_close(rough[name].gram, plain[name].gram, 1e-5)


def test_shared_sums_are_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    add = InputSums.add

    def counting(self: InputSums, block: Tensor) -> None:
        made.append(id(self))
        add(self, block)

    monkeypatch.setattr(InputSums, "add", counting)
    lb.capture(Attention(), sequences())
    assert len(set(made)) == 2
    assert len(made) == 6


def test_matrices_are_freed_with_their_last_layer() -> None:
    run = CaptureRun(Attention(), sequences())
    grams: list[weakref.ref[ValidatedGram]] = []
    for layer in run.layers():
        if layer.name == "o":
            # The loop holds the last layer; nothing else holds q, k and v.
            gc.collect()
            assert [gram() is None for gram in grams] == [True] * 3
        grams.append(weakref.ref(layer.validated_gram))
    assert len(grams) == 4


def test_a_captured_file_stores_shared_matrices_once(tmp_path: Path) -> None:
    model, batches = Attention(), sequences()
    path = tmp_path / "capture.safetensors"
    lb.capture_to_file(path, model, batches)
    loaded, captured = lb.load_layers(path), lb.capture(model, batches)
    assert list(loaded) == list(captured) == ["q", "k", "v", "o"]
    assert shared(loaded) == [{"q", "k", "v"}]
    for name, layer in captured.items():
        np.testing.assert_array_equal(loaded[name].gram, layer.gram)
    alone = tmp_path / "alone.safetensors"
    lb.capture_to_file(alone, Attention(scaled_unseen), batches)
    assert alone.stat().st_size - path.stat().st_size > 8 * N * N - 100
