"""Tensors as bytes of a file, of types that NumPy lacks too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerbounds.arrays import as_float64
from layerbounds.exceptions import InputError
from layerbounds.layers.tensor_files import NARROW_FLOATS, NUMPY_TYPES


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as it stands in a file.

    Attributes
    ----------
    kind : str
        Its type, as safetensors calls it: ``"I32"``, ``"BF16"``, ``"F8_E4M3"``, ….
    shape : tuple of int
    data : ndarray
        The values, little-endian, of shape ``shape``: of the type itself where NumPy has it, otherwise their bits as
        unsigned integers.
    """

    kind: str
    shape: tuple[int, ...]
    data: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(self.data.nbytes)

    def tobytes(self) -> bytes:
        """What stands in the file."""
        return self.data.tobytes()


def stored(values: ArrayLike, kind: str | None = None) -> Stored:
    """Turn an array into what a file holds.

    Parameters
    ----------
    values : array_like
    kind : str, optional
        Type by its name in safetensors; by default that of the array.

    Returns
    -------
    Stored

    Raises
    ------
    InputError
        If a value is not a number of that type.
    """
    array = np.asarray(values)
    if kind is None:
        names = [name for name, dtype in NUMPY_TYPES.items() if np.dtype(dtype) == array.dtype]
        if not names:
            raise InputError(f"an array of type {array.dtype} has no type in safetensors; pass one that has.")
        kind = names[0]
    data: NDArray[Any]
    if kind == "BF16":
        data = _bfloat16(as_float64(array, "values"))
    elif kind in NARROW_FLOATS:
        data = _narrow(as_float64(array, "values"), kind)
    elif kind in NUMPY_TYPES:
        data = np.ascontiguousarray(array.astype(NUMPY_TYPES[kind])).reshape(array.shape)
        if not np.array_equal(data, array, equal_nan=data.dtype.kind == "f"):
            raise InputError(f"values are not all numbers of type {kind}; round them before.")
    else:
        raise InputError(f"there is no type {kind!r}; choose one of safetensors.")
    return Stored(kind, array.shape, data)


def save_tensors(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file: the length of a JSON header, the header, the tensors in the order of their names.

    Parameters
    ----------
    path : Path
    tensors : mapping of str to Stored
    metadata : mapping of str to str, optional
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # Wide types first, so that each tensor begins at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].data.itemsize, name))
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": tensors[name].kind, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(tensors[name].tobytes())


def _bfloat16(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    with np.errstate(over="ignore"):
        single = values.astype("<f4")
    bits = single.view("<u4")
    if np.any(bits & 0xFFFF) or not np.array_equal(single, values):
        raise InputError("values are not all numbers of type BF16; round them before.")
    return (bits >> 16).astype("<u2")


def _narrow(values: NDArray[np.float64], kind: str) -> NDArray[np.uint8]:
    table = NARROW_FLOATS[kind].astype(np.float64)
    minus_zero = (table == 0) & np.signbit(table)
    codes = np.flatnonzero(np.isfinite(table) & ~minus_zero)
    codes = codes[np.argsort(table[codes])]
    place = np.minimum(np.searchsorted(table[codes], values), len(codes) - 1)
    if not np.array_equal(table[codes][place], values):
        raise InputError(f"values are not all numbers of type {kind}; round them before.")
    found = codes[place].astype(np.uint8)
    if np.any(minus_zero):
        found[(values == 0) & np.signbit(values)] = np.flatnonzero(minus_zero)[0]
    return found
