"""Some sequences and columns of a batch of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerbounds.exceptions import InputError


def part_of_batch(
    batch: Any, shape: tuple[int, int], chosen: list[int], columns: slice, owns: Callable[[Any], bool] = lambda _: True
) -> Any:
    """Some of the sequences of a batch, and some of their tokens.

    Parameters
    ----------
    batch : Any
        Tensors, in mappings, tuples and lists or alone.
    shape : tuple of int
        (sequences, tokens) of the batch.
    chosen : list of int
        Sequences to take.
    columns : slice
        Tokens to take of each.
    owns : callable
        Says for the keys of a mapping which entries have these tokens; of the others all tokens are taken.

    Raises
    ------
    InputError
        If no tensor of the batch has that many sequences and tokens.
    """
    if not any(_leads(tensor, shape) or _leads(tensor, shape[::-1]) for tensor in tensors(batch)):
        raise no_such_tensor(shape)
    if isinstance(batch, Mapping):
        return {key: _part(value, shape, chosen, columns if owns(key) else slice(None)) for key, value in batch.items()}
    return _part(batch, shape, chosen, columns)


def no_such_tensor(shape: Sequence[int]) -> InputError:
    """What is wrong with a mask that does not fit its batch."""
    return InputError(
        f"the mask has shape {tuple(shape)}, but no tensor of the batch has that many sequences and tokens; mask must "
        "give (sequences, tokens) of the batch."
    )


def tensors(batch: Any) -> list[Tensor]:
    """All tensors of a batch, or of what an operation takes or gives."""
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def _leads(tensor: Tensor, shape: tuple[int, int]) -> bool:
    return tuple(tensor.shape[:2]) == shape


def _part(value: Any, shape: tuple[int, int], chosen: list[int], columns: slice) -> Any:
    if isinstance(value, Tensor):
        return _tensor_part(value, shape, chosen, columns)
    if isinstance(value, Mapping):
        return {key: _part(entry, shape, chosen, columns) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_part(entry, shape, chosen, columns) for entry in value]
        return type(value)(parts) if type(value) in (tuple, list) else parts
    return value


def _tensor_part(value: Tensor, shape: tuple[int, int], chosen: list[int], columns: slice) -> Tensor:
    sequences, tokens = shape
    if not value.ndim:
        return value
    kept = range(tokens)[columns]
    if value.shape[0] == sequences:
        axes = [1]
        if value.ndim == 4 and tuple(value.shape[2:]) == (tokens, tokens):
            # (sequences, heads, tokens, tokens), as attention masks are.
            axes = [2, 3]
        elif value.ndim == 3 and not value.is_floating_point():
            axes = [1, 2]
        value = value[chosen]
    elif _leads(value, (tokens, sequences)):
        return value[columns][:, chosen]
    elif tuple(value.shape[1:3]) == shape:
        # Several kinds of positions, say.
        return value[:, chosen, columns]
    elif tuple(value.shape) == (tokens, tokens):
        axes = [0, 1]
    else:
        # One row for all sequences, such as positions.
        axes = [1] if value.shape[0] == 1 else [0] if value.ndim == 1 else []
    for axis in axes:
        if axis < value.ndim and value.shape[axis] == tokens:
            value = value.index_select(axis, torch.as_tensor(list(kept), device=value.device))
    return value
