"""A layer file, read layer by layer: only what is asked for comes into memory, and shared matrices come once."""

from __future__ import annotations

import json
import math
import os
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from layerbounds.arguments import as_path, flag
from layerbounds.arrays import as_float64
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.gram import ValidatedGram
from layerbounds.layers.layer import Layer, check_gram_shape, check_weight_shape
from layerbounds.layers.tensor_files import check_weight, open_tensors

#: The newest schema; files in which no layers share a Gram matrix are of the first one.
SCHEMA_VERSION = 2
SCHEMA_KEY = "layerbounds.schema"
#: The key in a layer's metadata with the name of the tensor that holds its Gram matrix.
GRAM_KEY = "gram"

_OPTIONAL = ("target", "constant", "input_mean", "residual_mean")


class LayerFile(Mapping[str, Layer]):
    """The layers of a file by name, each read when it is asked for.

    While a layer is in use, asking for it again gives the same object, and a layer that shares its Gram matrix gets
    that very array. The file stays open.

    Parameters
    ----------
    path : path-like
    memory_map : bool
        See `layerbounds.load_layers` for both.

    Raises
    ------
    FileFormatError
        If the file is missing, truncated, not a safetensors file, holds no layer, has a newer schema, or says that a
        layer shares a Gram matrix that is not there.
    """

    def __init__(self, path: str | os.PathLike[str], *, memory_map: bool = False) -> None:
        self._memory_map = flag(memory_map, "memory_map")
        if not as_path(path, "path").is_file():
            raise FileFormatError(f"{path} does not exist or is not a file; check the path.")
        stack = ExitStack()
        self._path = path
        self._file = stack.enter_context(open_tensors(path))
        self._close = weakref.finalize(self, stack.close)
        version = self._version()
        self._info = self._json_object("layers")
        self._shapes = self._json_object("weight_shapes")
        present = set(self._file.names)
        bases = [key.removesuffix(".gram") for key in self._file.names if key.endswith(".gram")]
        self._tensors = {base: f"{base}.gram" for base in bases if f"{base}.weight" in present}
        if version > 1:
            self._tensors |= self._references(present)
        if not self._tensors:
            raise FileFormatError(
                f"{path} holds no layer: a layer is a pair of tensors NAME.weight and NAME.gram, as written by "
                "layerbounds.save_layers and, from a model and data, by `layerbounds capture`."
            )
        for name in self._tensors:
            self._check_metadata(name)
        # Safetensors sorts the tensors; the metadata keep the order in which the layers were saved.
        order = {name: position for position, name in enumerate(self._info)}
        self._names = sorted(self._tensors, key=lambda name: order.get(name, len(order)))
        self._layers: weakref.WeakValueDictionary[str, Layer] = weakref.WeakValueDictionary()
        self._grams: weakref.WeakValueDictionary[str, ValidatedGram] = weakref.WeakValueDictionary()

    def _version(self) -> int:
        version = self._file.metadata.get(SCHEMA_KEY, "1")
        if not re.fullmatch("[0-9]{1,9}", version) or int(version) > SCHEMA_VERSION:
            raise FileFormatError(
                f"{self._path} has layer-file schema {version}, this version reads up to {SCHEMA_VERSION}; upgrade "
                "layerbounds."
            )
        return int(version)

    def _json_object(self, key: str) -> dict[str, Any]:
        try:
            value = json.loads(self._file.metadata.get(key, "{}"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise FileFormatError(
                f"{self._path}: the metadata entry {key!r} is not valid JSON ({error}); write the file again."
            ) from error
        if not isinstance(value, dict):
            raise FileFormatError(
                f"{self._path}: the metadata entry {key!r} is not a JSON object; write the file again."
            )
        return value

    def _check_metadata(self, name: str) -> None:
        own = self._info.get(name, {})
        if not isinstance(own, dict) or not isinstance(own.get("provenance"), dict | None):
            raise FileFormatError(
                f"{self._path}: the metadata of layer {name!r} are not JSON objects; write the file again."
            )

    def _references(self, present: set[str]) -> dict[str, str]:
        """The tensors that hold the Gram matrices of layers without one of their own."""
        found: dict[str, str] = {}
        for name, own in self._info.items():
            if not isinstance(own, dict) or GRAM_KEY not in own:
                continue
            tensor = own[GRAM_KEY]
            said = f"{self._path}: the metadata say that the Gram matrix of layer {name!r} is tensor {tensor!r}"
            if not isinstance(tensor, str) or tensor not in present:
                raise FileFormatError(f"{said}, which is not in the file; write the file again.")
            if f"{name}.weight" not in present:
                raise FileFormatError(f"{said}, and there is no tensor {name}.weight; write the file again.")
            if name in self._tensors and tensor != self._tensors[name]:
                raise FileFormatError(f"{said}, and there is a tensor {name}.gram too; write the file again.")
            found[name] = tensor
        return found

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Layer:
        layer = self._layers.get(name)
        if layer is None:
            layer = self._layers[name] = self._read(name, self._tensors[name])
        return layer

    def gram_of(self, name: str) -> str:
        """The layer with whose Gram matrix, in the file, a layer is stored: another one, or the layer itself."""
        return self._tensors[name].removesuffix(".gram")

    def _read(self, name: str, tensor: str) -> Layer:
        file = self._file
        check_weight(file, f"{name}.weight", integers=True)
        shape = _own_shape(file.entry(f"{name}.weight").shape, self._shapes.get(name))
        check_weight_shape(shape, name)
        if tensor == f"{name}.gram":
            check_gram_shape(file.entry(tensor).shape, shape, name)
        else:
            self._check_reference(name, tensor, shape)
        # Before the weights: validation takes the most memory.
        gram = self._gram(name, tensor, math.prod(shape[1:]))
        own = self._info.get(name, {})
        more = {part: file.read(f"{name}.{part}") for part in _OPTIONAL if f"{name}.{part}" in file.names}
        return Layer(
            file.read(f"{name}.weight").reshape(shape),
            gram,
            name,
            samples=own.get("samples"),
            bias=own.get("bias", "fixed"),
            provenance=own.get("provenance"),
            **more,
        )

    def _check_reference(self, name: str, tensor: str, shape: tuple[int, ...]) -> None:
        stored = self._file.entry(tensor).shape
        try:
            check_gram_shape(stored, shape, name)
        except InputError as error:
            raise FileFormatError(
                f"{self._path}: the metadata say that the Gram matrix of layer {name!r} is tensor {tensor!r}, whose "
                f"shape {stored} does not fit weights of shape {shape}; write the file again."
            ) from error

    def _gram(self, name: str, tensor: str, n: int) -> ValidatedGram:
        gram = self._grams.get(tensor)
        if gram is None:
            what = f"layer {name!r}: gram"
            mapped = self._file.map(tensor) if self._memory_map and self._file.entry(tensor).kind == "F64" else None
            matrices = as_float64(self._file.read(tensor) if mapped is None else mapped, what).reshape(-1, n, n)
            gram = self._grams[tensor] = ValidatedGram(matrices, what)
        return gram


def _own_shape(stored: tuple[int, ...], shape: Any) -> tuple[int, ...]:
    """The shape of weights that may be stored flattened, if the file tells it."""
    if isinstance(shape, list) and all(type(d) is int and d > 0 for d in shape):
        return tuple(shape) if math.prod(shape) == math.prod(stored) else stored
    return stored
