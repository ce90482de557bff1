"""A model directory with plain numbers: any grid, any pattern, as large as before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from layerbounds.arrays import Float
from layerbounds.capturing.targets import Target
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.compression.destinations.base import Destination
from layerbounds.compression.destinations.folder import ModelFolder
from layerbounds.compression.recipe import Recipe
from layerbounds.problems.grids import Grid


class Dense(Destination):
    """The template with the weights of the compressed model, in the type of the model."""

    name = "dense"

    def __init__(self, template: Path) -> None:
        self._folder = ModelFolder(template)

    def check(self, model: nn.Module, targets: Sequence[Target], recipes: Mapping[str, Recipe]) -> dict[str, str]:
        """See `Destination.check`."""
        self._folder.names(model, [target for target in targets if target.name in recipes])
        return {}

    def recipe(self, target: Target, recipe: Recipe) -> Recipe:
        """The same: plain numbers can be anything."""
        return recipe

    def weight(self, target: Target, grid: Grid, matrix: Float) -> QuantizedWeight | None:
        """None."""
        return None

    def write(self, out: Path, model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> None:
        """See `Destination.write`."""
        self._folder.write(out, model, lambda _: None, {}, lambda _: None)
