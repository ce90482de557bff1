"""How a model is fed: what a batch is, which of its positions count, and where it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layerbounds.capturing.geometry import unusual
from layerbounds.capturing.state import preserved
from layerbounds.exceptions import InputError, LayerboundsError

#: Gives for a batch the positions that count, shape (sequences, tokens).
Mask = Callable[[Any], Any] | Literal["auto"] | None
#: Runs a model on a batch.
Forward = Callable[[nn.Module, Any], Any]


class StopRun(Exception):  # noqa: N818
    """What a hook raises when the rest of the model is not needed."""


def run_batch(model: nn.Module, batch: Any, forward: Forward | None, index: int) -> None:
    """Call the model: with a tensor, with a mapping's entries as keywords, or with the first entry of a tuple.

    Raises
    ------
    InputError
        If it is not clear what the entries of a tuple are, or the model fails.
    """
    if forward is None:
        batch = prepared(model, batch, index)
    try:
        _call(model, batch, forward, index)
    except (LayerboundsError, StopRun):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise InputError(
            f"batch {index} (the first is 0): the model failed ({type(error).__name__}: {reason}); check that the "
            "batches are what it takes."
        ) from error


def _call(model: nn.Module, batch: Any, forward: Forward | None, index: int) -> None:
    if forward is not None:
        forward(model, batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, Tensor):
        model(batch)
    elif isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        # What a DataLoader gives: inputs, then labels. For a model of several inputs that would be a wrong guess.
        if len(batch) > 1 and _inputs(model) != 1:
            raise InputError(
                f"batch {index} is a {type(batch).__name__} of {len(batch)} entries and {type(model).__name__} takes "
                "several inputs; pass mappings of names to tensors, or forward=lambda model, batch: ...."
            )
        model(batch[0])
    else:
        raise InputError(
            f"batch {index} is a {type(batch).__name__}; pass tensors, tuples (inputs, labels), mappings of names to "
            "tensors, or forward=lambda model, batch: ...."
        )


def prepared(model: nn.Module, batch: Any, index: int) -> Any:
    """A batch of tokens whose positions are those that its sequences would have alone.

    Models that number their positions count the padding before a sequence too, so that its inputs would depend on the
    length of the others; where their ``forward`` takes ``position_ids``, they are counted from the attention mask.

    Raises
    ------
    InputError
        If the model has fewer positions, or knows fewer tokens, than the batch needs.
    """
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim != 2 or not tokens.numel():
        return batch
    name = type(model).__name__
    limit = positions(model)
    # Models with relative or rotary positions can compute more than they were trained for.
    if limit is not None and tokens.shape[1] > limit and _position_table(model) is not None:
        raise InputError(
            f"batch {index} (the first is 0) has {tokens.shape[1]} tokens, and {name} has {limit} positions; cut off "
            "longer sequences."
        )
    known = vocabulary(model)
    if known is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < known:
        raise InputError(
            f"batch {index} (the first is 0) holds tokens {int(tokens.min())} to {int(tokens.max())}, and {name} knows "
            f"0 to {known - 1}; the tokenizer belongs to another model."
        )
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if (
        not isinstance(mask, Tensor)
        or mask.shape != tokens.shape
        or bool(mask[:, 0].all())
        or not bool(((mask == 0) | (mask == 1)).all())
        or batch.get("position_ids") is not None
        or "position_ids" not in inspect.signature(model.forward).parameters
        or _numbers_by_token(model) is not None
    ):
        return batch
    return {**batch, "position_ids": ((mask != 0).long().cumsum(-1) - 1).clamp_min(0)}


def positions(model: nn.Module) -> int | None:
    """How many positions a model of `transformers` has been made for, if it says so."""
    limit = getattr(_text_config(model), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    padding = _numbers_by_token(model)
    return limit if padding is None else limit - padding - 1


def vocabulary(model: nn.Module) -> int | None:
    """How many tokens a model of `transformers` knows."""
    if _text_config(model) is None:
        return None
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    try:
        return config.get_text_config()  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        return config


def _position_table(model: nn.Module) -> nn.Embedding | None:
    """The embedding of a model's positions, if they are learned."""
    for name, module in model.named_modules():
        own = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("position" in own or own == "wpe"):
            return module
    return None


def _numbers_by_token(model: nn.Module) -> int | None:
    """The padding token of a model that numbers positions itself, by which tokens are no padding (RoBERTa)."""
    table = _position_table(model)
    return None if table is None else table.padding_idx


def _inputs(model: nn.Module) -> int:
    """How many positional arguments the model's ``forward`` may take."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        # nn.Sequential and wrappers say nothing about their inputs.
        return 1 if isinstance(model, nn.Sequential) else 2
    return sum(p.kind in kinds for p in parameters)


def batch_mask(batch: Any, mask: Mask, index: int) -> Tensor | None:
    """The positions of a batch that count, as a boolean tensor, or None for all.

    Raises
    ------
    InputError
        If the mask has no shape (sequences, tokens), or it is not clear what it is about.
    """
    if mask is None:
        return None
    if mask == "auto":
        if not isinstance(batch, Mapping) or batch.get("attention_mask") is None:
            return None
        value = batch["attention_mask"]
    else:
        try:
            value = mask(batch)
        except LayerboundsError:
            raise
        except Exception as error:
            raise InputError(f"batch {index}: mask failed ({type(error).__name__}: {error}); correct it.") from error
    if value is None:
        return None
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"batch {index}: the mask is a {type(value).__name__} and no array of numbers; it must be "
            "(sequences, tokens)."
        ) from error
    if tensor.ndim != 2 or unusual(tensor) or tensor.is_complex():
        raise InputError(
            f"batch {index}: the mask has shape {tuple(tensor.shape)} and type {tensor.dtype}; it must be a plain "
            "tensor of shape (sequences, tokens), nonzero where a token counts."
        )
    # Rare types lack comparisons.
    values = tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise InputError(
            f"batch {index}: the mask holds negative values, infinity or NaN, as masks do that are added to attention "
            "scores; pass 1 where a token counts and 0 where it does not."
        )
    if values.is_floating_point() and values.numel() and not bool(values.any()):
        raise InputError(
            f"batch {index}: the mask is all 0 in floating point, as a mask without padding is that is added to "
            "attention scores; pass 1 where a token counts and 0 where it does not (integers or booleans)."
        )
    return values != 0


def move(batch: Any, device: torch.device | None) -> Any:
    """The batch with its tensors on a device."""
    if device is None:
        return batch
    if isinstance(batch, Tensor):
        try:
            return batch.to(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(f"a batch cannot be moved to {device} ({error}); pass plain tensors.") from error
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [move(value, device) for value in batch]
        return type(batch)(moved) if type(batch) in (tuple, list) else moved
    return batch


@contextmanager
def evaluating(model: nn.Module, device: torch.device | None) -> Iterator[torch.device | None]:
    """Put a model into evaluation mode, on a device if one is given, and leave it as it was.

    Its buffers and the states of the random number generators are put back too.

    Gives the device that batches belong on: None where the model has no parameter or is spread over several devices.
    """
    with preserved(model):
        yield from _evaluating(model, device)


def _evaluating(model: nn.Module, device: torch.device | None) -> Iterator[torch.device | None]:
    training = {module: module.training for module in model.modules()}
    homes = {p.device for p in model.parameters()}
    home = next(iter(homes)) if len(homes) == 1 else None
    if device is not None and home is None and homes:
        raise InputError("the model is spread over several devices; leave device out, or move it to one first.")
    try:
        model.eval()
        if device is not None:
            try:
                model.to(device)
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                raise InputError(f"the model cannot be moved to {device} ({error}); choose another device.") from error
        yield device or home
    finally:
        for module, mode in training.items():
            module.training = mode
        if device is not None and home is not None:
            model.to(home)


def first_batch(batches: Iterable[Any]) -> Any:
    """The first batch, or None; a loader that shuffles will shuffle as if it had not been asked."""
    with preserved():
        return next(iter(batches), None)


def again(batches: Iterable[Any], passes: int) -> None:
    """Make sure that batches can be gone through several times.

    Raises
    ------
    InputError
        If they come from an iterator, which is empty after the first time.
    """
    if passes > 1 and isinstance(batches, Iterator):
        raise InputError(
            f"the batches are needed {passes} times, but a {type(batches).__name__} can be read only once; pass a list "
            "or a DataLoader."
        )
