"""Orders for activations: the inputs of every layer pruned and then quantized, and the other way round.

The layers captured here are problems like any other: `layerbounds.order_gap` treats the weights behind either order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.capturing.entry import capture, require_torch
from layerbounds.certify.kept_inputs import error_interval
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer

if TYPE_CHECKING:
    from torch import nn

#: What a layer may see, by name: the stages in their order.
ACTIVATIONS = ("prune", "quantize", "prune, quantize", "quantize, prune")


@dataclass(frozen=True, eq=False)
class ActivationOrders:
    """One layer behind pruned and quantized activations, in both orders.

    Attributes
    ----------
    name : str
    layers : dict of str to Layer
        For each of `ACTIVATIONS`: the layer that sees such inputs, with its target and constant.
    """

    name: str
    layers: Mapping[str, Layer]

    def errors(self, activations: str) -> Float:
        """Enclosed error of each output channel with the dense weights, shape (out, 2)."""
        layer = self.layers[activations]
        rows = range(layer.out_features)
        return np.array([error_interval(layer, row, layer.matrix[row]) for row in rows])

    def repaired(self, activations: str) -> Float:
        """The part of the error that no weights can repair, shape (out,)."""
        return np.asarray(self.layers[activations].constant)

    def totals(self) -> dict[str, tuple[float, float]]:
        """For each of `ACTIVATIONS` Σ f of the dense weights and of the best ones, relative to Σ f(0)."""
        result = {}
        for name, layer in self.layers.items():
            # f(0), the energy of the dense layer's output: the same for all.
            energy = float(np.sum(layer.energy()))
            dense, best = float(np.sum(self.errors(name)[:, 1])), float(np.sum(layer.constant))
            result[name] = (dense / energy, best / energy) if energy > 0 else (np.nan, np.nan)
        return result


def activation_orders(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | Iterable[str] | None = None,
    *,
    bits: int,
    density: float,
    scheme: str = "dynamic",
    symmetric: bool = True,
    **options: Any,
) -> dict[str, ActivationOrders]:
    """Capture layers whose inputs are pruned and quantized, one of the two, and both in either order.

    Pruning keeps the features of largest magnitude of each token or pixel, quantization rounds to a uniform grid
    (`layerbounds.capturing.activations`). What is captured is the error against the dense layer on its dense inputs.

    Parameters
    ----------
    model : torch.nn.Module
    batches : iterable
        Gone through several times: a list, or something that begins anew.
    layers : str or iterable of str, optional
        As in `layerbounds.capture`.
    bits : int
        Of the activations, 2 to 8.
    density : float
        Kept fraction of the features.
    scheme, symmetric
        As in `layerbounds.capturing.activations.quantize_activations`.
    **options
        For `layerbounds.capture`.

    Returns
    -------
    dict of str to ActivationOrders
        By the names of the layers, in the order of execution.

    Raises
    ------
    InputError
        If an argument is out of range, or the batches can be gone through only once.
    """
    require_torch()
    from layerbounds.capturing.activations import prune_activations, quantize_activations

    if iter(batches) is batches:
        raise InputError("batches can be gone through only once; pass a list of them.")

    def pruned(some: nn.Module) -> nn.Module:
        return prune_activations(some, density, layers=layers)

    def quantized(some: nn.Module) -> nn.Module:
        looked_at = batches if scheme == "static" else None
        return quantize_activations(some, bits, layers=layers, scheme=scheme, symmetric=symmetric, batches=looked_at)

    # Hooks of a copied model run in the order in which they were added.
    other = {
        "prune": pruned(model),
        "quantize": quantized(model),
        "prune, quantize": quantized(pruned(model)),
        "quantize, prune": pruned(quantized(model)),
    }
    found = {name: capture(model, batches, layers, compressed_model=other[name], **options) for name in ACTIVATIONS}
    names = list(found[ACTIVATIONS[0]])
    return {name: ActivationOrders(name, {kind: found[kind][name] for kind in ACTIVATIONS}) for name in names}
