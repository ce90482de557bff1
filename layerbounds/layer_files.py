"""Layers on disk: one safetensors file, readable with NumPy alone (schema: docs/file-format.md)."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layer import Layer
from layerbounds.names import match_name

SCHEMA_VERSION = 1
SCHEMA_KEY = "layerbounds.schema"

_PARTS = frozenset({"weight", "gram", "target", "constant", "input_mean"})


def save_layers(path: str | os.PathLike[str], layers: Mapping[str, Layer] | Iterable[Layer]) -> None:
    """Write layers to a safetensors file, atomically.

    Parameters
    ----------
    path : path-like
    layers : mapping of name to Layer, or iterable of Layer
    """
    items = layers.values() if isinstance(layers, Mapping) else layers
    tensors: dict[str, NDArray[Any]] = {}
    info: dict[str, Any] = {}
    for layer in items:
        if layer.name in info:
            raise InputError(f"two layers are called {layer.name!r}; give each its own name before saving.")
        tensors[f"{layer.name}.weight"] = np.ascontiguousarray(layer.weight)
        tensors[f"{layer.name}.gram"] = layer.gram[0] if layer.groups == 1 else layer.gram
        if layer.target is not layer.matrix:
            tensors[f"{layer.name}.target"] = layer.target
        if np.any(layer.constant):
            tensors[f"{layer.name}.constant"] = layer.constant
        if layer.input_mean is not None:
            tensors[f"{layer.name}.input_mean"] = layer.input_mean[0] if layer.groups == 1 else layer.input_mean
        info[layer.name] = {"samples": layer.samples, "provenance": layer.provenance}
    if not info:
        raise InputError("there are no layers to save; pass at least one.")
    write_tensors(path, tensors, {SCHEMA_KEY: str(SCHEMA_VERSION), "layers": json.dumps(info)})


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file so that a reader sees either the whole file or the old one."""
    contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(contiguous, temporary, dict(metadata))
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path} ({error}); choose another file.") from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write, which replaces ``path`` when the block ends without an error.

    A link is followed: the file that it points to is replaced.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {target.parent} does not exist; create it first.")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # Temporary files are private; the finished one gets the permissions of any newly created file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_layers(path: str | os.PathLike[str]) -> dict[str, Layer]:
    """Read every layer of a safetensors file.

    A layer is a pair of tensors ``NAME.weight`` and ``NAME.gram``; ``NAME.target``, ``NAME.constant`` and
    ``NAME.input_mean`` are optional, other tensors are ignored.

    Raises
    ------
    FileFormatError
        If the file is missing, truncated, not a safetensors file, holds no layer, or has a newer schema.
    InputError
        If a layer in it is invalid; the message names the layer.
    """
    tensors, metadata = read_tensors(path, _layer_tensors)
    version = metadata.get(SCHEMA_KEY, str(SCHEMA_VERSION))
    if not version.isdigit() or int(version) > SCHEMA_VERSION:
        raise FileFormatError(
            f"{path} has layer-file schema {version}, this version reads up to {SCHEMA_VERSION}; upgrade layerbounds."
        )
    names = _layer_names(tensors)
    if not names:
        raise FileFormatError(
            f"{path} holds no layer: a layer is a pair of tensors NAME.weight and NAME.gram, as written by "
            "layerbounds.save_layers."
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


def read_tensors(
    path: str | os.PathLike[str], choose: Callable[[Sequence[str]], Iterable[str]] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read tensors and the metadata of a safetensors file, with errors that name the file.

    Parameters
    ----------
    path : path-like
    choose : callable, optional
        Picks some of all names; default: all.
    """
    source = Path(path)
    if not source.is_file():
        raise FileFormatError(f"{source} does not exist or is not a file; check the path.")
    try:
        with safe_open(str(source), framework="np") as handle:
            keys = list(handle.keys())
            metadata = dict(handle.metadata() or {})
            tensors = {}
            for key in keys if choose is None else choose(keys):
                try:
                    tensors[key] = handle.get_tensor(key)
                except (AttributeError, TypeError) as error:
                    kind = handle.get_slice(key).get_dtype()
                    raise FileFormatError(
                        f"{source}: tensor {key!r} is of type {kind}, which NumPy does not know; store it as float32 "
                        "or float64."
                    ) from error
            return tensors, metadata
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(
            f"{source} cannot be read as a safetensors file ({error}); it is truncated or of another format."
        ) from error


def find_layer(layers: Mapping[str, Layer], name: str) -> Layer:
    """Return the layer of exactly that name, else the only one whose dotted name ends in it.

    Raises
    ------
    UnknownNameError
        If none or several match; the message lists candidates.
    """
    return layers[match_name(name, list(layers), "layer")]
