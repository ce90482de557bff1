"""Model directories in which codes stand in place of weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerbounds.capturing.targets import Target
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers.stored import Stored
from layerbounds.compression.destinations.codes import Codes, check_any, check_written
from layerbounds.compression.destinations.folder import ModelFolder
from layerbounds.compression.recipe import Recipe
from layerbounds.exceptions import InputError

_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class FolderOfCodes(Codes):
    """The template with codes in place of the weights of the layers that are quantized.

    Parameters
    ----------
    template : Path
    """

    def __init__(self, template: Path) -> None:
        self._folder = ModelFolder(template)
        #: The tensor of each layer that is compressed.
        self._tensors: dict[str, str] = {}

    def find(self, model: nn.Module, targets: Sequence[Target]) -> dict[str, str]:
        """See `Codes.find`."""
        self._tensors = self._folder.names(model, targets)
        return {}

    def check_bias(self, target: Target, recipe: Recipe) -> None:
        """See `Codes.check_bias`."""
        if recipe.bias == "refit" and any(getattr(module, "bias", None) is None for module in target.modules):
            raise InputError(
                f"layer {target.name!r} has no bias, and software that loads the directory would not expect one; leave "
                "out bias='refit'."
            )

    def stem(self, name: str) -> str:
        """What the file calls a layer."""
        return self._tensors[name].removesuffix(".weight")

    @abstractmethod
    def configuration(self, model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> dict[str, Any]:
        """``quantization_config`` of config.json."""

    def files(self, configuration: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """More JSON files, by name."""
        return {}

    def write(self, out: Path, model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> None:
        """See `Destination.write`."""
        check_any(weights, self.name)
        stems = {name: self.stem(name) for name in weights}
        owners = {self._tensors[name]: name for name in weights}

        def replaced(tensor: str) -> dict[str, Tensor] | None:
            if tensor not in owners:
                return None
            name = owners[tensor]
            return {f"{stems[name]}.{end}": as_tensor(value) for end, value in self.encoded(weights[name]).items()}

        configuration = self.configuration(model, weights)
        self._folder.write(
            out,
            model,
            replaced,
            {"quantization_config": configuration},
            lambda folder: check_written(folder, weights, stems),
            self.files(configuration),
        )


def as_tensor(value: Any) -> Tensor:
    """An array, or what stands in a file for a type that NumPy lacks."""
    if not isinstance(value, Stored):
        return torch.from_numpy(np.ascontiguousarray(value))
    own = torch.from_numpy(np.ascontiguousarray(value.data))
    kind = _TYPES.get(value.kind)
    return own if kind is None else own.view(kind).reshape(value.shape)
