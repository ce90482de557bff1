"""Masks go to the axes that really are sequences and tokens, or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrices import assert_close

import layerbounds as lb
from layerbounds.exceptions import InputError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import Tensor, nn  # noqa: E402

from layerbounds.capturing.activations import quantize_activations  # noqa: E402
from layerbounds.capturing.targets import CaptureWarning  # noqa: E402

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def padded(sequences: int, tokens: int, left: bool = False) -> Tensor:
    """Sequences of different lengths, none of them empty."""
    lengths = tokens - torch.arange(sequences) % tokens
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return mask.flip(1) if left else mask


def batch_of(mask: Tensor, features: int = 4) -> dict[str, Tensor]:
    values = torch.randn(*mask.shape, features, dtype=torch.float64)
    # Padding is large, so that one position of it in a Gram is seen.
    return {"values": torch.where(mask[..., None] > 0, values, 1000.0), "attention_mask": mask}


def gram(rows: Tensor) -> np.ndarray:
    x = rows.numpy()
    return np.asarray(x.T @ x / len(x))


class Shaped(nn.Module):
    """One linear layer whose input is an arrangement of the values."""

    def __init__(self, arrange: Any, features: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(features, 3).double()
        self.arrange = arrange

    def forward(self, values: Tensor, attention_mask: Tensor) -> Any:
        return self.fc(self.arrange(values))


ARRANGEMENTS = {
    "plain": lambda v: v,
    "time first": lambda v: v.transpose(0, 1),
    "one row": lambda v: v.reshape(-1, 4),
    "one row, time first": lambda v: v.transpose(0, 1).reshape(-1, 4),
    "heads before tokens": lambda v: torch.stack([v] * 3, 1),
    "heads after tokens": lambda v: torch.stack([v] * 3, 2),
    "five heads": lambda v: torch.stack([v] * 5, 1),
    "time first, five heads": lambda v: torch.stack([v] * 5, 1).transpose(0, 2),
    "an axis before": lambda v: v[None],
}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (5, 5), (5, 3), (2, 2), (1, 5), (2, 1), (7, 3)])
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_the_axes_are_found_whatever_their_sizes(name: str, shape: tuple[int, int], left: bool) -> None:
    if shape[1] == 1:
        if "heads" in name:
            pytest.skip("one token for each sequence has no axis that could be told from heads")
        mask = torch.tensor([[1], [0]])
    else:
        mask = padded(*shape, left)
        mask[0, -1 if not left else 0] = 0
    batch = batch_of(mask)
    (layer,) = lb.capture(Shaped(ARRANGEMENTS[name]), [batch, batch_of(torch.ones_like(mask))]).values()
    other = lb.capture(Shaped(ARRANGEMENTS[name]), [batch]).popitem()[1]
    np.testing.assert_allclose(other.gram[0], gram(batch["values"][mask.bool()]), **EXACT)
    assert layer.samples == other.samples * (int(mask.sum()) + mask.numel()) // int(mask.sum())


def test_later_batches_of_other_sizes_follow() -> None:
    model = Shaped(ARRANGEMENTS["time first"])
    batches = [batch_of(padded(*shape)) for shape in ((1, 4), (4, 4), (4, 6), (2, 3))]
    (layer,) = lb.capture(model, batches).values()
    rows = torch.cat([b["values"][b["attention_mask"].bool()] for b in batches])
    np.testing.assert_allclose(layer.gram[0], gram(rows), **EXACT)


def test_layers_with_one_row_for_each_sequence() -> None:
    mask = padded(5, 5)
    mask[4] = 0
    batch = batch_of(mask)
    for arrange in (lambda v: v[:, 0], lambda v: v[:, :1], lambda v: v[:, 0][None]):
        (layer,) = lb.capture(Shaped(arrange), [batch]).values()
        # A sequence without a token does not count.
        np.testing.assert_allclose(layer.gram[0], gram(batch["values"][:4, 0]), **EXACT)


def test_one_row_for_each_sequence_in_the_first_batch_alone() -> None:
    model = Shaped(lambda v: v[:, : 1 + len(v) // 4])
    with pytest.raises(InputError, match="its sizes are not those of the mask"):
        lb.capture(model, [batch_of(padded(3, 5)), batch_of(padded(4, 5))])


REFUSED = {
    # As many rows of another modality, time steps one by one, chosen tokens, another order of them.
    "patches": lambda v: torch.ones(len(v), 5, 4, dtype=v.dtype),
    "no sequences": lambda v: torch.ones(5, 4, dtype=v.dtype),
    "prefix": lambda v: torch.cat([v[:, :1], v], 1),
    "latents": lambda v: v[:, :3],
    "the largest tokens": lambda v: v.reshape(-1, 4)[v.reshape(-1, 4).norm(dim=1).argsort()[:5]],
    "sorted tokens": lambda v: v.reshape(-1, 4)[v.reshape(-1, 4)[:, 0].argsort()],
    "backwards": lambda v: v.flip(1),
    "sequences backwards": lambda v: v.flip(0),
    "heads in the batch": lambda v: torch.cat([v, v]),
    "tokens with tokens": lambda v: v[:, :, None] + v[:, None],
}


@pytest.mark.parametrize("shape", [(5, 5), (3, 5), (6, 5)])
@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_are_not_the_tokens_are_refused(name: str, shape: tuple[int, int]) -> None:
    batch = batch_of(padded(*shape))
    with pytest.raises(
        InputError, match=r"layer 'fc' sees inputs of shape .* cannot be applied \(.*choose other layers"
    ):
        lb.capture(Shaped(REFUSED[name]), [batch])
    # Without padding there is nothing to apply.
    batch["attention_mask"] = torch.ones(shape)
    assert list(lb.capture(Shaped(REFUSED[name]), [batch])) == ["fc"]


def test_a_layer_called_for_each_token_is_refused() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4).double()

        def forward(self, values: Tensor, attention_mask: Tensor) -> None:
            for token in values.unbind(1):
                self.fc(token)

    with pytest.raises(InputError, match="it was not called, or less often, when parts of a padded batch were run"):
        lb.capture(Steps(), [batch_of(padded(5, 5))])


def test_convolutions_over_tokens() -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.wide = nn.Conv1d(4, 3, 1).double(), nn.Conv1d(4, 3, 3, padding=1, stride=2).double()
            self.picture, self.tokens = nn.Conv2d(1, 2, 3).double(), nn.Conv2d(1, 2, 3, padding=1).double()

        def forward(self, values: Tensor, attention_mask: Tensor) -> None:
            self.one(values.transpose(1, 2))
            self.wide(values.transpose(1, 2))
            self.picture(torch.ones(len(values), 1, 5, 5, dtype=values.dtype))
            self.tokens(values[:, None])

    mask = padded(5, 5)
    batch = batch_of(mask)
    layers = lb.capture(Convolutions(), [batch], ["one", "picture"])
    np.testing.assert_allclose(layers["one"].gram[0], gram(batch["values"][mask.bool()]), **EXACT)
    assert layers["picture"].samples == 45
    with pytest.raises(InputError, match="a convolution has other positions than tokens"):
        lb.capture(Convolutions(), [batch], "wide")
    with pytest.raises(InputError, match="tokens are among its pixels"):
        lb.capture(Convolutions(), [batch], "tokens")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ((1.0 - padded(3, 5)) * -10000.0, "negative values, infinity or NaN"),
        (torch.where(padded(3, 5) > 0, 0.0, -torch.inf), "negative values, infinity or NaN"),
        (torch.where(padded(3, 5) > 0, 1.0, torch.nan), "negative values, infinity or NaN"),
        (torch.zeros(3, 5), "the mask is all 0 in floating point"),
        (-padded(3, 5), "negative values"),
        (torch.ones(3, 1, 5), r"the mask has shape \(3, 1, 5\)"),
        (torch.ones(3, 5, dtype=torch.complex64), "plain tensor"),
        (torch.ones(3, 5).to_sparse(), "plain tensor"),
        ("all", "is a str and no array of numbers"),
        ([[1, 1], [1]], "is a list and no array of numbers"),
    ],
)
def test_what_is_no_mask_is_refused(mask: Any, words: str) -> None:
    batch = batch_of(padded(3, 5))
    with pytest.raises(InputError, match=words):
        lb.capture(Shaped(lambda v: v), [batch], mask=lambda _: mask)
    if isinstance(mask, Tensor):
        with pytest.raises(InputError, match=words):
            lb.capture(Shaped(lambda v: v), [{**batch, "attention_mask": mask}])


def test_masks_of_every_type_that_says_yes_or_no() -> None:
    batch = batch_of(padded(3, 5))
    mask = batch["attention_mask"]
    plain = lb.capture(Shaped(lambda v: v), [batch])["fc"].gram
    types = (torch.bool, torch.float16, torch.float8_e4m3fn, torch.uint8, torch.uint16)
    for other in (*(mask.to(dtype) for dtype in types), 3 * mask, mask.tolist(), mask.numpy()):
        assert_close(lb.capture(Shaped(lambda v: v), [batch], mask=lambda _, m=other: m)["fc"].gram, plain)
    with pytest.raises(InputError, match=r"batch 0: mask failed \(KeyError"):
        lb.capture(Shaped(lambda v: v), [batch], mask=lambda b: b["absent"])


def test_parts_that_the_model_does_not_take() -> None:
    class Fixed(Shaped):
        def forward(self, values: Tensor, attention_mask: Tensor) -> Any:
            return super().forward(values + torch.ones(5, 4), attention_mask)

    with pytest.raises(InputError, match=r"cannot be found out by running a part of it .*pass unpadded batches"):
        lb.capture(Fixed(lambda v: v), [batch_of(padded(3, 5))])


class Attention(nn.Module):
    """One block of attention, with positions that count columns or that the batch gives."""

    def __init__(self, positions: bool) -> None:
        super().__init__()
        self.positions = nn.Embedding(32, 8) if positions else None
        self.embed, self.q, self.k, self.v, self.out = nn.Embedding(16, 8), *(nn.Linear(8, 8) for _ in range(4))
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        if self.positions is not None:
            where = torch.arange(x.shape[1])[None] if position_ids is None else position_ids
            x = x + self.positions(where)
        split = [f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v)]
        y = nn.functional.scaled_dot_product_attention(*split, attn_mask=attention_mask[:, None, None].bool())
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("left", [False, True])
def test_grams_do_not_depend_on_the_size_of_the_batches(left: bool) -> None:
    mask = padded(5, 5, left)
    ids = torch.randint(0, 16, mask.shape)
    model = Attention(positions=True)

    def grams(with_positions: bool, single: bool) -> dict[str, np.ndarray]:
        batch = {"input_ids": ids, "attention_mask": mask}
        if with_positions:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        batches: list[Any] = [batch]
        if single:
            batches = [{k: v[b, mask[b].bool()][None] for k, v in batch.items()} for b in range(5)]
        return {name: layer.gram for name, layer in lb.capture(model, batches).items()}

    alone = grams(False, single=True)
    # Without position_ids they are counted from the first token.
    for together in (grams(True, single=False), grams(False, single=False)):
        for name, value in alone.items():
            np.testing.assert_allclose(together[name], value, rtol=1e-9, atol=1e-12)


def test_padding_before_tokens_of_a_model_that_takes_no_positions() -> None:
    class Columns(Attention):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input_ids, attention_mask)

    mask = padded(5, 5, True)
    batch = {"input_ids": torch.randint(0, 16, mask.shape), "attention_mask": mask}
    with pytest.raises(InputError, match="pad at the end, or pass position_ids that count from the first token"):
        lb.capture(Columns(positions=True), [batch])


def test_padding_that_leaks_into_other_tokens_is_said() -> None:
    class Leaking(Shaped):
        def forward(self, values: Tensor, attention_mask: Tensor) -> Any:
            return super().forward(values + 0.3 * values.roll(-1, 1), attention_mask)

    batch = batch_of(padded(4, 6))
    batch["values"] = torch.where(batch["attention_mask"][..., None] > 0, batch["values"], 1.0)
    with pytest.warns(CaptureWarning, match="change when padding is cut off"):
        lb.capture(Leaking(lambda v: v), [batch])


def test_masks_that_leave_tokens_out_that_the_model_sees() -> None:
    mask = padded(4, 6)
    batch = {"input_ids": torch.randint(0, 16, mask.shape), "attention_mask": mask}
    inner = mask.clone()
    inner[:, 0] = 0
    seen: list[Tensor] = []
    model = Attention(positions=True)
    layers = lb.capture(model, [batch], mask=lambda _: inner)
    model.out.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].detach()))
    model(**batch)
    np.testing.assert_allclose(layers["out"].gram[0], gram(seen[0][inner.bool()]), rtol=1e-9, atol=1e-12)


def test_static_ranges_of_activations_use_the_same_axes() -> None:
    batch = batch_of(padded(5, 5))
    model = Shaped(ARRANGEMENTS["time first"])
    other = quantize_activations(model, 8, scheme="static", batches=[batch])
    (hook,) = other.fc._forward_pre_hooks.values()
    values = batch["values"][batch["attention_mask"].bool()]
    assert (hook.change.low, hook.change.high) == (float(values.min()), float(values.max()))
    with pytest.raises(InputError, match="cannot be applied"):
        quantize_activations(Shaped(REFUSED["patches"]), 8, scheme="static", batches=[batch])


def test_a_mask_that_leaves_everything_out() -> None:
    """That is an error, and no empty result."""
    model = Shaped(lambda v: v)
    nothing = torch.zeros(3, 5, dtype=torch.long)
    batch = {"values": torch.randn(3, 5, 4, dtype=torch.float64), "attention_mask": nothing}
    with pytest.raises(InputError, match="leaves out all 15 positions"):
        lb.capture(model, [batch])
    with pytest.warns(CaptureWarning), pytest.raises(InputError, match="leaves out all 15 positions"):
        lb.compress(model, [batch], "rtn", bits=3, intervals=False)
    # A batch without a token that counts is nothing unusual where others have some.
    full = {"values": batch["values"], "attention_mask": nothing + 1}
    assert lb.capture(model, [batch, full])["fc"].samples == 15
