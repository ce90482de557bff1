"""Copies of models, also of those that hold tensors computed from their parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.exceptions import InputError


def copied(model: nn.Module) -> nn.Module:
    """Copy a model with everything that it holds.

    Raises
    ------
    InputError
        If something in it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            # torch copies neither results with a history, as pruned modules keep them, nor its generators.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, torch.Generator):
                memo[id(value)] = value.clone_state()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({type(error).__name__}: {error}); take off what copy.deepcopy refuses."
        ) from error
