"""Checks of what users hand over around a model: batches, devices, functions and names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.arguments import as_path, flag, members, shown
from layerbounds.checkpoints.gguf.container import located
from layerbounds.exceptions import InputError
from layerbounds.mistaken import instead


def check_model(value: Any, what: str) -> None:
    """Refuse anything but a module."""
    if not isinstance(value, nn.Module):
        usual = f"a {type(value).__name__}; pass a torch.nn.Module."
        raise InputError(f"{what} is {instead('model', value) or usual}")


def opened(model: Any, dtype: str | None, device: torch.device | None) -> tuple[nn.Module, dict[str, str]]:
    """A model, or that of a directory of `transformers` or of a GGUF file, with what is to be stored about it.

    Raises
    ------
    InputError
        If it is neither, or a type is given for a module.
    """
    if isinstance(model, (str, os.PathLike)):
        from layerbounds.capturing.gguf_model import load_gguf
        from layerbounds.capturing.huggingface import is_model_directory, load_for_capture

        folder = as_path(model, "model")
        gguf = located(folder)
        if gguf is not None:
            if dtype not in (None, "float32"):
                raise InputError("model_dtype is for model directories; the model of a GGUF file runs in float32.")
            return load_gguf(gguf), {"model_dtype": "float32"}
        if not is_model_directory(folder):
            raise InputError(
                f"model is {shown(model)}, which is no folder with a config.json and no GGUF file; pass one of them, "
                "or a module."
            )
        return load_for_capture(folder, dtype, device)
    check_model(model, "model")
    if dtype is not None:
        raise InputError("model_dtype is for model directories; convert a module with module.to(dtype).")
    return model, {}


def check_batches(value: Any) -> None:
    """Refuse what is no collection of batches."""
    if isinstance(value, Tensor):
        raise InputError("batches is a tensor; pass a list of batches, such as [tensor], or a DataLoader.")
    # Batches of a mapping would be its keys; data sets of torch have members but need not be iterable.
    several = isinstance(value, Iterable) or (hasattr(value, "__getitem__") and not isinstance(value, type))
    if not several or isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) == 0:
        raise InputError(f"batches is {shown(value)}; pass a list of batches or a DataLoader.")


def read_device(value: Any) -> torch.device | None:
    """The device of that name, or None for the model's own."""
    if value is None:
        return None
    try:
        return torch.device(value)
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"device is {shown(value)}; pass a name such as 'cpu' or 'cuda:0'.") from error


def check_names(value: Any) -> None:
    """Refuse a selection of layers that is no name and no list of names."""
    if value is not None and not isinstance(value, str):
        members(value, "layers")


def check_flags(**flags: Any) -> None:
    """Refuse what is not True or False."""
    for name, value in flags.items():
        flag(value, name)
