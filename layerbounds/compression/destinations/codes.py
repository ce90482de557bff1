"""Files in which codes stand in place of weights: what formats of this kind have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.checkpoints.checkpoint import load_checkpoint
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.compression.codes import positions
from layerbounds.compression.destinations.base import Destination, grid_for, tried_grid
from layerbounds.compression.recipe import Recipe
from layerbounds.exceptions import FileFormatError, InputError, UnsupportedProblemError
from layerbounds.problems.grids import Granularity, Grid

if TYPE_CHECKING:
    from torch import nn

    from layerbounds.capturing.targets import Target


class Codes(Destination):
    """Quantized layers are stored as codes, with scales that have been rounded before."""

    #: Inputs that share a scale where nothing is said.
    granularity: Granularity | None = None

    def check(self, model: nn.Module, targets: Sequence[Target], recipes: Mapping[str, Recipe]) -> dict[str, str]:
        """See `Destination.check`."""
        if all(recipe.bits is None for recipe in recipes.values()):
            raise UnsupportedProblemError(
                f"format {self.name!r} stores codes, and nothing is quantized; pass bits, or format='dense'."
            )
        tried: dict[int, Grid] = {}
        for recipe in recipes.values():
            if recipe.bits is not None and id(recipe) not in tried:
                tried[id(recipe)] = tried_grid(recipe)
                self.check_recipe(tried[id(recipe)], self._grouped(recipe))
        left = self.find(model, targets)
        for target in targets:
            recipe = self._grouped(recipes[target.name])
            if target.name in left:
                continue
            self.check_bias(target, recipe)
            grid = tried.get(id(recipes[target.name]))
            if grid is not None and (reason := self._unfit(target, grid, recipe)):
                left[target.name] = reason
        return left

    def _grouped(self, recipe: Recipe) -> Recipe:
        return recipe if recipe.granularity is not None else replace(recipe, granularity=self.granularity)

    def _unfit(self, target: Target, grid: Grid, recipe: Recipe) -> str:
        """Why a layer cannot be stored as codes; empty where it can."""
        if target.aliases:
            return f"it shares its weight with {target.aliases[0]}"
        if target.geometry.kind.startswith("conv"):
            return "it is a convolution"
        try:
            self.check_layer(
                target, grid_for(grid, target.geometry.outputs, target.geometry.inputs, recipe.granularity)
            )
        except UnsupportedProblemError as error:
            return str(error).rstrip(".")
        return ""

    @abstractmethod
    def find(self, model: nn.Module, targets: Sequence[Target]) -> dict[str, str]:
        """Find each layer in the template; why some are not there, where that is no fault.

        Raises
        ------
        InputError
            If the template belongs to another model.
        """

    @abstractmethod
    def check_bias(self, target: Target, recipe: Recipe) -> None:
        """Refuse biases that the file cannot have.

        Raises
        ------
        InputError
        """

    @abstractmethod
    def check_recipe(self, grid: Grid, recipe: Recipe) -> None:
        """Refuse what no layer can have.

        Raises
        ------
        UnsupportedProblemError
        """

    @abstractmethod
    def check_layer(self, target: Target, grid: Grid) -> None:
        """Refuse a layer that software would not load, or whose size does not fit.

        Raises
        ------
        UnsupportedProblemError
        """

    @abstractmethod
    def rounded(self, target: Target, grid: Grid) -> Grid:
        """The grid with numbers that the file can store."""

    @abstractmethod
    def loaded_type(self, target: Target) -> str:
        """The type in which software has the weights."""

    @abstractmethod
    def encoded(self, weight: QuantizedWeight) -> Mapping[str, Any]:
        """The tensors of a layer, without its name."""

    def recipe(self, target: Target, recipe: Recipe) -> Recipe:
        """See `Destination.recipe`."""
        if recipe.bits is None:
            return recipe
        return replace(self._grouped(recipe), rounding=lambda grid: self.rounded(target, grid))

    def weight(self, target: Target, grid: Grid, matrix: Float) -> QuantizedWeight:
        """See `Destination.weight`."""
        shape = tuple(target.geometry.weight(target.module).shape)
        codes = positions(grid, matrix)
        weight = QuantizedWeight(target.name, self.name, grid, codes, shape, self.loaded_type(target), 0)
        return replace(weight, bits=8 * sum(part.nbytes for part in self.encoded(weight).values()))


def check_written(path: Path, weights: Mapping[str, QuantizedWeight], names: Mapping[str, str]) -> None:
    """Read a file back, and compare every weight bit for bit.

    Parameters
    ----------
    path : Path
    weights : mapping of str to QuantizedWeight
    names : mapping of str to str
        What the file calls each layer.

    Raises
    ------
    FileFormatError
        If one is another.
    """
    checkpoint = load_checkpoint(path)
    for name, weight in weights.items():
        if not np.array_equal(checkpoint[names[name]].weight, weight.weight):
            raise FileFormatError(f"layer {name!r} reads back otherwise than written; nothing is kept.")


def check_any(weights: Mapping[str, QuantizedWeight], form: str) -> None:
    """Refuse to write a file without codes.

    Raises
    ------
    InputError
        If no layer was finished.
    """
    if not weights:
        raise InputError(f"no layer was quantized, so that there is nothing to write as {form!r}.")
