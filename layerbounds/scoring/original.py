"""The dense model behind a checkpoint: what its tensors were before anything was quantized or folded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from layerbounds.arrays import Float, as_float64
from layerbounds.checkpoints.source import json_object
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.layers.tensor_files import WIDE_FLOATS, TensorFile, open_tensors
from layerbounds.layers.weight_files import read_layer_weights
from layerbounds.problems.float_types import FLOAT_TYPES, rounded


class Original:
    """Tensors of a dense model by name, and its configuration.

    Parameters
    ----------
    file : TensorFile

    Attributes
    ----------
    path : Path
        Of the file or folder.
    config : dict
        ``config.json`` beside the weights; empty where there is none.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self.path = file.path
        self.config = json_object(file.path.parent / "config.json")
        self.names = frozenset(n for n in file.names if file.entry(n).kind in WIDE_FLOATS)

    def find(self, name: str) -> str | None:
        """The tensor that another file of the model calls so: the same name, or one of which either is the end."""
        if name in self.names:
            return name
        found = [n for n in self.names if n.endswith(f".{name}") or name.endswith(f".{n}")]
        return found[0] if len(found) == 1 else None

    def size(self, name: str) -> int:
        """Numbers in a tensor."""
        return int(np.prod(self._file.entry(name).shape, dtype=np.int64))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self._file.entry(name).shape

    def read(self, name: str) -> Float:
        """A tensor in float64."""
        return as_float64(self._file.read(name), f"{name} in {self.path}")

    def check(self, layer: Layer) -> None:
        """Make sure that this is the model that a layer was captured from.

        Raises
        ------
        InputError
            If it has other weights than the layer.
        """
        found = read_layer_weights(self.path, layer)
        if not same_up_to_rounding(layer.matrix, found.values):
            raise InputError(
                f"layer {layer.name!r} has other weights in {self.path} than in the capture; pass the model that was "
                "captured as the original."
            )


@contextmanager
def open_original(path: str | os.PathLike[str] | None, layer: Layer) -> Iterator[Original | None]:
    """The dense model at a path, or where the capture says that it was.

    Parameters
    ----------
    path : path-like or None
        None: the folder in a layer's provenance, if it is still there and has the layer's weights.
    layer : Layer
        A captured one.
    """
    if path is not None:
        with open_tensors(path) as file:
            yield Original(file)
        return
    said = _captured_from(layer)
    if said is None:
        yield None
        return
    with open_tensors(said) as file:
        found = Original(file)
        try:
            found.check(layer)
        except InputError:
            # Another model came to stand there.
            yield None
            return
        yield found


def _captured_from(layer: Layer) -> Path | None:
    source = layer.provenance.get("source")
    said = source.get("model") if isinstance(source, Mapping) else None
    if not isinstance(said, str) or not (Path(said) / "config.json").is_file():
        return None
    try:
        with open_tensors(said):
            return Path(said)
    except InputError:
        return None


def same_up_to_rounding(stored: Float, original: Float) -> bool:
    """Whether numbers are others as they are, or rounded once to a type that checkpoints have."""
    if stored.shape != original.shape:
        return False
    return any(np.array_equal(stored, rounded(original, dtype)) for dtype in FLOAT_TYPES)
