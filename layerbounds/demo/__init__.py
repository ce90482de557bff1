"""The embedded demo network: a small convolutional network for 8x8 handwritten digits, usable without PyTorch.

`examples/train_demo.py` trains it and writes its file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.layers.files import load_layers
from layerbounds.layers.layer import Layer
from layerbounds.layers.tensor_files import read_tensors
from layerbounds.names import match_name

__all__ = ["DemoInfo", "demo_accuracy", "demo_info", "demo_layers"]

DEMO_FILE = "digits_cnn.safetensors"
PIXEL_MAX = 16.0


@dataclass(frozen=True)
class DemoInfo:
    """What the demo file holds beside the layers.

    Attributes
    ----------
    test_images : ndarray of uint8, shape (images, 1, 8, 8)
        Raw pixel values 0..16; the network sees them divided by 16.
    test_labels : ndarray of uint8, shape (images,)
    test_accuracy : float
        Share of the test images that the dense network classifies correctly.
    biases : dict of str to ndarray of float32
        Bias of each layer, shape (out,), in the order in which the layers are applied.
    """

    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    test_accuracy: float
    biases: dict[str, NDArray[np.float32]]


def demo_layers() -> dict[str, Layer]:
    """Load the layers of the demo network: conv1, conv2, conv3 and fc, in the order in which they are applied.

    Returns
    -------
    dict of str to Layer

    Examples
    --------
    >>> list(lb.demo_layers())
    ['conv1', 'conv2', 'conv3', 'fc']
    """
    with resources.as_file(resources.files("layerbounds.demo") / DEMO_FILE) as path:
        return load_layers(path)


def demo_info() -> DemoInfo:
    """Load the test images, their labels, the biases and the recorded test accuracy of the demo network."""
    tensors, metadata = _read()
    return _info(tensors, metadata)


def demo_accuracy(weights: Mapping[str, ArrayLike] | None = None) -> float:
    """Classify the test images with the demo network and return the share of correct answers.

    Parameters
    ----------
    weights : mapping of layer name to array_like, optional
        Replacements, of shape (out, n) or of the layer's own shape. Layers that are not named keep their weights;
        all keep their biases.

    Returns
    -------
    float

    Raises
    ------
    UnknownNameError
        If a name is not a layer of the demo network.
    InputError
        If an array has another number of weights than its layer, or holds NaN.
    """
    tensors, metadata = _read()
    info = _info(tensors, metadata)
    geometry: dict[str, dict[str, Any]] = {
        name: entry["provenance"] for name, entry in json.loads(metadata["layers"]).items()
    }
    replaced = {match_name(name, list(geometry), "layer"): value for name, value in (weights or {}).items()}
    x: Float = info.test_images / PIXEL_MAX
    for index, (name, shape) in enumerate(geometry.items()):
        if index > 0:
            x = np.maximum(x, 0.0)
        weight = tensors[f"{name}.weight"].astype(np.float64)
        if name in replaced:
            weight = _replacement(name, replaced[name], weight.shape)
        bias = info.biases[name].astype(np.float64)
        if shape["kind"] == "conv2d":
            x = _convolve(x, weight, bias, shape["stride"], shape["padding"])
        else:
            x = x.reshape(len(x), -1) @ weight.T + bias
    return float(np.mean(x.argmax(axis=1) == info.test_labels))


def _read() -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    with resources.as_file(resources.files("layerbounds.demo") / DEMO_FILE) as path:
        return read_tensors(path)


def _info(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> DemoInfo:
    return DemoInfo(
        test_images=tensors["test_images"],
        test_labels=tensors["test_labels"],
        test_accuracy=float(metadata["test_accuracy"]),
        biases={name: tensors[f"{name}.bias"] for name in json.loads(metadata["layers"])},
    )


def _replacement(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Float:
    weight = as_float64(value, f"demo layer {name!r}: weights")
    flat = (shape[0], int(np.prod(shape[1:])))
    if weight.shape not in (shape, flat):
        raise InputError(f"demo layer {name!r}: weights have shape {weight.shape}; pass shape {flat} or {shape}.")
    return weight.reshape(shape)


def _convolve(x: Float, weight: Float, bias: Float, stride: list[int], padding: list[int]) -> Float:
    """Apply a convolution to images of shape (images, channels, height, width)."""
    out, _, kh, kw = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0], padding[0]), (padding[1], padding[1])))
    windows = sliding_window_view(padded, (kh, kw), axis=(2, 3))[:, :, :: stride[0], :: stride[1]]
    # (images, channel, row, column, kh, kw) to one row of (channel, kh, kw) per output position
    images, _, rows, columns = windows.shape[:4]
    matrix = windows.transpose(0, 2, 3, 1, 4, 5).reshape(images * rows * columns, -1)
    y = matrix @ weight.reshape(out, -1).T + bias
    return y.reshape(images, rows, columns, out).transpose(0, 3, 1, 2)
