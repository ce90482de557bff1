"""Causal convolutions: positions that the model cuts off do not count, and the others belong to tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matrices import assert_close

import layerbounds as lb
from layerbounds.exceptions import InputError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for", "ignore:.*falling back")

Cut = Callable[[Tensor, Tensor], Tensor]
#: What a model makes of a convolution's output y for inputs x.
CUTS: dict[str, Cut] = {
    "causal": lambda y, x: y[..., : x.shape[-1]],
    "chomp": lambda y, x: y[:, :, : -(y.shape[-1] - x.shape[-1])].contiguous(),
    "narrow": lambda y, x: y.narrow(-1, 0, x.shape[-1]),
    "anticausal": lambda y, x: y[:, :, -x.shape[-1] :],
    "both": lambda y, x: y[:, :, 1:-1],
}


class Mixer(nn.Module):
    """A Mamba-like layer: a depthwise convolution between two products, with its output cut."""

    def __init__(self, cut: Cut, *, groups: int = 6, dilation: int = 1, left: bool = False) -> None:
        super().__init__()
        self.cut, self.left = cut, 2 * dilation if left else 0
        self.embed = nn.Embedding(16, 5)
        self.up = nn.Linear(5, 6)
        self.conv1d = nn.Conv1d(
            6, 6, 3, padding=0 if left else 2 * dilation, groups=groups, dilation=dilation, bias=True
        )
        self.down = nn.Linear(6, 4)

    def mixed(self, x: Tensor) -> Tensor:
        if self.left:
            return self.conv1d(functional.pad(x, (self.left, 0)))
        return self.cut(self.conv1d(x), x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.up(self.embed(input_ids)).transpose(1, 2)
        return self.down(functional.silu(self.mixed(x)).transpose(1, 2))


def build(*arguments: Any, **options: Any) -> Mixer:
    torch.manual_seed(0)
    return Mixer(*arguments, **options).double()


def tokens() -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(16, (3, length))} for length in (9, 7)]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("name", "dilation"), [*((name, 1) for name in CUTS), ("causal", 3)])
def test_a_change_costs_what_the_rest_of_the_model_sees(name: str, dilation: int, groups: int) -> None:
    model, batches = build(CUTS[name], groups=groups, dilation=dilation), tokens()
    layer = lb.capture(model, batches, "conv1d")["conv1d"]
    seen = [model.up(model.embed(b["input_ids"])).transpose(1, 2).detach() for b in batches]

    def outputs() -> Tensor:
        with torch.no_grad():
            return torch.cat([model.mixed(x).movedim(1, -1).reshape(-1, 6) for x in seen])

    before = outputs()
    assert layer.samples == len(before)
    change = torch.randn_like(model.conv1d.weight)
    model.conv1d.weight.data += change
    cost = (outputs() - before).square().mean(0).numpy()
    own = change.numpy().reshape(groups, 6 // groups, -1)
    said = np.einsum("goi,gij,goj->go", own, layer.gram, own).reshape(-1)
    np.testing.assert_allclose(said, cost, rtol=1e-10)
    assert "cut" in layer.provenance


def test_outputs_that_are_read_whole_are_not_cut() -> None:
    def sum_too(y: Tensor, x: Tensor) -> Tensor:
        return y[..., : x.shape[-1]] + y.mean(-1, keepdim=True)

    layer = lb.capture(build(sum_too), tokens(), "conv1d")["conv1d"]
    assert layer.samples == 3 * (11 + 9) and "cut" not in layer.provenance


def test_cuts_that_differ_are_refused() -> None:
    def differs(y: Tensor, x: Tensor) -> Tensor:
        return y[..., : x.shape[-1]] if x.shape[-1] == 9 else y

    with pytest.raises(InputError, match="output of layer 'conv1d' is cut in another way than in the first batch"):
        lb.capture(build(differs), tokens(), "conv1d")


@pytest.mark.parametrize("left", [False, True])
def test_padded_tokens(left: bool) -> None:
    model = build(CUTS["causal"], left=left)
    mask = (torch.arange(4) < torch.tensor([4, 2, 3, 1])[:, None]).long()
    ids = torch.randint(16, mask.shape)
    together = lb.capture(model, [{"input_ids": ids, "attention_mask": mask}])
    single = lb.capture(model, [{"input_ids": i[m][None]} for i, m in zip(ids, mask.bool(), strict=True)])
    assert together["conv1d"].samples == 10
    for name, layer in together.items():
        assert layer.samples == single[name].samples
        assert_close(layer.gram, single[name].gram, 1e-10)


def test_compressed_inputs_and_batches_that_come_once() -> None:
    model, batches = build(CUTS["causal"]), tokens()
    other = copy.deepcopy(model)
    other.up.weight.data += 0.1 * torch.randn_like(other.up.weight)
    layer = lb.capture(model, iter(batches), "conv1d", compressed_model=other)["conv1d"]
    result = lb.compress(model, batches, "rtn", bits=4, intervals=False)
    assert layer.samples == 3 * 16 and set(result.layers) == {"up", "conv1d", "down"}
    seen, hat = ([m.up(m.embed(b["input_ids"])).transpose(1, 2).detach() for b in batches] for m in (model, other))
    change = torch.randn_like(model.conv1d.weight)
    dense = torch.cat([model.mixed(x).movedim(1, -1).reshape(-1, 6) for x in seen]).detach()
    model.conv1d.weight.data += change
    changed = torch.cat([model.mixed(x).movedim(1, -1).reshape(-1, 6) for x in hat]).detach()
    cost = (changed - dense).square().mean(0).numpy()
    shift = model.conv1d.weight.detach().numpy().reshape(6, -1) - layer.target
    said = np.einsum("oi,oij,oj->o", shift, layer.gram, shift) + layer.constant
    np.testing.assert_allclose(said, cost, rtol=1e-8)


def test_convolutions_that_models_compute_themselves() -> None:
    """transformers takes the weights of Mamba's convolution and does not call it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=2, state_size=4)
    model = transformers.MambaForCausalLM(config).double()
    mask = (torch.arange(6) < torch.tensor([6, 4, 5])[:, None]).long()
    ids = torch.randint(3, 32, mask.shape)
    name = "backbone.layers.1.mixer.conv1d"
    layers = lb.capture(model, [{"input_ids": ids, "attention_mask": mask}], ["*conv1d", "*in_proj"])
    single = lb.capture(model, [{"input_ids": i[m][None]} for i, m in zip(ids, mask.bool(), strict=True)], "*conv1d")
    assert layers[name].samples == single[name].samples == 15
    assert_close(layers[name].gram, single[name].gram, 1e-6)
    seen: list[Tensor] = []
    mixer = model.get_submodule("backbone.layers.1.mixer")
    handle = mixer.in_proj.register_forward_hook(lambda _, __, y: seen.append(y.detach()[..., :16].transpose(1, 2)))
    with torch.no_grad():
        for i, m in zip(ids, mask.bool(), strict=True):
            model(i[m][None])
    handle.remove()
    change = torch.randn_like(mixer.conv1d.weight)
    outputs = [functional.conv1d(x, change, padding=3, groups=16)[..., : x.shape[-1]].movedim(1, -1) for x in seen]
    cost = torch.cat([y.reshape(-1, 16) for y in outputs]).square().mean(0).numpy()
    own = change.numpy().reshape(16, 4)
    np.testing.assert_allclose(np.einsum("oi,oij,oj->o", own, single[name].gram, own), cost, rtol=1e-9)
