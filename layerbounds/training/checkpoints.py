"""Checkpoints at the ends of epochs: a training that goes on from one gives the same weights, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.exceptions import FileFormatError, InputError, first_line
from layerbounds.layers.files import atomic_path

_FORMAT = "layerbounds finetune 1"


def fingerprint(settings: Mapping[str, Any], model: nn.Module, tensors: list[Tensor]) -> str:
    """A hash of everything that the weights depend on, but for functions."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(name.encode())
            tensors = [*tensors, value]
    for value in tensors:
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_checkpoint(path: Path, content: Mapping[str, Any], mark: str) -> None:
    """Replace the checkpoint in one step.

    Parameters
    ----------
    path : Path
    content : mapping
        Tensors and plain values.
    mark : str
        The `fingerprint`.
    """
    with atomic_path(path) as temporary:
        torch.save({"format": _FORMAT, "mark": mark, **content}, temporary)


def read_checkpoint(path: Path, mark: str) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None where there is no file yet.

    Raises
    ------
    FileFormatError
        If the file is something else or damaged.
    InputError
        If it belongs to a training with other settings, another model or other data.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FileFormatError(
            f"{path} cannot be read as a checkpoint ({first_line(error)}); remove it to start anew."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is no checkpoint of finetune; choose another file.")
    if content["mark"] != mark:
        raise InputError(
            f"{path} belongs to a training with other settings, another model or other data; choose another file, or "
            "remove it to start anew."
        )
    return content
