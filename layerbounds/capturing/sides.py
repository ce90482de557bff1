"""Which positions of a batch count: one mask, or one for each side of a model with an encoder and a decoder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.batches import Mask, batch_mask
from layerbounds.exceptions import InputError

#: What models of `transformers` leave out of their loss.
IGNORED = -100
_LABELS, _DECODER = "labels", "decoder_"


@dataclass(frozen=True)
class Side:
    """A mask of (sequences, tokens), and the entries of a batch that it is about.

    Attributes
    ----------
    mask : Tensor of bool
    decoder : bool, optional
        Whether it is about the decoder's tokens or about the encoder's; None where a batch has one kind of tokens.
    """

    mask: Tensor
    decoder: bool | None = None

    @property
    def name(self) -> str:
        """The entry of a batch that says what is padding on this side."""
        return f"{_DECODER if self.decoder else ''}attention_mask"

    def owns(self, key: Any) -> bool:
        """Whether an entry of a batch follows the tokens of this side."""
        return self.decoder is None or self.decoder == _of_decoder(key)


@dataclass(frozen=True)
class Sides:
    """The masks of a batch.

    Attributes
    ----------
    masks : tuple of Side
        Empty where every position counts.
    rest : bool
        Whether layers that follow no mask see positions that all count, those of an encoder of images, say.
    """

    masks: tuple[Side, ...] = ()
    rest: bool = False


def takes_two_sides(model: nn.Module) -> bool:
    """Whether a model has an encoder and a decoder, each with tokens of its own."""
    return f"{_DECODER}input_ids" in inspect.signature(model.forward).parameters


def sides_of(model: nn.Module, batch: Any, mask: Mask, index: int) -> Sides:
    """The masks that are given, or that a batch brings along.

    A batch for an encoder and a decoder has two: ``attention_mask``, and ``decoder_attention_mask`` or, without one,
    the labels that are not left out of the loss.

    Raises
    ------
    InputError
        As `batch_mask`.
    """
    if mask != "auto" or not isinstance(batch, Mapping) or not _is_two_sided(model, batch):
        value = batch_mask(batch, mask, index)
        return Sides() if value is None else Sides((Side(value),))
    own = [_mask(batch, index, "attention_mask", None, "input_ids", "inputs_embeds")]
    own.append(_mask(batch, index, "decoder_attention_mask", _LABELS, "decoder_input_ids", "decoder_inputs_embeds"))
    if all(value is None or bool(value.all()) for value in own):
        return Sides()
    found = [Side(value, bool(place)) for place, value in enumerate(own) if value is not None]
    if len(found) == 2 and len(found[0].mask) != len(found[1].mask):
        raise InputError(
            f"batch {index} has {len(found[0].mask)} sequences for the encoder and {len(found[1].mask)} for the "
            "decoder; pass as many of each."
        )
    return Sides(tuple(found), rest=len(found) == 1)


def _of_decoder(key: Any) -> bool:
    return str(key).startswith(_DECODER) or key == _LABELS


def _is_two_sided(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    given = {str(key) for key, value in batch.items() if value is not None}
    if any(key.startswith(_DECODER) for key in given):
        return True
    return _LABELS in given and takes_two_sides(model)


def _mask(batch: Mapping[Any, Any], index: int, name: str, labels: str | None, *tokens: str) -> Tensor | None:
    """The mask of one side: as given, as labels imply it, or of every token; None where there are no tokens."""
    value = batch.get(name)
    if value is not None:
        return batch_mask(batch, lambda own: own[name], index)
    targets = None if labels is None else batch.get(labels)
    if isinstance(targets, Tensor) and targets.ndim == 2 and not targets.is_floating_point():
        return targets != IGNORED
    for key in tokens:
        own = batch.get(key)
        if isinstance(own, Tensor) and own.ndim >= 2:
            return torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
    return None
