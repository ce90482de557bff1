"""Whole trainings: the result is exactly allowed, goes on after a break as without one, and depends on the order."""

from __future__ import annotations

import copy
import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.training import Finetuned, finetune

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from layerbounds.training.layer_parts import CompressedWeight  # noqa: E402

#: Input images of two classes that a small network can tell apart.
Data = tuple[Any, Any]


class Net(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.grouped = nn.Conv2d(4, 4, 2, stride=2, groups=2)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(self.drop(torch.relu(self.grouped(x)).flatten(1)))


def net(norm: bool = False, dtype: Any = None) -> Net:
    torch.manual_seed(0)
    return Net(norm).to(dtype or torch.float32)


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 2, 4, 4, generator=generator)
    return x, x.mean(dim=(1, 2, 3)).mul(8).round().clamp(-1, 1).long() + 1


QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "scale_rate": 0.001}
CASES: dict[str, dict[str, Any]] = {
    "lsq": {"schedule": "quantize@0.2", "bits": 3},
    "lsq per tensor": {"schedule": "quantize@0.2:0.6", "bits": 4, "granularity": "tensor"},
    "minmax": {"schedule": "quantize@0", "bits": 2, "quantizer": "minmax"},
    "powers of two": {
        "schedule": "prune@0.1:0.5/4 quantize@0.5", "bits": 8, "density": 0.5, "quantizer": "power-of-two",
    },
    "unstructured": {"schedule": "prune@0:0.5", "density": 0.3},
    "N:M": {"schedule": "prune@0.1:0.9", "pattern": "2:4"},
    "blocks, then quantized": {"schedule": "prune@0:0.4 quantize@0.5", "pattern": "block:2", "density": 0.5, "bits": 3},
    "quantized, then pruned": {"schedule": "quantize@0 prune@0.4:1", "density": 0.5, "bits": 2},
    "at the end": {"schedule": "prune@1 quantize@1", "density": 0.5, "bits": 4},
    "activations, too": {
        "schedule": "prune@0.1:0.5 quantize@0.5", "density": 0.5, "bits": 3, "activation_bits": 4,
        "activation_density": 0.5, "activation_layers": ["grouped", "fc"], "window": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_the_result_is_exactly_allowed(case: str, dtype: str, data: Data) -> None:
    kind = getattr(torch, dtype)
    model, (x, y) = net(dtype=kind), data
    before = copy.deepcopy(model.state_dict())
    result = finetune(model, (x.to(kind), y), **CASES[case], **QUICK)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    layers = lb.capture(model, [x.to(kind)])
    assert list(result.layers) == ["conv", "grouped", "fc"]
    rows = result.errors(layers)
    assert [row["feasible"] for row in rows] == [True] * 3
    for name, trained in result.layers.items():
        problem = trained.problem(layers[name])
        assert lb.evaluate(problem, trained.weights).feasible.all()
        weight = result.model.get_submodule(name).weight.detach()
        # The model holds the same weights in its own precision: levels to half a unit in the last place.
        assert np.array_equal(weight.flatten(1).numpy(), trained.weights.astype(dtype))
        scored = lb.evaluate(problem, weight.flatten(1).numpy(), snap=True)
        assert scored.feasible.all()
        if trained.pattern is not None and trained.grid is None:
            kept = np.count_nonzero(trained.weights, axis=1)
            assert (kept == problem.kept).all()
    assert not any("parametrizations" in name for name in result.model.state_dict())


def test_learned_scales_are_those_of_the_grid_and_have_moved(data: Data) -> None:
    start = {"fc": np.full(3, 0.25)}
    result = finetune(net(), data, "quantize@0:0.5", bits=3, layers="fc", scales=start, **QUICK)
    still = finetune(net(), data, "quantize@0:0", bits=3, layers="fc", scales=start, **QUICK)
    assert np.array_equal(still.layers["fc"].grid.scale, np.full((3, 1), 0.25))
    assert list(result.layers) == ["fc"]
    assert 0 < np.abs(result.layers["fc"].grid.scale - 0.25).max() < 0.1


@pytest.mark.parametrize("case", ["lsq", "activations, too", "N:M"])
def test_going_on_after_a_break_gives_the_same_weights(case: str, data: Data, tmp_path: Path) -> None:
    class BreakError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise BreakError

    arguments = {**CASES[case], **QUICK, "validation": data}
    whole = finetune(net(norm=True), data, **arguments)
    file, log = tmp_path / "training.pt", tmp_path / "log.csv"
    with pytest.raises(BreakError):
        finetune(net(norm=True), data, **arguments, checkpoint=file, progress=stop)
    torch.manual_seed(99)
    resumed = finetune(net(norm=True), data, **arguments, checkpoint=file, log=log)
    assert (whole.resumed, resumed.resumed) == (0, 1)
    one, other = whole.model.state_dict(), resumed.model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for name in whole.layers:
        assert np.array_equal(whole.layers[name].weights, resumed.layers[name].weights)
    assert whole.history == resumed.history
    with log.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in whole.history]
    # Nothing is left to do, and the result is the same again.
    again = finetune(net(norm=True), data, **arguments, checkpoint=file)
    assert again.resumed == QUICK["epochs"]
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in one.items())


def test_a_checkpoint_of_another_training_is_refused(data: Data, tmp_path: Path) -> None:
    file = tmp_path / "training.pt"
    finetune(net(), data, "quantize@0", bits=3, checkpoint=file, **QUICK)
    for change in ({"bits": 4}, {"seed": 1}, {"layers": "fc"}):
        with pytest.raises(InputError, match="belongs to a training with other settings"):
            finetune(net(), data, "quantize@0", **{"bits": 3, **QUICK, **change}, checkpoint=file)
    with pytest.raises(InputError, match="other data"):
        finetune(net(), (data[0] + 1, data[1]), "quantize@0", bits=3, checkpoint=file, **QUICK)
    file.write_bytes(b"something else")
    with pytest.raises(FileFormatError, match="cannot be read as a checkpoint"):
        finetune(net(), data, "quantize@0", bits=3, checkpoint=file, **QUICK)


def weights(result: Finetuned) -> np.ndarray:
    return np.concatenate([layer.weights.ravel() for layer in result.layers.values()])


def test_orders_and_seeds_give_other_weights_and_the_same_seed_the_same(data: Data) -> None:
    common = {"bits": 2, "density": 0.5, **QUICK}
    orders = ("prune@0.1:0.3 quantize@0.6", "quantize@0.1 prune@0.4:0.6", "prune@0.1:0.6 quantize@0.3")
    found = [weights(finetune(net(), data, order, **common)) for order in orders]
    masks = [value != 0 for value in found]
    assert not any(np.array_equal(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert np.array_equal(found[0], weights(finetune(net(), data, orders[0], **common)))
    assert not np.array_equal(found[0], weights(finetune(net(), data, orders[0], seed=1, **common)))


def test_masks_after_quantization_follow_the_rounded_weights() -> None:
    from layerbounds.problems.patterns import parse_pattern
    from layerbounds.training import Phase
    from layerbounds.training.pruners import WeightMask
    from layerbounds.training.quantizers import LearnedSteps

    # At two bits 5 is clipped to 1 step, while −1.6 becomes −2: rounding turns their order.
    latent = torch.tensor([[5.0, -1.6]])
    for quantize, kept in ((0.0, [False, True]), (1.0, [True, False])):
        part = CompressedWeight(
            False,
            LearnedSteps(2),
            WeightMask(parse_pattern("unstructured").structure((2,), 1), 1),
            Phase("prune", "weights", 0.5, 0.5),
            Phase("quantize", "weights", quantize, 1.0),
            torch.ones(1, 1),
        )
        part.advance(latent, 0.0)
        part.advance(latent, 0.5)
        assert part.mask is not None and part.mask.kept.tolist() == [kept]


def test_training_lowers_the_loss_and_the_history_tells_it(data: Data) -> None:
    result = finetune(
        net(), data, "prune@0.2:0.6 quantize@0.6", bits=4, density=0.5, validation=data, **{**QUICK, "epochs": 20}
    )
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < first["loss"] and last["validation_accuracy"] > float(data[1].bincount().max()) / 60
    assert [row["quantized"] for row in result.history] == [False] * 12 + [True] * 8
    nonzero = [row["nonzero"] for row in result.history]
    assert nonzero[0] == 1.0 and all(a >= b for a, b in itertools.pairwise(nonzero))
    assert nonzero[-1] <= 0.5


def test_compressed_inputs_stay_compressed(data: Data) -> None:
    result = finetune(
        net(), data, "prune@0:0.3 quantize@0.5", activation_bits=3, activation_density=0.25,
        activation_layers="fc", **QUICK,
    )  # fmt: skip
    assert not result.layers
    seen: list[Any] = []
    result.model.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    result.model(data[0])
    values = seen[0].detach()
    assert int((values != 0).any(0).sum()) <= 4 and len(torch.unique(values)) <= 8
    assert not any(p.requires_grad for p in result.model.fc.layerbounds_input.parameters())
    found = result.inputs["fc"]
    assert len(found["kept"]) == 4 and found["codes"] == [0, 7]
    # They are no part of the state dict, which a plain model loads, and loading it changes nothing of them.
    clone = copy.deepcopy(result.model)
    clone.load_state_dict(result.model.state_dict())
    net().load_state_dict(clone.state_dict())
    assert torch.equal(clone(data[0]), result.model(data[0]))


def test_distillation_pulls_towards_the_dense_model(data: Data) -> None:
    x, y = data
    wrong = (x, (y + 1) % 3)
    common = {"bits": 4, **{**QUICK, "epochs": 8}}
    teacher = net().eval()(x).argmax(1)

    def agreement(**more: Any) -> float:
        result = finetune(net(), wrong, "quantize@0", **common, **more)
        return float((result.model(x).argmax(1) == teacher).float().mean())

    assert agreement(distill=1.0) > agreement() + 0.1


def test_statistics_are_those_of_the_compressed_network(data: Data) -> None:
    common = {"bits": 2, "quantizer": "minmax", **QUICK, "batch_size": 60}
    result = finetune(net(norm=True), data, "quantize@0", **common)
    outputs = result.model.conv(data[0])
    assert torch.allclose(result.model.norm.running_mean, outputs.mean(dim=(0, 2, 3)), atol=1e-5)
    moving = finetune(net(norm=True), data, "quantize@0", reestimate=False, **common)
    assert not torch.allclose(moving.model.norm.running_mean, outputs.mean(dim=(0, 2, 3)), atol=1e-5)


def test_prepare_and_arrays(data: Data) -> None:
    x, y = data
    bytes_ = (x * 20 + 100).clamp(0, 255).byte()
    one = finetune(net(), (bytes_, y), "quantize@0", bits=3, prepare=lambda b: b.float() / 20 - 5, **QUICK)
    other = finetune(net(), (bytes_.numpy(), y.numpy()), "quantize@0", bits=3, prepare=lambda b: b.float() / 20 - 5,
                     **QUICK)  # fmt: skip
    assert np.array_equal(weights(one), weights(other))


def test_transposed_weights() -> None:
    transformers = pytest.importorskip("transformers")
    conv1d = transformers.pytorch_utils.Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(conv1d(5, 8), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(40, 8)
    result = finetune(model, (x, x[:, :3].argmax(1)), "prune@0:0.5 quantize@0.5", bits=3, pattern="2:4", **QUICK)
    layers = lb.capture(model, [x])
    assert result.layers["0"].weights.shape == (5, 8)
    assert all(row["feasible"] for row in result.errors(layers))
    assert np.array_equal(result.model[0].weight.detach().T.numpy(), result.layers["0"].weights.astype(np.float32))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def forward(self, x: Any) -> Any:
        return self.other(self.one(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "quantize@2"}, "the start of quantize is 2.0"),
        ({"bits": None}, "nothing says how far"),
        ({"density": 0.5}, "does not say when to prune weights"),
        ({"activation_bits": 4, "schedule": "quantize.weights@0"}, "when to quantize activations"),
        ({"bits": 9}, "bits is 9"),
        ({"schedule": "prune@0 quantize@0", "pattern": "2:4", "density": 0.5}, "leave out density"),
        ({"schedule": "prune@0 quantize@0", "pattern": "channel", "density": 0.5}, "couples the output channels"),
        ({"schedule": "prune@0 quantize@0", "pattern": "unstructured"}, "needs a density"),
        ({"quantizer": "lsqq"}, "quantizer is 'lsqq'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"layers": "nothing"}, "nothing"),
        ({"scales": {"fc": [1.0, 0.0, 1.0]}}, "not all positive"),
        ({"scales": {"fc": [1.0, 1.0, 1.0]}, "quantizer": "minmax"}, "first ones of learned step sizes"),
        ({"scales": {"fc": [1.0, 1.0]}}, "has 3 step sizes, and scales has 2"),
        ({"loss": lambda output, target: output}, "no single number"),
        ({"prepare": lambda batch: batch.nothing}, "prepare failed"),
        ({"optimizer": lambda groups: None}, "optimizer returned None"),
        ({"learning_rate": 1e30, "optimizer": lambda g: torch.optim.SGD(g)}, "choose a smaller learning rate"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str, data: Data) -> None:
    arguments: dict[str, Any] = {"schedule": "quantize@0", "bits": 3, **QUICK, **change}
    with pytest.raises(InputError, match=message):
        finetune(net(), data, **arguments)


def test_models_and_data_that_are_refused(data: Data) -> None:
    with pytest.raises(InputError, match="shares its weight with 'other'"):
        finetune(Tied(), (torch.ones(3, 4), torch.zeros(3).long()), "quantize@0", bits=3)
    for bad in (data[0], (data[0], data[1][:5]), None, (object(), 1)):
        with pytest.raises(InputError, match="data "):
            finetune(net(), bad, "quantize@0", bits=3)
    with pytest.raises(InputError, match="fails on the first batch"):
        finetune(net(), (data[0], data[1] + 7), "quantize@0", bits=3)
    with pytest.raises(InputError, match="no parameters"):
        finetune(nn.Identity(), data, "quantize@0", bits=3)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with pytest.raises(InputError, match="computes its weight from other parameters"):
        finetune(nn.Sequential(normed), (torch.ones(3, 4), torch.zeros(3).long()), "quantize@0", bits=3)
