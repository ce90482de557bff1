"""Checkpoints that tests write by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from layerbounds.checkpoints.writers.stored import Stored, save_tensors, stored


def written(
    folder: Path,
    tensors: Mapping[str, NDArray[Any] | Stored],
    quantization: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A folder with a model of these tensors and this ``quantization_config``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: value if isinstance(value, Stored) else stored(value) for name, value in tensors.items()}
    save_tensors(folder / "model.safetensors", made, metadata)
    if quantization is not None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": dict(quantization)}))
    return folder
