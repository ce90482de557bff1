"""What a fine-tuning gives: the compressed model, and every layer's weights exactly on their grid."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerbounds.arguments import as_path
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.problems.evaluation import Evaluation, evaluate
from layerbounds.problems.grids import Grid
from layerbounds.problems.joint import joint_problem
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import pruning_problem
from layerbounds.problems.quantization import quantization_problem

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class TrainedLayer:
    """A layer after the training.

    Attributes
    ----------
    name : str
    weights : ndarray of float64, shape (out, n)
        Exactly on the grid and in the pattern.
    grid : Grid or None
        With the step sizes at the end of the training; None where the weights are not quantized.
    pattern : str or None
        None where the weights are not pruned.
    density : float or None
        Kept fraction, for patterns that need one.
    weight_shape : tuple of int

    Examples
    --------
    >>> import torch
    >>> from layerbounds.training import finetune
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> x = torch.randn(64, 4)
    >>> trained = finetune(model, (x, (x[:, 0] > 0).long()), "quantize@0.5", bits=4, epochs=2)
    >>> trained.layers["0"].weights.shape
    (2, 4)
    """

    name: str
    weights: Float
    grid: Grid | None
    pattern: str | None
    density: float | None
    weight_shape: tuple[int, ...]

    @property
    def nonzero(self) -> float:
        """Fraction of the weights that differ from zero."""
        return float(np.count_nonzero(self.weights)) / self.weights.size

    def problem(self, layer: Layer) -> Problem:
        """The problem that these weights are allowed in: the trained grid, the pattern, or both.

        Parameters
        ----------
        layer : Layer
            Whose Gram matrix and target count, such as the layer of the dense model.

        Examples
        --------
        >>> import torch
        >>> from layerbounds.training import finetune
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> x = torch.randn(64, 4)
        >>> trained = finetune(model, (x, (x[:, 0] > 0).long()), "quantize@0.5", bits=4, epochs=2)
        >>> trained.layers["0"].problem(lb.capture(model, [x])["0"]).requirement
        'uniform grids'
        """
        if self.pattern is None:
            if self.grid is None:
                raise InputError(f"layer {self.name!r} was neither quantized nor pruned; there is no problem for it.")
            return quantization_problem(layer, grid=self.grid)
        if self.grid is None:
            return pruning_problem(layer, density=self.density, pattern=self.pattern)
        return joint_problem(layer, grid=self.grid, density=self.density, pattern=self.pattern)

    def evaluate(self, layer: Layer) -> Evaluation:
        """The error of the weights for the inputs and the outputs of a layer, and whether they are allowed.

        Examples
        --------
        >>> import torch
        >>> from layerbounds.training import finetune
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> x = torch.randn(64, 4)
        >>> trained = finetune(model, (x, (x[:, 0] > 0).long()), "quantize@0.5", bits=4, epochs=2)
        >>> trained.layers["0"].evaluate(lb.capture(model, [x])["0"]).feasible
        array([ True,  True])
        """
        return evaluate(self.problem(layer), self.weights)


@dataclass(eq=False)
class Finetuned:
    """A model that was compressed while it was trained.

    Attributes
    ----------
    model : torch.nn.Module
        With plain weights, those of ``layers`` in the precision of the model, in evaluation mode. Compressed
        activations stay compressed; their masks and ranges are no part of the state dict.
    layers : dict of str to TrainedLayer
        In the order of the modules.
    inputs : dict of str to dict
        Where activations are compressed, for each layer: ``scale`` and the least and largest of ``codes``, or ``low``
        and ``high`` of a static range; the numbers of the features ``kept``.
    history : list of dict
        One entry for each epoch: losses, densities, whether weights are quantized, the learning rate.
    settings : dict
        What was asked for.
    resumed : int
        Epochs that were taken from a checkpoint.

    Examples
    --------
    >>> import torch
    >>> from layerbounds.training import finetune
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> x = torch.randn(64, 4)
    >>> trained = finetune(model, (x, (x[:, 0] > 0).long()), "quantize@0.5", bits=4, epochs=2)
    >>> len(trained.history)
    2
    """

    model: nn.Module
    layers: dict[str, TrainedLayer]
    inputs: dict[str, dict[str, Any]]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    resumed: int = 0

    def errors(self, originals: Mapping[str, Layer]) -> list[dict[str, Any]]:
        """Where the training has left the layers: their errors against what they were.

        Parameters
        ----------
        originals : mapping of str to Layer
            Layers of the dense model, as `capture` gives them; others than those trained are passed over.

        Returns
        -------
        list of dict
            For each layer its name, whether the weights are allowed, and the error of the fine-tuned weights on the
            original Gram matrix as a fraction of the layer's energy.

        Examples
        --------
        >>> import torch
        >>> from layerbounds.training import finetune
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> x = torch.randn(64, 4)
        >>> trained = finetune(model, (x, (x[:, 0] > 0).long()), "quantize@0.5", bits=4, epochs=2)
        >>> [row["feasible"] for row in trained.errors(lb.capture(model, [x]))]
        [True]
        """
        rows: list[dict[str, Any]] = []
        for name, trained in self.layers.items():
            if name not in originals:
                continue
            layer = originals[name]
            score = trained.evaluate(layer)
            energy = float(layer.energy().sum())
            rows.append(
                {
                    "layer": name,
                    "allowed": trained.problem(layer).label,
                    "feasible": bool(score.feasible.all()),
                    "nonzero": trained.nonzero,
                    "error": score.error,
                    "relative_error": float(score.error.sum()) / energy if energy > 0 else None,
                }
            )
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model's state dict as safetensors.

        Raises
        ------
        InputError
            If it cannot be written.

        Examples
        --------
        >>> import torch
        >>> from layerbounds.training import finetune
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> x = torch.randn(64, 4)
        >>> trained = finetune(model, (x, (x[:, 0] > 0).long()), "quantize@0.5", bits=4, epochs=2)
        >>> trained.save("trained.safetensors")
        """
        from layerbounds.capturing.loading import save_state

        tensors = {name: value for name, value in self.model.state_dict().items() if hasattr(value, "detach")}
        save_state(as_path(path, "path"), tensors, list(self.layers))
