"""GGUF files: another one of the model in which some tensors are replaced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerbounds.checkpoints.gguf.container import is_plain, located
from layerbounds.checkpoints.gguf.index import Index
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers import gguf
from layerbounds.compression.codes import stored_as
from layerbounds.compression.destinations.base import grid_for
from layerbounds.compression.destinations.codes import Codes, check_any, check_written
from layerbounds.compression.recipe import Recipe
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.layers.files import atomic_path
from layerbounds.problems.grids import Grid

if TYPE_CHECKING:
    from torch import nn

    from layerbounds.capturing.targets import Target

#: Of symmetric grids, and of those with zero points: minima are stored in their place.
_KINDS = {(4, True): "Q4_0", (4, False): "Q4_1", (5, True): "Q5_0", (5, False): "Q5_1", (8, True): "Q8_0"}
_BLOCK = 32
#: How far, relative to the weights, those of the template may be from the model's: types of 16 bits are much nearer.
_FARTHEST = 0.02


class Gguf(Codes):
    """The template with tensors of the types Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

    Parameters
    ----------
    template : Path
        A GGUF file of the model.
    """

    name = "gguf"
    granularity = _BLOCK

    def __init__(self, template: Path) -> None:
        self._template = template
        self._shapes = gguf.replaceable(template)
        file = located(template)
        assert file is not None
        self._index = Index(file)
        #: What the file calls each layer.
        self._names: dict[str, str] = {}

    def find(self, model: nn.Module, targets: Sequence[Target]) -> dict[str, str]:
        """See `Codes.find`."""
        left: dict[str, str] = {}
        for target in targets:
            ends = [name for name in self._shapes if f".{name}".endswith(f".{target.name}")]
            if target.name in self._shapes:
                ends = [target.name]
            if len(ends) != 1:
                left[target.name] = "the template has no tensor of its own for it"
                continue
            shape = tuple(target.geometry.weight(target.module).shape)
            if shape != self._shapes[ends[0]]:
                raise InputError(
                    f"layer {target.name!r} has the shape {shape} in the model and {self._shapes[ends[0]]} in the "
                    f"template {self._template}; pass a GGUF file of this model."
                )
            self._check_weights(target, ends[0])
            self._names[target.name] = ends[0]
        if not self._names:
            raise InputError(f"the template {self._template} has no layer of the model; pass a GGUF file of it.")
        return left

    def _check_weights(self, target: Target, name: str) -> None:
        """Refuse a template that has other weights, or has them in an order that is not known."""
        place = next(place for place in self._index.places if place.name == name and place.end == ".weight")
        if not is_plain(place.tensor):
            return
        stored = place.container.plain(place.tensor).astype(np.float64)
        order = self._index.orders.rows(place.base, len(stored))
        weight = target.geometry.weight(target.module).double().cpu().numpy()
        difference = (stored if order is None else stored[order]) - weight
        if np.sum(difference**2) > _FARTHEST**2 * np.sum(weight**2):
            raise InputError(
                f"layer {target.name!r} has other weights in the template {self._template}; pass a GGUF file of this "
                "model, with its own weights."
            )

    def check_bias(self, target: Target, recipe: Recipe) -> None:
        """See `Codes.check_bias`."""
        if recipe.bias == "refit":
            raise InputError("format 'gguf' takes biases from the template; leave out bias='refit'.")

    def check_recipe(self, grid: Grid, recipe: Recipe) -> None:
        """See `Codes.check_recipe`."""
        kind = _KINDS.get((recipe.bits or 0, bool(grid.codes[0] < 0)))
        if kind is None:
            raise UnsupportedProblemError(
                "format 'gguf' is written with 4 or 5 bits, symmetric or with zero points, or with 8 bits, symmetric; "
                "choose one of these."
            )
        if recipe.prunes and kind.endswith("1"):
            raise UnsupportedProblemError(
                f"{kind} stores minima in place of zero points, so that zero is no level of it; leave out "
                "symmetric=False, or density and pattern."
            )
        size = recipe.granularity if isinstance(recipe.granularity, int) else _BLOCK
        gguf.check(gguf.rounded(grid_for(grid, 1, _BLOCK * size, recipe.granularity), kind), kind)

    def check_layer(self, target: Target, grid: Grid) -> None:
        """See `Codes.check_layer`."""
        gguf.rounded(grid, self._kind(grid))

    def rounded(self, target: Target, grid: Grid) -> Grid:
        """Scales, and minima in place of zero points, as float16."""
        positive = replace(grid, scale=stored_as(grid.scale, "float16", "the largest scale"))
        return gguf.rounded(positive, self._kind(grid))

    def loaded_type(self, target: Target) -> str:
        """That of llama.cpp."""
        return "float32"

    def encoded(self, weight: QuantizedWeight) -> Mapping[str, Any]:
        """See `Codes.encoded`."""
        return gguf.tensors(weight, kind=self._kind(weight.grid))

    def write(self, out: Path, model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> None:
        """See `Destination.write`."""
        check_any(weights, self.name)
        names = {name: self._names[name] for name in weights}
        if out.exists() and os.path.samefile(out, self._template):
            raise InputError(f"{out} is the template; choose another name.")
        with atomic_path(out) as temporary:
            kinds = {names[name]: self._kind(weight.grid) for name, weight in weights.items()}
            gguf.write(self._template, temporary, {names[name]: weight for name, weight in weights.items()}, kinds)
            check_written(temporary, weights, names)

    def _kind(self, grid: Grid) -> str:
        return _KINDS[(len(grid.codes) - 1).bit_length(), bool(grid.codes[0] < 0)]
