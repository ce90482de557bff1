"""What `compress` asks of a kind of file, before the work and after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layerbounds.arrays import Float
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.compression.recipe import Recipe
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import Granularity, Grid, granularity_size

if TYPE_CHECKING:
    from torch import nn

    from layerbounds.capturing.targets import Target

#: Inputs of the layer on which a recipe is tried out.
_TRIED = 64


class Destination(ABC):
    """A kind of file, and the model that is written as one.

    Attributes
    ----------
    name : str
        As ``format`` of `compress`.
    """

    name: str

    @abstractmethod
    def check(self, model: nn.Module, targets: Sequence[Target], recipes: Mapping[str, Recipe]) -> dict[str, str]:
        """Make sure that what is asked for can be written, before the work.

        Returns
        -------
        dict of str to str
            The layers that have to stay as they are, and why.

        Raises
        ------
        InputError
            If nothing of what is asked for can be written, or the model is another one than that of the template.
        """

    @abstractmethod
    def recipe(self, target: Target, recipe: Recipe) -> Recipe:
        """The same with grids whose scales the file can store."""

    @abstractmethod
    def weight(self, target: Target, grid: Grid, matrix: Float) -> QuantizedWeight | None:
        """The codes of a quantized layer; None where the file holds plain numbers."""

    @abstractmethod
    def write(self, out: Path, model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> None:
        """Write all, and read it back.

        Parameters
        ----------
        out : Path
        model : nn.Module
            The compressed one.
        weights : mapping of str to QuantizedWeight
            Of the quantized layers.
        """


def tried_grid(recipe: Recipe) -> Grid:
    """What a recipe makes of a small layer: the codes, and the kind of zero points.

    Raises
    ------
    InputError
        If the recipe is none.
    UnsupportedProblemError
        If codes cannot say which weights are pruned.
    """
    weight = np.random.default_rng(0).normal(size=(1, _TRIED))
    alone = replace(
        recipe, method=None, options={}, granularity=None, rounding=None, bias="keep", pattern=None, density=None,
        axis=None,
    )  # fmt: skip
    grid: Grid = alone.problem(Layer(weight, np.eye(_TRIED))).grid  # type: ignore[attr-defined]
    if recipe.prunes and not np.any(grid.codes == grid.zero_point[0, 0]):
        raise UnsupportedProblemError("zero is no level of this grid, so that codes cannot say what is pruned.")
    return replace(grid, label=grid.label.partition(" per ")[0])


def grid_for(grid: Grid, outputs: int, inputs: int, granularity: Granularity | None) -> Grid:
    """A grid of the same codes for a layer of some size, with scales of 1."""
    size = granularity_size("channel" if granularity is None else granularity, inputs)
    scale = np.ones((outputs, -(-inputs // size)))
    return replace(
        grid,
        scale=scale,
        zero_point=np.full(scale.shape, grid.zero_point[0, 0]),
        offset=np.full(scale.shape, grid.offset[0, 0]),
        in_features=inputs,
        group_size=size,
        group=None,  # type: ignore[arg-type]
    )
