"""Weights of one layer from a file: those of `Solution.save_weights`, or a checkpoint from elsewhere."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.layer import Layer
from layerbounds.layers.layer_file import SCHEMA_KEY
from layerbounds.layers.tensor_files import FLOAT_NAMES, TensorFile, check_weight, open_tensors
from layerbounds.names import match_name

#: ``provenance["kind"]`` of the layer that `transformers` calls Conv1D: a checkpoint stores its weight as (in, out).
TRANSFORMERS_CONV1D = "transformers Conv1D"
#: Parts of names that `torch.compile`, FSDP and activation checkpointing put before a module's own.
TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: How much nearer to the dense weights another order of the axes has to be before it is taken for the right one.
_MUCH_NEARER = 0.5


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Weights for some output channels of a layer, as they were found in a file.

    Attributes
    ----------
    values : ndarray of shape (channels, n)
    note : str
        What is worth knowing about the tensor that they come from; empty where it has the name and the layout of the
        layer.
    dtype : str
        The type in which they are stored: ``"float32"``, ``"bfloat16"``, …; ``"float64"`` for all but floats.
    """

    values: Float
    note: str
    dtype: str = "float64"


def load_weights(path: str | os.PathLike[str], layer: Layer, channels: Sequence[int] | None = None) -> Float:
    """Read weights for some output channels of a layer; see `read_layer_weights`."""
    return read_layer_weights(path, layer, channels).values


def read_layer_weights(
    path: str | os.PathLike[str], layer: Layer, channels: Sequence[int] | None = None
) -> LayerWeights:
    """Read weights for some output channels of a layer; other tensors of the file are not read.

    What the axes of the tensor are is decided by what is known about it, never by its size. A file of
    `Solution.save_weights` (with ``NAME.channels``) or of `save_layers` (with ``NAME.gram`` or a schema number) has the
    axes of the layer. A checkpoint has those of the module: (in, out) where the provenance says that the layer is a
    Conv1D of `transformers`, otherwise those of the layer.

    Parameters
    ----------
    path : path-like
        Holds ``NAME.weight``, with all output channels of the layer, or with those that ``NAME.channels`` lists. NAME
        is the layer's name, the unique end of a dotted name or the other way round, or a name that the weight is tied
        to. See `layerbounds.layers.tensor_files.open_tensors` for the formats.
    layer : Layer
    channels : sequence of int, optional
        Default: all.

    Returns
    -------
    LayerWeights

    Raises
    ------
    FileFormatError
        If the file cannot be read, or holds no such weights, or codes instead of weights.
    InputError
        If the weights have another shape or their axes another order, or a chosen channel is not among them.
    """
    with open_tensors(path) as file:
        name = _stored_name(layer, file)
        own = f"{name}.channels" in file.names or f"{name}.gram" in file.names or SCHEMA_KEY in file.metadata
        check_weight(file, f"{name}.weight")
        if not own:
            _check_folding(layer, file)
        where = f"{name}.weight in {os.fspath(path)}"
        weight = as_float64(file.read(f"{name}.weight"), where)
        dtype = FLOAT_NAMES.get(file.entry(f"{name}.weight").kind, "float64")
        held = list(range(layer.out_features))
        if f"{name}.channels" in file.names:
            held = _channels(file, f"{name}.channels", layer)
    rows, n = len(held), layer.in_features
    notes = [] if name == layer.name else [f"layer {layer.name!r} is tensor {name}.weight"]
    if not own and layer.provenance.get("kind") == TRANSFORMERS_CONV1D and weight.shape == (n, rows):
        weight = weight.T
        notes.append(f"{name}.weight is stored as (in, out), as every {TRANSFORMERS_CONV1D} is, and was transposed")
    shape = (rows, *layer.weight.shape[1:])
    if weight.shape not in (shape, (rows, n)):
        hint = " (its axes seem to be in another order)" if sorted(weight.shape) == sorted(shape) else ""
        raise InputError(
            f"{where} has shape {weight.shape}{hint}; layer {layer.name!r} needs {rows} channels of {n} weights, in "
            f"shape {shape} or {(rows, n)}."
        )
    if not own:
        _check_axes(weight.reshape(shape), layer, where)
    wanted = list(range(layer.out_features)) if channels is None else list(channels)
    missing = [c for c in wanted if c not in held]
    if missing:
        raise InputError(
            f"{os.fspath(path)} has no weights for channel {missing[0]} of layer {layer.name!r}; choose channels among "
            f"the {len(held)} that it holds."
        )
    place = {channel: row for row, channel in enumerate(held)}
    values = np.ascontiguousarray(weight.reshape(rows, -1)[[place[c] for c in wanted]])
    return LayerWeights(values, "; ".join([*notes, *file.notes]), dtype)


def canonical(name: str) -> str:
    """A dotted name without the parts of wrappers that names of modules cannot be confused with."""
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def _stored_name(layer: Layer, file: TensorFile) -> str:
    """The name under which a file has a layer's weight, without ``.weight``."""
    stored = {canonical(key): key for key in (n.removesuffix(".weight") for n in file.names if n.endswith(".weight"))}
    tied = layer.provenance.get("tied_to")
    names = [layer.name, *(t for t in tied if isinstance(t, str))] if isinstance(tied, list) else [layer.name]
    names = [canonical(name) for name in names]
    for name in names:
        if name in stored:
            return stored[name]
        codes = [key for key in file.names if canonical(key).startswith(f"{name}.") and not key.endswith(".bias")]
        if codes:
            raise FileFormatError(
                f"{file.path} has {codes[0]!r} and no tensor {name}.weight: what another form of the layer stores are "
                "codes or factors and not weights; store the weights themselves."
            )
    if not stored:
        raise FileFormatError(f"{file.path} holds no weights: a tensor called {layer.name}.weight is needed.")
    for name in names:
        if any(key.endswith(f".{name}") for key in stored):
            return stored[match_name(name, list(stored), "weight in the file for layer")]
        # The checkpoint of a model that is part of another one has shorter names; the longest is the least ambiguous.
        shorter = [key for key in stored if name.endswith(f".{key}")]
        if shorter:
            return stored[max(shorter, key=len)]
    return stored[match_name(layer.name, list(stored), "weight in the file for layer")]


def _channels(file: TensorFile, name: str, layer: Layer) -> list[int]:
    listed = file.read(name)
    held = [int(c) for c in listed.ravel()] if listed.dtype.kind in "iu" else []
    if not held or len(set(held)) < len(held) or min(held) < 0 or max(held) >= layer.out_features:
        raise FileFormatError(
            f"{file.path}: {name} must list different output channels of layer {layer.name!r}, as integers from 0 to "
            f"{layer.out_features - 1}; write the file again."
        )
    return held


def _check_folding(layer: Layer, file: TensorFile) -> None:
    """Make sure that weights from elsewhere are folded where those of the layer are."""
    folded = layer.provenance.get("folded_batchnorm")
    if not isinstance(folded, str):
        return
    if any(canonical(name).endswith(f"{canonical(folded)}.running_var") for name in file.names):
        raise InputError(
            f"layer {layer.name!r} has the batch normalisation {folded!r} folded into its weights, and {file.path} "
            "still has it apart; fold it there too, or capture without folding."
        )


def _check_axes(weight: Float, layer: Layer, where: str) -> None:
    """Refuse weights that another order of the axes brings much nearer to the dense ones."""
    dense = np.asarray(layer.weight, dtype=np.float64)
    distance = float(np.linalg.norm(weight - dense))
    identity = tuple(range(weight.ndim))
    for order in itertools.permutations(identity):
        turned = weight.transpose(order)
        if order == identity or turned.shape != dense.shape:
            continue
        if float(np.linalg.norm(turned - dense)) < _MUCH_NEARER * distance:
            raise InputError(
                f"{where} fits layer {layer.name!r} much better with its axes in the order {order}: it seems to be "
                f"transposed; store it with the axes of the layer, {'x'.join(map(str, dense.shape))}, and a tensor "
                f"{layer.name}.channels that lists its output channels."
            )
