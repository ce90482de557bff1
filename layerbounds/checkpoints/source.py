"""What a checkpoint of tensors holds, as its formats see it: tensors by name, and the configuration beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import FileFormatError, first_line
from layerbounds.layers.tensor_files import Entry, TensorFile, bytes_of

#: Files beside the weights that say how they are quantized, and the entry that does.
_CONFIGURATIONS = (
    ("config.json", "quantization_config"),
    ("config.json", "compression_config"),
    ("quantize_config.json", None),
    ("quant_config.json", None),
    ("hf_quant_config.json", "quantization"),
)


class Source:
    """Tensors of a checkpoint, and its configuration.

    Parameters
    ----------
    file : TensorFile

    Attributes
    ----------
    path : Path
        Of the file with the weights, or of the index of shards.
    names : frozenset of str
        Of all tensors.
    metadata : dict of str to str
        Of a safetensors file.
    config : dict
        ``config.json``, empty where there is none.
    quantization : dict
        What a configuration says about quantization (``quantization_config`` of ``config.json``, or a file of its own);
        empty where nothing does.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self.path = file.path
        self.names = frozenset(file.names)
        self.metadata = file.metadata
        folder = file.path.parent
        self.config = json_object(folder / "config.json")
        self.quantization: dict[str, Any] = {}
        for name, entry in _CONFIGURATIONS:
            content = self.config if name == "config.json" else json_object(folder / name)
            found = content if entry is None else content.get(entry)
            if isinstance(found, dict) and found:
                self.quantization = found
                break

    def entry(self, name: str) -> Entry:
        """Type (as safetensors calls it) and shape of a tensor, without reading it."""
        return self._file.entry(self._known(name))

    def matrix(self, name: str) -> tuple[int, int]:
        """The shape of a tensor that has to be a matrix.

        Raises
        ------
        FileFormatError
            If it is something else, such as a stack of the matrices of experts.
        """
        shape = self.entry(name).shape
        if len(shape) != 2 or 0 in shape:
            raise FileFormatError(
                f"{self.path}: tensor {name!r} has shape {shape}; only single matrices are read, no stacks of them."
            )
        return shape[0], shape[1]

    def metadata_of(self, name: str) -> dict[str, str]:
        """The metadata of the safetensors file that a tensor is in, which may be one of several shards."""
        return self._file.metadata_of(self._known(name))

    def read(self, name: str) -> NDArray[Any]:
        """The values of a tensor; bfloat16 and 8-bit floats as float32, which holds them exactly."""
        return self._file.read(self._known(name))

    def integers(self, name: str) -> NDArray[Any]:
        """The values of a tensor of integers.

        Raises
        ------
        FileFormatError
            If it holds something else.
        """
        values = self.read(name)
        if values.dtype.kind not in "iu":
            raise self.fault(f"tensor {name!r} holds {values.dtype} numbers where integers are expected")
        return values

    def floats(self, name: str) -> NDArray[np.float64]:
        """The values of a tensor of floats in float64, all of them finite.

        Raises
        ------
        FileFormatError
            If it holds something else.
        """
        values = self.read(name)
        if values.dtype.kind != "f":
            raise self.fault(f"tensor {name!r} holds {values.dtype} numbers where floats are expected")
        if not np.all(np.isfinite(values)):
            raise self.fault(f"tensor {name!r} holds NaN or infinity")
        return values.astype(np.float64)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """The values of a tensor of integers or of finite floats in float64.

        Raises
        ------
        FileFormatError
            If it holds NaN or infinity.
        """
        return self.read(name).astype(np.float64) if self.entry(name).kind in _INTEGERS else self.floats(name)

    def bits(self, *names: str) -> int:
        """Bits of the file that tensors take; of those that there are."""
        return sum(8 * _size(self.entry(name)) for name in names if name in self.names)

    def fault(self, what: str) -> FileFormatError:
        """A sentence about a file that contradicts itself."""
        return FileFormatError(f"{self.path}: {what}; the file is damaged or of another format.")

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise self.fault(f"there is no tensor {name!r}")
        return name


_INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")


def _size(entry: Entry) -> int:
    # Types that are not known here have a byte.
    return (bytes_of(entry.kind) or 1) * int(np.prod(entry.shape, dtype=np.int64))


def json_object(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is no file, or something else in it.

    Raises
    ------
    FileFormatError
        If it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON ({first_line(error)}); write it again.") from error
    return content if isinstance(content, dict) else {}
