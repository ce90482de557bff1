"""Weights of one layer from a safetensors file: those of `Solution.save_weights`, or a state dict from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.files import read_tensors
from layerbounds.layers.layer import Layer
from layerbounds.names import match_name


def load_weights(path: str | os.PathLike[str], layer: Layer, channels: Sequence[int] | None = None) -> Float:
    """Read weights for some output channels of a layer.

    Parameters
    ----------
    path : path-like
        Holds ``NAME.weight``, with all output channels of the layer, or with those that ``NAME.channels`` lists. NAME
        is the layer's name or the unique end of a dotted name.
    layer : Layer
    channels : sequence of int, optional
        Default: all.

    Returns
    -------
    ndarray of shape (channels, n)

    Raises
    ------
    FileFormatError
        If the file cannot be read, or holds no such weights.
    InputError
        If the weights have another shape, or a chosen channel is not among them.
    """
    suffix = ".weight"
    tensors, _ = read_tensors(path, lambda keys: [key for key in keys if key.endswith((suffix, ".channels"))])
    names = [key.removesuffix(suffix) for key in tensors if key.endswith(suffix)]
    if not names:
        raise FileFormatError(f"{os.fspath(path)} holds no weights: a tensor called {layer.name}.weight is needed.")
    name = match_name(layer.name, names, "weight in the file for layer")
    weight = as_float64(tensors[f"{name}{suffix}"], f"{name}{suffix}")
    listed = tensors.get(f"{name}.channels")
    held = list(range(layer.out_features)) if listed is None else [int(c) for c in np.asarray(listed).ravel()]
    if weight.size != len(held) * layer.in_features:
        raise InputError(
            f"{name}{suffix} in {os.fspath(path)} has shape {weight.shape}; layer {layer.name!r} needs {len(held)} "
            f"channels of {layer.in_features} weights."
        )
    wanted = list(range(layer.out_features)) if channels is None else list(channels)
    missing = [c for c in wanted if c not in held]
    if missing:
        raise InputError(
            f"{os.fspath(path)} has no weights for channel {missing[0]} of layer {layer.name!r}; choose channels among "
            f"the {len(held)} that it holds."
        )
    rows = {channel: row for row, channel in enumerate(held)}
    return np.ascontiguousarray(weight.reshape(len(held), -1)[[rows[c] for c in wanted]])
