"""Directories of compressed-tensors: packed integers with scales, which transformers and vLLM load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from layerbounds.capturing.targets import Target
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers import compressed_tensors
from layerbounds.checkpoints.writers.stored import Stored
from layerbounds.compression.codes import stored_as
from layerbounds.compression.destinations.base import grid_for
from layerbounds.compression.destinations.folder_of_codes import FolderOfCodes
from layerbounds.compression.recipe import Recipe
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.layers.weight_files import TRANSFORMERS_CONV1D
from layerbounds.problems.grids import Grid

_FORM = "pack-quantized"


class CompressedTensors(FolderOfCodes):
    """Linear layers as packed integers, with scales in the type of the model."""

    name = "compressed-tensors"

    def check_recipe(self, grid: Grid, recipe: Recipe) -> None:
        """See `Codes.check_recipe`."""
        size = recipe.granularity if isinstance(recipe.granularity, int) else 32
        compressed_tensors.check(grid_for(grid, 1, 2 * size, recipe.granularity), form=_FORM)

    def check_layer(self, target: Target, grid: Grid) -> None:
        """See `Codes.check_layer`."""
        if target.geometry.kind == TRANSFORMERS_CONV1D:
            raise UnsupportedProblemError("compressed-tensors does not quantize the Conv1D of transformers.")
        compressed_tensors.check(grid, form=_FORM)

    def rounded(self, target: Target, grid: Grid) -> Grid:
        """Scales in the type of the weights."""
        return replace(grid, scale=stored_as(grid.scale, self.loaded_type(target), "the largest scale"))

    def loaded_type(self, target: Target) -> str:
        """See `Codes.loaded_type`."""
        kind = str(target.geometry.weight(target.module).dtype).removeprefix("torch.")
        return "float32" if kind == "float64" else kind

    def encoded(self, weight: QuantizedWeight) -> Mapping[str, Stored]:
        """See `Codes.encoded`."""
        return compressed_tensors.tensors(weight, form=_FORM)

    def configuration(self, model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> dict[str, Any]:
        """A group for each kind of grid, with the layers that have it, and the linear layers that stay as they are."""
        groups: dict[str, list[str]] = {}
        for name, weight in weights.items():
            scheme = compressed_tensors.scheme(weight, form=_FORM)
            groups.setdefault(json.dumps(scheme), []).append(name)
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        ignored = [name for name in linear if name not in weights]
        # Where there is one group, the class says it in a word.
        plain = all(type(model.get_submodule(name)) is nn.Linear for name in weights)
        return {
            "quant_method": "compressed-tensors",
            "format": _FORM,
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{number}": {
                    **json.loads(scheme),
                    "targets": ["Linear"] if len(groups) == 1 and plain else names,
                    "input_activations": None,
                    "output_activations": None,
                }
                for number, (scheme, names) in enumerate(groups.items())
            },
            "ignore": ignored,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
