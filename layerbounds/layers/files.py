"""Layers on disk: one safetensors file, readable with NumPy alone (schema: docs/file-format.md)."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import as_path, members
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError, LayerboundsError
from layerbounds.layers.gram import ValidatedGram
from layerbounds.layers.layer import Layer
from layerbounds.layers.layer_file import GRAM_KEY, SCHEMA_KEY, SCHEMA_VERSION, LayerFile
from layerbounds.layers.provenance import json_ready
from layerbounds.layers.tensor_files import NUMPY_TYPES
from layerbounds.mistaken import instead
from layerbounds.names import match_name, match_names

#: The names that safetensors gives to the types that layer files hold.
_DTYPES = {np.dtype(numpy).name: name for name, numpy in NUMPY_TYPES.items()}


class StoredGrams:
    """The tensors of a file that hold Gram matrices: layers that have the same one store it once."""

    def __init__(self) -> None:
        # A matrix that is no longer in use cannot come again.
        self._tensors: WeakKeyDictionary[ValidatedGram, str] = WeakKeyDictionary()

    def find(self, layer: Layer, name: str) -> str | None:
        """The tensor that holds the Gram matrix of a layer already; None where the layer has to store its own."""
        gram = layer.validated_gram
        if gram in self._tensors:
            return self._tensors[gram]
        for other, tensor in self._tensors.items():
            if _same_bits(gram.matrices, other.matrices):
                self._tensors[gram] = tensor
                return tensor
        self._tensors[gram] = f"{name}.gram"
        return None


def _same_bits(first: Float, second: Float) -> bool:
    if first.shape != second.shape:
        return False
    a, b = (matrices.view(np.int64).reshape(-1, matrices.shape[-1]) for matrices in (first, second))
    # Row by row, because most differ in the first one.
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def save_layers(path: str | os.PathLike[str], layers: Mapping[str, Layer] | Iterable[Layer]) -> None:
    """Write layers to a safetensors file, atomically. A Gram matrix that several layers have is stored once.

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

    Examples
    --------
    >>> lb.save_layers("layers.safetensors", {"conv1": layer})
    """
    named = named_layers(layers)
    if not named:
        raise InputError("there are no layers to save; pass at least one.")
    tensors: dict[str, NDArray[Any]] = {}
    info: dict[str, Any] = {}
    stored = StoredGrams()
    for name, layer in named.items():
        shared = stored.find(layer, name)
        tensors.update(layer_tensors(layer, name, shared))
        info[name] = layer_info(layer, shared)
    write_tensors(path, tensors, file_metadata(info))


def named_layers(layers: Any) -> dict[str, Layer]:
    """Layers by their names, from a mapping or several layers.

    Raises
    ------
    InputError
        If something else is there, or two have one name.
    """
    wrong = "a {}; pass a mapping of names to layerbounds.Layer, or a list of them."
    if (mistake := instead("layers", layers)) is not None:
        raise InputError(f"layers is {mistake}")
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


def layer_tensors(layer: Layer, name: str, shared: str | None) -> dict[str, NDArray[Any]]:
    """The tensors of a layer file that hold one layer, by their full names.

    Parameters
    ----------
    layer : Layer
    name : str
    shared : str or None
        The tensor that holds the layer's Gram matrix already.
    """
    single = layer.groups == 1
    tensors: dict[str, NDArray[Any]] = {f"{name}.weight": layer.weight}
    if shared is None:
        tensors[f"{name}.gram"] = layer.gram[0] if single else layer.gram
    if layer.target is not layer.matrix:
        tensors[f"{name}.target"] = layer.target
    if np.any(layer.constant):
        tensors[f"{name}.constant"] = layer.constant
    if layer.input_mean is not None:
        tensors[f"{name}.input_mean"] = layer.input_mean[0] if single else layer.input_mean
    if np.any(layer.residual_mean):
        tensors[f"{name}.residual_mean"] = layer.residual_mean
    return tensors


def layer_info(layer: Layer, shared: str | None) -> dict[str, Any]:
    """What the metadata of a layer file say about one layer; ``shared`` as in `layer_tensors`."""
    info: dict[str, Any] = {"samples": layer.samples, "provenance": json_ready(layer.provenance, layer.name)}
    if layer.bias != "fixed":
        info["bias"] = layer.bias
    if shared is not None:
        info[GRAM_KEY] = shared
    return info


def file_metadata(info: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a layer file, from the `layer_info` of each layer by name."""
    # What needs nothing of the newer schema can be read by older versions too.
    version = SCHEMA_VERSION if any(GRAM_KEY in own for own in info.values()) else 1
    try:
        return {SCHEMA_KEY: str(version), "layers": json.dumps(info)}
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


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: no loss of power takes them back.

    Raises
    ------
    OSError
        If the disk is full or fails.
    """
    folder = path.is_dir()
    if folder and (os.name == "nt" or not os.access(path, os.R_OK)):
        # It cannot be opened: Windows opens no folders, and keeps the names itself.
        return
    # Windows syncs only what is open for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems have nothing to do for folders, and say so.
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


@contextmanager
def atomic_path(
    path: str | os.PathLike[str], *, durable: bool = False, advice: str = "free space or choose another place"
) -> Iterator[Path]:
    """Give a temporary file to write, which replaces ``path`` when the block ends without an error.

    A link is followed: the file that it points to is replaced.

    Parameters
    ----------
    path : path-like
    durable : bool
        Whether the file is on the disk for good when the block has ended: a loss of power leaves the whole new file.
    advice : str
        What to do where it cannot be written.

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
        if durable:
            sync(temporary)
        os.replace(temporary, target)
        if durable:
            sync(target.parent)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, LayerboundsError):
            raise InputError(f"cannot write {path} ({error.strerror or error}); {advice}.") from error
        raise


def load_layers(
    path: str | os.PathLike[str], names: str | Iterable[str] | None = None, *, memory_map: bool = False
) -> dict[str, Layer]:
    """Read layers of a safetensors file.

    A layer is a pair of tensors ``NAME.weight`` and ``NAME.gram``; ``NAME.target``, ``NAME.constant``,
    ``NAME.input_mean`` and ``NAME.residual_mean`` are optional, other tensors are ignored. Layers whose inputs are the
    same share one Gram matrix, which is read once.

    Parameters
    ----------
    path : path-like
    names : str or iterable of str, optional
        Names of layers, their unique ends, globs, or ``"re:"`` and a regular expression: nothing else is read. Default:
        all. `layerbounds.layers.layer_file.LayerFile` reads each layer when it is asked for.
    memory_map : bool
        Whether Gram matrices stay on disk, where they are stored as float64: the operating system reads what is used.
        The file must not be changed while its layers are in use (`save_layers` replaces files and changes none).

    Returns
    -------
    dict of str to Layer
        In the order of the file.

    Raises
    ------
    FileFormatError
        If the file is missing, truncated, not a safetensors file, holds no layer, or has a newer schema.
    InputError
        If a layer in it is invalid; the message names the layer.
    UnknownNameError
        If a name or pattern matches nothing.

    Examples
    --------
    >>> lb.save_layers("layers.safetensors", {"conv1": layer})
    >>> list(lb.load_layers("layers.safetensors", "conv*"))
    ['conv1']
    """
    file = LayerFile(path, memory_map=memory_map)
    if names is None:
        return dict(file)
    wanted = [names] if isinstance(names, str) else members(names, "names")
    return {name: file[name] for name in match_names(wanted, list(file), "layer")}


def find_layer(layers: Mapping[str, Layer], name: str) -> Layer:
    """Return the layer of exactly that name, else the only one whose dotted name ends in it.

    Raises
    ------
    UnknownNameError
        If none or several match; the message lists candidates.
    """
    return layers[match_name(name, list(layers), "layer")]
