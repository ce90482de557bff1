"""Directories of GPTQ: packed integers with float16 scales and zero points."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from layerbounds.allocation.formats import gptqmodel
from layerbounds.allocation.formats.compression import Compression
from layerbounds.capturing.targets import Target
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers import gptq
from layerbounds.compression.codes import stored_as
from layerbounds.compression.destinations.base import grid_for
from layerbounds.compression.destinations.folder_of_codes import FolderOfCodes
from layerbounds.compression.recipe import Recipe
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.grids import Grid
from layerbounds.version import __version__

#: Of the form in which codes lie one after the other.
_BITS = (2, 3, 4, 8)
#: A layer in one of the blocks of which a model has many.
_IN_BLOCK = re.compile(r".+?\.\d+\.(.+)")


class Gptq(FolderOfCodes):
    """Layers of the model's blocks as packed integers, without activation order."""

    name = "gptq"
    _version: gptq.Version = "gptq"

    def check_recipe(self, grid: Grid, recipe: Recipe) -> None:
        """See `Codes.check_recipe`."""
        if recipe.bits not in _BITS:
            raise UnsupportedProblemError(
                f"format 'gptq' is written with 2, 3, 4 or 8 bits, not {recipe.bits}; choose one of them."
            )
        if grid.codes[0] == 0:
            # Version 1 has no place for a zero point at the lowest code, and GPTQModel reads others of its own alone.
            self._version = "gptq_v2"
        size = recipe.granularity if isinstance(recipe.granularity, int) else gptq.MULTIPLE
        inputs = size * gptq.MULTIPLE if size < gptq.MULTIPLE else 2 * size
        gptq.check(grid_for(grid, gptq.MULTIPLE, inputs, recipe.granularity), "gptq_v2")

    def check_layer(self, target: Target, grid: Grid) -> None:
        """See `Codes.check_layer`."""
        if _IN_BLOCK.fullmatch(target.name) is None:
            raise UnsupportedProblemError("loaders of GPTQ look for quantized layers in the model's blocks alone.")
        gptq.check(grid, "gptq_v2")

    def rounded(self, target: Target, grid: Grid) -> Grid:
        """Scales that are numbers of float16 and of the model's type, too: some loaders turn them into that."""
        kind = str(target.geometry.weight(target.module).dtype).removeprefix("torch.")
        scale = stored_as(stored_as(grid.scale, kind, "the largest scale"), gptq.SCALE_TYPE, "the largest scale")
        return replace(grid, scale=scale)

    def loaded_type(self, target: Target) -> str:
        """See `Codes.loaded_type`."""
        return gptq.SCALE_TYPE

    def encoded(self, weight: QuantizedWeight) -> Mapping[str, Any]:
        """See `Codes.encoded`."""
        return gptq.tensors(weight, self._version)

    def configuration(self, model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> dict[str, Any]:
        """The settings of most layers, those of the others in ``dynamic``, and which layers there are."""
        quantized = {self.stem(name): weight for name, weight in weights.items()}
        # By the names of the file: experts that the model has in one parameter are layers for other software.
        blocks = [name for name in self._folder.matrices() if _IN_BLOCK.fullmatch(name)]
        wanted = {name: _compression(quantized[name]) if name in quantized else Compression() for name in blocks}
        said = json.loads(gptqmodel.FORMAT.write(wanted))
        common = {key: said[key] for key in ("bits", "group_size", "sym")}
        rules = {pattern: own for pattern, own in said["dynamic"].items() if own != common}
        config = {
            "quant_method": "gptq",
            **common,
            "desc_act": False,
            "checkpoint_format": self._version,
            "pack_dtype": "int32",
            "lm_head": False,
            "true_sequential": True,
            **({"dynamic": rules} if rules else {}),
            "meta": {"quantizer": [f"layerbounds:{__version__}"]},
        }
        # Loaders that know no ``dynamic`` may know this.
        places = {_place(name) for name in quantized}
        if (
            rules
            and not any(rules.values())
            and places.isdisjoint(_place(name) for name in blocks if name not in quantized)
        ):
            config["modules_in_block_to_quantize"] = [sorted(places)]
        return config

    def files(self, configuration: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """What loaders read that do not look into config.json."""
        return {"quantize_config.json": configuration}


def _place(name: str) -> str:
    """The name of a layer in its block."""
    match = _IN_BLOCK.fullmatch(name)
    assert match is not None
    return match[1]


def _compression(weight: QuantizedWeight) -> Compression:
    settings = gptq.settings(weight.grid, "gptq_v2")
    size = settings["group_size"]
    return Compression(settings["bits"], settings["sym"], "channel" if size == -1 else size)
