"""Weights from elsewhere, scored beside the intervals of a run: arrays, or files that are read when they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from layerbounds.arguments import as_mapping
from layerbounds.arrays import Float
from layerbounds.checkpoints.checkpoint import Checkpoint, load_checkpoint
from layerbounds.exceptions import FileFormatError, InputError, UnknownNameError, UnsupportedProblemError
from layerbounds.layers.layer import Layer
from layerbounds.layers.weight_files import read_layer_weights
from layerbounds.network.sources import Source
from layerbounds.problems.evaluation import float_type
from layerbounds.scoring.original import open_original
from layerbounds.scoring.pairing import pair
from layerbounds.scoring.transformed import Surroundings, as_stored
from layerbounds.suggestions import did_you_mean


class Given:
    """Weights from elsewhere by label, of some layers each.

    Parameters
    ----------
    weights : mapping of label to path, or to (mapping of layer name to array_like), optional
        Files as `layerbounds.layers.weight_files.read_layer_weights` reads them, and quantized checkpoints: layers that
        they do not hold are left out, and so are those that a checkpoint stores in a form that is not the layer's
        (`layerbounds.scoring.transformed`). Arrays are of shape (out, ...), all output channels.
    source : Source

    Attributes
    ----------
    notes : list of str
        What is worth knowing about the tensors of the files.
    digests : dict of str to str
        SHA-256 of the weights of each label.

    Raises
    ------
    InputError
        If weights are of no layer of the run, or of another shape.
    """

    def __init__(self, weights: Any, source: Source) -> None:
        self._source = source
        self._arrays: dict[str, dict[int, tuple[Float, str]]] = {}
        self._files: dict[str, tuple[str, set[int]]] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        #: The layer that was decoded last, as it is asked for row by row.
        self._decoded: tuple[str, int, Float] | None = None
        self.notes: list[str] = []
        self.digests: dict[str, str] = {}
        for label, value in as_mapping(weights, "weights").items():
            if isinstance(value, (str, os.PathLike)):
                checkpoint = _quantized(os.fspath(value))
                if checkpoint is not None:
                    self._checkpoints[label] = checkpoint
                self._files[label] = os.fspath(value), self._held(label, os.fspath(value))
            else:
                self._arrays[label] = self._checked(label, value)

    def _held(self, label: str, path: str) -> set[int]:
        """The layers whose weights a file holds."""
        held: set[int] = set()
        digest = hashlib.sha256()
        reason: InputError | None = None
        for number in range(len(self._source.names)):
            try:
                values = self._from_checkpoint(label, number)
                if values is not None:
                    held.add(number)
                    digest.update(values.tobytes())
                    continue
                found = read_layer_weights(path, self._source.layer(number))
            except UnsupportedProblemError as error:
                self.notes.append(f"{path}: left out: {error}")
                reason = reason or error
                continue
            except UnknownNameError as error:
                reason = reason or error
                continue
            held.add(number)
            digest.update(found.values.tobytes())
            if found.note:
                self.notes.append(f"{path}: {found.note}")
        if not held:
            raise InputError(f"{path} holds weights of no layer of the run: {reason}")
        self.digests[label] = digest.hexdigest()
        return held

    def _from_checkpoint(self, label: str, number: int) -> Float | None:
        """The weights of a layer that a checkpoint quantizes, shape (out, n); None where it does not.

        Raises
        ------
        UnsupportedProblemError
            If they are stored in a form that cannot be turned into that of the layer.
        """
        checkpoint = self._checkpoints.get(label)
        if checkpoint is None:
            return None
        if self._decoded is not None and self._decoded[:2] == (label, number):
            return self._decoded[2]
        layer = self._source.layer(number)
        name = pair(layer.name, {layer.name: layer}, list(checkpoint), {})
        if name is None:
            return None
        weight = checkpoint[name]
        with open_original(None, layer) as original:
            undone = as_stored(layer, weight, Surroundings(checkpoint, original)).undone
        values = weight.weight.reshape(layer.matrix.shape)
        if undone is not None:
            values = values * undone.factors
            note = f"{checkpoint.path}: layer {layer.name!r}: {undone.note()}"
            self.notes += [note] if note not in self.notes else []
        self._decoded = label, number, values
        return values

    def _checked(self, label: str, value: Any) -> dict[int, tuple[Float, str]]:
        of_layers: dict[int, tuple[Float, str]] = {}
        digest = hashlib.sha256()
        for name, array in as_mapping(value, f"weights {label!r}").items():
            if name not in self._source.names:
                raise UnknownNameError(
                    f"weights {label!r} are of layer {name!r}, which the run does not have; "
                    f"{did_you_mean(name, self._source.names)}leave them out."
                )
            number = self._source.names.index(name)
            layer = self._source.layer(number)
            matrix = layer.channel_weights(array, range(layer.out_features), f"weights {label!r}")
            of_layers[number] = matrix, float_type(array, None)
            digest.update(matrix.tobytes())
        self.digests[label] = digest.hexdigest()
        return of_layers

    def labels(self, number: int) -> list[str]:
        """Which weights there are for a layer."""
        found = [label for label, of_layers in self._arrays.items() if number in of_layers]
        return found + [label for label, (_, held) in self._files.items() if number in held]

    def rows(self, label: str, number: int, rows: Sequence[int]) -> tuple[Float, str]:
        """Weights of some rows of a layer, shape (rows, n), and the type that they were rounded to."""
        if label in self._arrays:
            matrix, kind = self._arrays[label][number]
            return matrix[list(rows)], kind
        decoded = self._from_checkpoint(label, number)
        if decoded is not None:
            return decoded[list(rows)], "float64"
        layer: Layer = self._source.layer(number)
        found = read_layer_weights(self._files[label][0], layer, list(rows))
        return found.values, found.dtype


def _quantized(path: str) -> Checkpoint | None:
    """A quantized checkpoint; None where a path leads to something else, which is then read as plain weights."""
    try:
        return load_checkpoint(path)
    except FileFormatError:
        return None


#: What `layerbounds.run` takes as ``weights``.
Weights = Mapping[str, str | os.PathLike[str] | Mapping[str, Any]]
