"""Checkpoints that tests make: tensors and a configuration in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.checkpoints.writers.stored import Stored, save_tensors, stored


def folder_of(
    path: Path,
    tensors: Mapping[str, NDArray[Any] | Stored],
    quantization: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A folder with a safetensors file, and a ``config.json`` where something is said about quantization."""
    path.mkdir(parents=True, exist_ok=True)
    made = {key: value if isinstance(value, Stored) else stored(np.asarray(value)) for key, value in tensors.items()}
    save_tensors(path / "model.safetensors", made, metadata)
    if quantization is not None:
        text = json.dumps({"model_type": "llama", "quantization_config": dict(quantization)})
        (path / "config.json").write_text(text, encoding="utf-8")
    return path


def named(name: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Tensors of one layer under its name."""
    return {f"{name}.{end}": value for end, value in tensors.items()}
