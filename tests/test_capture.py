"""Capture: the Gram matrix of every kind of layer says what a change of its weights costs."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import assert_close

import layerbounds as lb
from layerbounds.arguments import parse_bytes, readable
from layerbounds.exceptions import InputError, MissingExtraError, UnknownNameError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import Tensor, nn  # noqa: E402

from layerbounds.capturing.targets import CaptureWarning  # noqa: E402

EXACT = 1e-10


class Conv1D(nn.Module):
    """What `transformers` has in GPT-2: a linear layer whose weight is stored as (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(*x.shape[:-1], self.nf)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def predicted(layer: lb.Layer, delta: np.ndarray) -> np.ndarray:
    rows = delta.reshape(layer.out_features, -1)
    return np.array([row @ layer.channel_gram(c) @ row for c, row in enumerate(rows)])


def measured(module: nn.Module, change: Any, batches: list[Tensor], channel_axis: int) -> np.ndarray:
    """Mean squared difference of the module's outputs over all positions, per output channel."""
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.weight.add_(change)
        rows = [(changed(x) - module(x)).movedim(channel_axis, -1) for x in batches]
    return torch.cat([row.reshape(-1, row.shape[-1]) for row in rows]).square().mean(0).numpy()


CONVOLUTIONS = [
    ("plain", nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
    ("stride", nn.Conv2d(3, 4, 3, stride=(2, 3), padding=(0, 2)), (2, 3, 8, 9)),
    ("dilation", nn.Conv2d(3, 4, (3, 2), dilation=(2, 3), padding=1), (2, 3, 9, 9)),
    ("all at once", nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (3, 4, 11, 10)),
    ("grouped", nn.Conv2d(6, 9, 3, groups=3), (2, 6, 5, 5)),
    ("depthwise", nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 6, 6)),
    ("depthwise with multiplier", nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), (2, 3, 6, 6)),
    ("same", nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(1, 2)), (2, 3, 7, 9)),
    ("same, even kernel", nn.Conv1d(3, 4, 4, padding="same"), (2, 3, 11)),
    ("valid", nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 7, 6)),
    ("circular", nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 5, 6)),
    ("reflect", nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 5, 6)),
    ("replicate, same", nn.Conv2d(3, 4, 3, padding="same", padding_mode="replicate"), (2, 3, 5, 6)),
    ("pointwise", nn.Conv2d(5, 4, 1), (2, 5, 3, 3)),
    ("one dimension", nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 13)),
    ("three dimensions", nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1, groups=2), (2, 2, 4, 5, 4)),
]


@pytest.mark.parametrize(("module", "shape"), [c[1:] for c in CONVOLUTIONS], ids=[c[0] for c in CONVOLUTIONS])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_are_exact(module: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    module = module.double()
    batches = [torch.randn(shape, dtype=torch.float64) + 0.3, torch.randn((1, *shape[1:]), dtype=torch.float64)]
    change = torch.randn_like(module.weight)
    whole = lb.capture(module, batches)
    # The same in blocks so small that single lines of an image are unfolded.
    monkeypatch.setattr(importlib.import_module("layerbounds.capturing.moments"), "BLOCK_BYTES", 2000)
    pieces = lb.capture(module, batches)
    (name,) = whole
    for layer in (whole[name], pieces[name]):
        assert layer.weight.shape == tuple(module.weight.shape)
        assert layer.groups == module.groups
        np.testing.assert_allclose(predicted(layer, change.numpy()), measured(module, change, batches, 1), rtol=EXACT)
    assert whole[name].samples == sum(module(x).numel() for x in batches) // module.out_channels
    # The mean of the inputs is what a bias sees: the mean output of unit weights.
    ones = copy.deepcopy(module)
    with torch.no_grad():
        ones.weight.fill_(1.0)
        if ones.bias is not None:
            ones.bias.zero_()
        mean = torch.cat([ones(x).movedim(1, 0).flatten(1) for x in batches], 1).mean(1)
    sums = whole[name].input_mean.sum(1).repeat(module.out_channels // module.groups)
    np.testing.assert_allclose(sums, mean.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (2, 2, 3, 5), (5,)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 4), lambda: Conv1D(4, 5)], ids=["linear", "transformers"])
def test_linear_layers_are_exact(make: Any, shape: tuple[int, ...]) -> None:
    module = make().double()
    batches = [torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)]
    (layer,) = lb.capture(module, batches).values()
    change = torch.randn_like(module.weight)
    own = change.T if isinstance(module, Conv1D) else change
    assert layer.weight.shape == (4, 5)
    np.testing.assert_allclose(predicted(layer, own.numpy()), measured(module, change, batches, -1), rtol=EXACT)


def test_unbatched_images() -> None:
    module = nn.Conv2d(3, 4, 3, padding=1).double()
    image = torch.randn(3, 6, 5, dtype=torch.float64)
    alone, batched = lb.capture(module, [image]), lb.capture(module, [image[None]])
    assert_close(alone["conv2d"].gram, batched["conv2d"].gram)


class Network(nn.Module):
    """Convolutions with batch normalisation, a head that is called twice, and a part that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3, stride=2, bias=False), "norm": nn.BatchNorm2d(6)})
        self.head = nn.Linear(6, 6)
        self.unused = nn.Linear(3, 3)
        self.alias = self.head

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body["norm"](self.body["conv"](self.stem(x)))).mean((2, 3))
        return self.head(torch.relu(self.head(x)))


@pytest.fixture
def network() -> Network:
    net = Network()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return net.double()


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.randn(5, 3, 8, 8, dtype=torch.float64) for _ in range(3)]


def test_repeated_calls_are_added_up_and_unreached_modules_reported(network: Network, images: list[Tensor]) -> None:
    seen: list[Tensor] = []
    handle = network.head.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    with pytest.warns(CaptureWarning, match="never reached, and not captured: unused"):
        layers = lb.capture(network, images)
    handle.remove()
    assert list(layers) == ["stem.0", "body.conv", "head"]
    assert layers.report.unreached == ("unused",)
    head = layers["head"]
    x = torch.cat(seen).detach().numpy()
    assert head.samples == len(x) == 2 * 15
    assert head.provenance["calls"] == 6
    assert head.provenance["tied_to"] == ["alias"]
    assert_close(head.gram[0], x.T @ x / len(x))


def test_the_model_is_left_as_it_was(network: Network, images: list[Tensor]) -> None:
    network.train()
    network.stem[1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lb.capture(network, images, fold_batchnorm=True)
        with pytest.raises(InputError):
            lb.capture(network, [torch.full((1, 3, 8, 8), torch.nan, dtype=torch.float64)])
    assert network.training and network.head.training and not network.stem[1].training
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_modules_that_share_a_weight_are_one_layer() -> None:
    first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    x = torch.randn(20, 4, dtype=torch.float64)
    layers = lb.capture(model, [x])
    assert list(layers) == ["0"]
    with torch.no_grad():
        both = torch.cat([x, torch.tanh(first(x))]).numpy()
    assert_close(layers["0"].gram[0], both.T @ both / 40)
    assert layers["0"].provenance["tied_to"] == ["2"]
    strided = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, stride=2))
    strided[1].weight = strided[0].weight
    with pytest.raises(InputError, match="layers '0' and '1' share a weight but use it differently"):
        lb.capture(strided, [torch.randn(1, 2, 9, 9)])


def test_an_output_layer_tied_to_the_embedding_says_so() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.embed(ids))

    layers = lb.capture(Tied(), [torch.arange(7)[None]])
    assert list(layers) == ["out"]
    assert layers["out"].provenance["tied_to"] == ["embed"]


class Tokens(nn.Module):
    """A token model with padding: the padded positions carry NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.pool = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, values: Tensor, attention_mask: Tensor) -> Tensor:
        y = self.up(torch.where(attention_mask[..., None] > 0, values, torch.nan))
        return self.pool(y[:, 0])


def test_masked_tokens_do_not_count() -> None:
    model = Tokens().double()
    values = torch.randn(3, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]])
    batch = {"values": values, "attention_mask": mask}
    layers = lb.capture(model, [batch])
    x = values[mask.bool()].numpy()
    assert_close(layers["up"].gram[0], x.T @ x / 10)
    assert layers["up"].samples == 10 and layers["up"].provenance["masked_positions"] == 5
    assert layers["pool"].samples == 3 and "masked_positions" not in layers["pool"].provenance
    fewer = lb.capture(model, [batch], "up", mask=lambda b: b["attention_mask"] * torch.tensor([1, 0, 0, 0, 0]))
    assert fewer["up"].samples == 3
    with pytest.raises(InputError, match=r"batch 0 .*layer 'up' hold NaN"):
        lb.capture(model, [batch], mask=None)
    with pytest.raises(InputError, match=r"the mask has shape \(15,\)"):
        lb.capture(model, [batch], mask=lambda b: b["attention_mask"].flatten())
    with pytest.raises(InputError, match=r"the mask has shape \(2, 4\), but no tensor of the batch has that many"):
        lb.capture(model, [batch], mask=lambda _: torch.ones(2, 4))


def test_nan_names_the_batch_and_the_layer(network: Network, images: list[Tensor]) -> None:
    images[1][2, 0, 3, 3] = torch.inf
    with pytest.raises(InputError, match=r"batch 1 \(the first is 0\): the inputs of layer 'stem\.0' hold NaN"):
        lb.capture(network, images)


def test_half_precision_inputs_are_taken_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).to(torch.bfloat16)
    x = torch.randn(30, 6, dtype=torch.bfloat16)
    layers = lb.capture(model, [x])
    exact = x.double().numpy()
    assert_close(layers["0"].gram[0], exact.T @ exact / 30)
    np.testing.assert_array_equal(layers["0"].matrix, model[0].weight.detach().double().numpy())


def test_autocast_rounds_what_the_weights_multiply() -> None:
    model = nn.Linear(6, 3)
    x = torch.randn(30, 6)

    def forward(module: nn.Module, batch: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            module(batch)

    (layer,) = lb.capture(model, [x], forward=forward).values()
    rounded = x.to(torch.bfloat16).double().numpy()
    assert_close(layer.gram[0], rounded.T @ rounded / 30)


def test_batch_normalisation_is_folded(network: Network, images: list[Tensor]) -> None:
    with pytest.warns(CaptureWarning, match="never reached"):
        layers = lb.capture(network, images, fold_batchnorm=True)
    assert layers.report.folded == {"stem.0": "stem.1", "body.conv": "body.norm"}
    assert layers["body.conv"].provenance["folded_batchnorm"] == "body.norm"
    network.eval()
    norm = network.body["norm"]
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    np.testing.assert_allclose(
        layers["body.conv"].weight, network.body["conv"].weight.detach().numpy() * factor[:, None, None, None]
    )
    # A change of the folded weights costs what it does to the output of the normalisation.
    change = torch.randn_like(network.body["conv"].weight)
    with torch.no_grad():
        x = torch.cat([network.stem(image) for image in images])
        before = norm(network.body["conv"](x))
        network.body["conv"].weight += change
        after = norm(network.body["conv"](x))
    cost = (after - before).movedim(1, 0).flatten(1).square().mean(1).numpy()
    scaled = change.numpy() * factor[:, None, None, None]
    np.testing.assert_allclose(predicted(layers["body.conv"], scaled), cost, rtol=EXACT)


def test_folding_that_would_change_the_model_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
            self.norm.running_mean.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    batch = torch.randn(2, 2, 3, 3)
    with pytest.raises(InputError, match="another part of the model reads the output of a folded layer"):
        lb.capture(Branch(), [batch], fold_batchnorm=True)
    with pytest.raises(InputError, match="found no batch normalisation"):
        lb.capture(nn.Conv2d(2, 2, 1), [batch], fold_batchnorm=True)


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("stem.0", ["stem.0"]),
        ("conv", ["body.conv"]),
        (["head", "stem.0"], ["stem.0", "head"]),
        ("*.0", ["stem.0"]),
        ("b?dy.*", ["body.conv"]),
        ("re:(stem|body).*", ["stem.0", "body.conv"]),
    ],
)
def test_selection(network: Network, images: list[Tensor], selection: Any, names: list[str]) -> None:
    assert list(lb.capture(network, images[:1], selection)) == names


@pytest.mark.parametrize(
    ("selection", "error", "words"),
    [
        ("stem.1", UnknownNameError, r"there is no layer 'stem\.1'"),
        ("none.*", UnknownNameError, r"no layer matches 'none\.\*'; available: stem\.0"),
        ("re:stem", UnknownNameError, "no layer matches 're:stem'"),
        ("re:(", InputError, "is not a regular expression"),
        ("unused", InputError, "the model called none of the layers"),
    ],
)
def test_wrong_selection(
    network: Network, images: list[Tensor], selection: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        lb.capture(network, images, selection)


def test_what_cannot_be_captured_is_said() -> None:
    model = nn.ModuleDict(
        {
            "up": nn.ConvTranspose2d(2, 2, 2),
            "attention": nn.MultiheadAttention(4, 2),
            "rnn": nn.LSTM(3, 3),
            "lazy": nn.LazyLinear(3),
            "meta": nn.Linear(3, 3, device="meta"),
            "conv": nn.Conv2d(2, 2, 1),
        }
    )

    def forward(modules: nn.ModuleDict, batch: Tensor) -> None:
        modules["conv"](batch)

    batches = [torch.randn(1, 2, 3, 3)]
    with pytest.raises(InputError, match="layer 'up' is a transposed convolution, which capture does not support"):
        lb.capture(model, batches, ["conv", "up"], forward=forward)
    with pytest.raises(InputError, match="layer 'lazy' has no weights yet"):
        lb.capture(model, batches, "lazy", forward=forward)
    with pytest.raises(InputError, match="layer 'meta' has its weights on the meta device"):
        lb.capture(model, batches, "meta", forward=forward)
    with pytest.warns(CaptureWarning) as caught:
        layers = lb.capture(model, batches, forward=forward)
    assert list(layers) == ["conv"]
    assert set(layers.report.refused) == {"up", "attention", "rnn", "lazy", "meta"}
    assert any("'attention' computes with its projections itself" in str(w.message) for w in caught)
    assert layers.report.unreached == ("attention.out_proj",)
    assert {"up.weight", "attention.in_proj_weight", "rnn.weight_ih_l0"} <= set(layers.report.other_parameters)
    assert "conv.weight" not in layers.report.other_parameters
    assert lb.capture(model, batches, "conv", forward=forward).report.other_parameters == ()


def test_weight_normalisation_is_seen_through() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    layers = lb.capture(nn.Sequential(module), [torch.randn(6, 4)])
    np.testing.assert_array_equal(layers["0"].weight, module.weight.detach().numpy())
    assert layers.report.other_parameters == ()
    with pytest.raises(InputError, match="layer '0' computes its weight from other parameters"):
        lb.compress(nn.Sequential(module), [torch.randn(6, 4)], bits=4)


def test_a_changed_class_is_noticed() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    module = Doubled(4, 3)
    with pytest.raises(InputError, match=r"the output of this Doubled differs from its weights times its inputs"):
        lb.capture(module, [torch.randn(5, 4)])
    (layer,) = lb.capture(module, [torch.randn(5, 4)], check=False).values()
    assert layer.samples == 5


def test_batches_of_every_form() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            return self.fc(a if b is None else a + b)

    x, labels = torch.randn(5, 4), torch.zeros(5)
    plain = lb.capture(nn.Linear(4, 3), [x])["linear"].gram
    for batch in ((x, labels), [x, labels], [x], {"input": x}):
        assert_close(lb.capture(nn.Linear(4, 3), [batch])["linear"].gram, plain)
    assert_close(lb.capture(Two(), [{"a": x}])["fc"].gram, plain)
    assert_close(lb.capture(Two(), [(x, x)], forward=lambda m, b: m(*b))["fc"].gram, 4.0 * plain)
    with pytest.raises(InputError, match="batch 0 is a tuple of 2 entries and Two takes several inputs"):
        lb.capture(Two(), [(x, x)])
    with pytest.raises(InputError, match="batch 0 is a str"):
        lb.capture(Two(), ["x"])
    with pytest.raises(InputError, match="batches is a tensor"):
        lb.capture(Two(), x)
    with pytest.raises(InputError, match="there are no batches"):
        lb.capture(Two(), [])
    with pytest.raises(InputError, match="model is 'resnet', which is no folder with"):
        lb.capture("resnet", [x])
    with pytest.raises(InputError, match=r"batch 0 \(the first is 0\): the model failed \(RuntimeError: mat1 and mat2"):
        lb.capture(Two(), [{"a": torch.arange(4)}])

    class Cast(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    with pytest.raises(InputError, match=r"is called with torch\.int64"):
        lb.capture(Cast(4, 3), [torch.arange(4)])


def test_wrappers_are_seen_through(network: Network, images: list[Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = lb.capture(network, images)
        wrapped = lb.capture(nn.DataParallel(network), images)
    assert list(wrapped) == list(plain)


def test_float32_sums(network: Network, images: list[Tensor]) -> None:
    rough, exact = (lb.capture(network, images, "body.conv", dtype=d)["body.conv"] for d in ("float32", torch.float64))
    assert rough.provenance["accumulated_in"] == "float32"
    error = np.abs(rough.gram - exact.gram).max() / exact.gram.max()
    assert 0 < error < 1e-5
    with pytest.raises(InputError, match="accumulate in float64 or float32"):
        lb.capture(network, images, dtype="float16")


def test_a_memory_limit_gives_the_same_layers_in_several_passes(
    network: Network, images: list[Tensor], tmp_path: Path
) -> None:
    names = ["stem.0", "body.conv", "head"]
    plans = []
    whole = lb.capture(network, images, names, plan=plans.append)
    # 27², 36² and 6² entries, of which the second do not fit at all.
    limit = 8 * 30**2
    parts = lb.capture(
        network, images, names, memory_limit=limit, spill_dir=tmp_path, plan=plans.append, provenance={"by": "me"}
    )
    assert list(parts) == list(whole) == names
    for name in names:
        assert_close(parts[name].gram, whole[name].gram)
        assert parts[name].samples == whole[name].samples
        assert parts[name].provenance["by"] == "me"
    one, several = plans
    assert len(one.passes) == 1 and not one.spilled and one.bytes == several.bytes == 8 * (27**2 + 36**2 + 6**2)
    assert several.spilled == {"body.conv"}
    assert one.peak - several.peak == 8 * 36**2
    assert "3 layers: 16.5 kB of Gram matrices" in str(one)
    assert list(tmp_path.iterdir()) == []
    tight = lb.capture(network, images, names, memory_limit=8 * 36**2)
    assert [[t.name for t in p] for p in tight.report.plan.passes] == [["stem.0", "head"], ["body.conv"]]
    assert_close(tight["body.conv"].gram, whole["body.conv"].gram)
    with pytest.raises(InputError, match="needed 2 times, but a list_iterator can be read only once"):
        lb.capture(network, iter(images), names, memory_limit=8 * 36**2)


def test_memory_sizes() -> None:
    assert [parse_bytes(text) for text in ("500MB", "2 GiB", "1.5k", "7", 12, None)] == [
        500_000_000,
        2**31,
        1500,
        7,
        12,
        None,
    ]
    assert [readable(size) for size in (12, 34_500, 2 * 10**9)] == ["12 B", "34.5 kB", "2 GB"]
    for wrong in ("many", "-3", 0, True, "2PB"):
        with pytest.raises(InputError, match="memory_limit is"):
            parse_bytes(wrong)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_many_batches() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    resident: list[int] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(80):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
            yield torch.randn(16, 8, 64, 64)

    model = nn.Sequential(nn.Conv2d(8, 2, 3, stride=4), nn.ReLU(), nn.Conv2d(2, 1, 1))
    layers = lb.capture(model, batches())
    assert layers["0"].samples == 80 * 16 * 16 * 16
    # Batches of 2 MiB: what keeps them, or their activations, needs 120 MiB and more.
    assert resident[-1] - resident[20] < 60 * 2**20


def test_capture_to_file_equals_capture(network: Network, images: list[Tensor], tmp_path: Path) -> None:
    path = tmp_path / "capture.safetensors"
    names = ["head", "stem.0", "body.conv"]
    report = lb.capture_to_file(path, network, images, names, memory_limit="10.4kB")
    assert len(report.plan.passes) == 2
    loaded, captured = lb.load_layers(path), lb.capture(network, images, names)
    assert list(loaded) == list(captured) == ["stem.0", "body.conv", "head"]
    for name, layer in captured.items():
        np.testing.assert_array_equal(loaded[name].gram, layer.gram)
        np.testing.assert_array_equal(loaded[name].input_mean, layer.input_mean)
        assert loaded[name].provenance == layer.provenance
    assert list(tmp_path.iterdir()) == [path]
    # The passes run in the order of the modules; the file lists the layers in the order of execution.
    with pytest.raises(InputError, match="create it first"):
        lb.capture_to_file(tmp_path / "absent" / "capture.safetensors", network, images)


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_capture_leaves_nothing(
    network: Network, images: list[Tensor], tmp_path: Path, how: type[BaseException]
) -> None:
    class Broken:
        def __iter__(self) -> Iterator[Tensor]:
            yield images[0]
            raise how

    path = tmp_path / "capture.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(how):
        lb.capture_to_file(path, network, Broken())
    assert [p.name for p in tmp_path.iterdir()] == ["capture.safetensors"]
    assert path.read_bytes() == b"old"
    assert not any(module._forward_hooks for module in network.modules())


def test_without_torch_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"capture needs PyTorch; run: pip install 'layerbounds\[torch\]'"):
        lb.capture(None, [])


def test_the_file_can_be_read_with_numpy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layer = lb.demo_layers()["conv3"]
    lb.save_layers("capture.safetensors", [layer])
    page = Path(__file__).resolve().parent.parent / "docs" / "file-format.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_array_equal(names["gram"], layer.gram[0])
    assert names["samples"] == layer.samples


def test_fewer_positions_than_inputs_are_said() -> None:
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3))
    batches = [torch.randn(10, 12), torch.randn(5, 12)]
    words = r"layer '2' has 15 positions for 40 inputs: .* singular.* at least 3 times as much data, better 11 times"
    with pytest.warns(CaptureWarning, match=words):
        layers = lb.capture(model, batches)
    assert layers.report.few_positions == {"2": 15}
    assert np.linalg.matrix_rank(layers["2"].gram) == 15
    # In a direction that no input has, a change costs nothing.
    unseen = np.linalg.eigh(layers["2"].gram[0])[1][:, 0]
    assert unseen @ layers["2"].gram[0] @ unseen < 1e-12
    with pytest.warns(CaptureWarning, match=r"layer '2' has 10 positions for 40 inputs \(1 other layer has too few"):
        lb.capture(model, batches[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lb.capture(model, [torch.randn(40, 12)]).report.few_positions == {}
