"""Layers on disk: one safetensors file, readable with NumPy alone (schema: docs/file-format.md)."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import as_path
from layerbounds.exceptions import FileFormatError, InputError, LayerboundsError
from layerbounds.layers.layer import Layer
from layerbounds.layers.provenance import json_ready
from layerbounds.layers.tensor_files import NUMPY_TYPES, check_weight, open_tensors
from layerbounds.names import match_name

SCHEMA_VERSION = 1
SCHEMA_KEY = "layerbounds.schema"

_PARTS = frozenset({"weight", "gram", "target", "constant", "input_mean", "residual_mean"})

#: The names that safetensors gives to the types that layer files hold.
_DTYPES = {np.dtype(numpy).name: name for name, numpy in NUMPY_TYPES.items()}


def save_layers(path: str | os.PathLike[str], layers: Mapping[str, Layer] | Iterable[Layer]) -> None:
    """Write layers to a safetensors file, atomically.

    Parameters
    ----------
    path : path-like
    layers : mapping of name to Layer, or iterable of Layer
        In a mapping the keys are the names.

    Raises
    ------
    InputError
        If there is no layer, two have the same name, or the file cannot be written.

    Warns
    -----
    UserWarning
        If provenance holds what JSON cannot, which is stored as text.
    """
    named = _named(layers)
    if not named:
        raise InputError("there are no layers to save; pass at least one.")
    tensors: dict[str, NDArray[Any]] = {}
    for name, layer in named.items():
        tensors.update(layer_tensors(layer, name))
    write_tensors(path, tensors, file_metadata({name: layer_info(layer) for name, layer in named.items()}))


def _named(layers: Any) -> dict[str, Layer]:
    wrong = "a {}; pass a mapping of names to layerbounds.Layer, or a list of them."
    try:
        pairs = layers.items() if isinstance(layers, Mapping) else [(getattr(x, "name", None), x) for x in layers]
    except TypeError as error:
        raise InputError(f"layers is {wrong.format(type(layers).__name__)}") from error
    named: dict[str, Layer] = {}
    for name, layer in pairs:
        if not isinstance(layer, Layer) or not isinstance(name, str):
            raise InputError(f"layers holds {wrong.format(type(layer if isinstance(name, str) else name).__name__)}")
        if name in named:
            raise InputError(f"two layers are called {name!r}; give each its own name before saving.")
        named[name] = layer
    return named


def layer_tensors(layer: Layer, name: str | None = None) -> dict[str, NDArray[Any]]:
    """The tensors of a layer file that hold one layer, by their full names; ``name`` replaces the layer's own."""
    name, single = layer.name if name is None else name, layer.groups == 1
    tensors: dict[str, NDArray[Any]] = {
        f"{name}.weight": layer.weight,
        f"{name}.gram": layer.gram[0] if single else layer.gram,
    }
    if layer.target is not layer.matrix:
        tensors[f"{name}.target"] = layer.target
    if np.any(layer.constant):
        tensors[f"{name}.constant"] = layer.constant
    if layer.input_mean is not None:
        tensors[f"{name}.input_mean"] = layer.input_mean[0] if single else layer.input_mean
    if np.any(layer.residual_mean):
        tensors[f"{name}.residual_mean"] = layer.residual_mean
    return tensors


def layer_info(layer: Layer) -> dict[str, Any]:
    """What the metadata of a layer file say about one layer."""
    info: dict[str, Any] = {"samples": layer.samples, "provenance": json_ready(layer.provenance, layer.name)}
    if layer.bias != "fixed":
        info["bias"] = layer.bias
    return info


def file_metadata(info: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a layer file, from the `layer_info` of each layer by name."""
    try:
        return {SCHEMA_KEY: str(SCHEMA_VERSION), "layers": json.dumps(info)}
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the provenance of a layer cannot be stored as JSON ({error}); use plain values.") from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file so that a reader sees either the whole file or the old one."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        _write_safetensors(stream, tensors, metadata)


def _write_safetensors(stream: BinaryIO, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write one array after the other: arrays on disk (`numpy.memmap`) are never all in memory.

    The format is 8 bytes with the length of a JSON header, the header, and the arrays one after the other. Wide types
    come first, so that every array is aligned.
    """
    # Values are native; the format wants little-endian ones, which only exotic machines have to make.
    order = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for key in order:
        value = tensors[key]
        if value.dtype.name not in _DTYPES:
            raise InputError(f"tensor {key!r} is of type {value.dtype}, which layer files do not hold; pass float64.")
        header[key] = {
            "dtype": _DTYPES[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for key in order:
        value = np.ascontiguousarray(tensors[key], dtype=tensors[key].dtype.newbyteorder("<"))
        # An empty array has no bytes to view.
        if value.nbytes:
            stream.write(value.reshape(-1).view(np.uint8).data)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write, which replaces ``path`` when the block ends without an error.

    A link is followed: the file that it points to is replaced.

    Raises
    ------
    InputError
        If the file cannot be written, a full disk included.
    """
    target = as_path(path, "path").resolve()
    if not target.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {target.parent} does not exist; create it first.")
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # Temporary files are private; the finished one gets the permissions of any newly created file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, LayerboundsError):
            raise InputError(
                f"cannot write {path} ({error.strerror or error}); free space or choose another place."
            ) from error
        raise


def load_layers(path: str | os.PathLike[str]) -> dict[str, Layer]:
    """Read every layer of a safetensors file.

    A layer is a pair of tensors ``NAME.weight`` and ``NAME.gram``; ``NAME.target``, ``NAME.constant``,
    ``NAME.input_mean`` and ``NAME.residual_mean`` are optional, other tensors are ignored.

    Raises
    ------
    FileFormatError
        If the file is missing, truncated, not a safetensors file, holds no layer, or has a newer schema.
    InputError
        If a layer in it is invalid; the message names the layer.
    """
    if not as_path(path, "path").is_file():
        raise FileFormatError(f"{path} does not exist or is not a file; check the path.")
    with open_tensors(path) as file:
        chosen = _layer_tensors(file.names)
        for key in chosen:
            if key.endswith(".weight"):
                check_weight(file, key, integers=True)
        tensors, metadata = {key: file.read(key) for key in chosen}, file.metadata
    version = metadata.get(SCHEMA_KEY, str(SCHEMA_VERSION))
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > SCHEMA_VERSION:
        raise FileFormatError(
            f"{path} has layer-file schema {version}, this version reads up to {SCHEMA_VERSION}; upgrade layerbounds."
        )
    names = _layer_names(tensors)
    if not names:
        raise FileFormatError(
            f"{path} holds no layer: a layer is a pair of tensors NAME.weight and NAME.gram, as written by "
            "layerbounds.save_layers and, from a model and data, by `layerbounds capture`."
        )
    info = _json_object(metadata, "layers", path)
    shapes = _json_object(metadata, "weight_shapes", path)
    # Safetensors sorts the tensors; the metadata keep the order in which the layers were saved.
    order = {name: position for position, name in enumerate(info)}
    names.sort(key=lambda name: order.get(name, len(order)))
    layers: dict[str, Layer] = {}
    for name in names:
        own = info.get(name, {})
        provenance = own.get("provenance") if isinstance(own, dict) else own
        if not isinstance(own, dict) or not isinstance(provenance, dict | None):
            raise FileFormatError(f"{path}: the metadata of layer {name!r} are not JSON objects; write the file again.")
        layers[name] = Layer(
            _reshaped(tensors[f"{name}.weight"], shapes.get(name)),
            tensors[f"{name}.gram"],
            name,
            target=tensors.get(f"{name}.target"),
            constant=tensors.get(f"{name}.constant"),
            samples=own.get("samples"),
            input_mean=tensors.get(f"{name}.input_mean"),
            residual_mean=tensors.get(f"{name}.residual_mean"),
            bias=own.get("bias", "fixed"),
            provenance=provenance,
        )
    return layers


def _layer_names(keys: Iterable[str]) -> list[str]:
    present = set(keys)
    bases = (key.removesuffix(".gram") for key in keys if key.endswith(".gram"))
    return [base for base in bases if f"{base}.weight" in present]


def _layer_tensors(keys: Sequence[str]) -> list[str]:
    """The tensors that make up layers: what else is in the file is not read."""
    names = set(_layer_names(keys))
    return [key for key in keys if key.rpartition(".")[0] in names and key.rpartition(".")[2] in _PARTS]


def _json_object(metadata: Mapping[str, str], key: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, "{}"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: the metadata entry {key!r} is not valid JSON ({error}); write the file again."
        ) from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: the metadata entry {key!r} is not a JSON object; write the file again.")
    return value


def _reshaped(weight: NDArray[Any], shape: Any) -> NDArray[Any]:
    """Give flattened weights their own shape back, if the file tells it."""
    if isinstance(shape, list) and all(type(d) is int and d > 0 for d in shape) and math.prod(shape) == weight.size:
        return weight.reshape(shape)
    return weight


def find_layer(layers: Mapping[str, Layer], name: str) -> Layer:
    """Return the layer of exactly that name, else the only one whose dotted name ends in it.

    Raises
    ------
    UnknownNameError
        If none or several match; the message lists candidates.
    """
    return layers[match_name(name, list(layers), "layer")]
