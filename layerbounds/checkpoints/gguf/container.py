"""GGUF files as they stand: metadata by key, and where each tensor is.

The layout is that of ggml/docs/gguf.md, versions 2 and 3: the magic, the version, how many tensors and keys there are,
the keys with their values, for each tensor its name, shape, type and place, and from the next aligned byte on the data.
Lengths are checked against the file before anything is read, so that a damaged file ends in a sentence.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from layerbounds.checkpoints.gguf.types import INTEGERS, PLAIN, TYPES, Type
from layerbounds.exceptions import FileFormatError, first_line

MAGIC = b"GGUF"
#: Types of values by their numbers, as `struct` calls them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
#: End of the name of a part of several.
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class Key(NamedTuple):
    """Where a value is: its type, its first byte, the byte after it; and the first byte of its key."""

    kind: int
    start: int
    end: int
    begin: int


class Tensor(NamedTuple):
    """What a file says about a tensor.

    Attributes
    ----------
    name : str
    kind : Type or None
        None where the type is not known here.
    number : int
        Of the type.
    shape : tuple of int
        In the order of NumPy: of a linear layer (out, in).
    start : int
        Its first byte.
    """

    name: str
    kind: Type | None
    number: int
    shape: tuple[int, ...]
    start: int

    @property
    def label(self) -> str:
        """The name of its type."""
        return f"number {self.number}" if self.kind is None else self.kind.name

    @property
    def size(self) -> int:
        """Its bytes."""
        assert self.kind is not None
        return math.prod(self.shape) // self.kind.block * self.kind.size


class Container:
    """One file.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    version : int
    keys : dict of str to Key
    tensors : dict of str to Tensor
        In the order of the file.
    alignment : int
        Of the data.

    Raises
    ------
    FileFormatError
        If it is missing, damaged, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileFormatError(f"{path} does not exist or is not a file; check the path.")
        try:
            self._data = np.memmap(path, np.uint8, "r")
            self._bytes = self._data.data
            self._parse()
        except (OSError, ValueError, struct.error, OverflowError, RecursionError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise self.fault(f"it cannot be read as GGUF ({first_line(error)})") from error

    def fault(self, what: str) -> FileFormatError:
        """A sentence about a file that contradicts itself."""
        return FileFormatError(f"{self.path}: {what}; the file is damaged or of another format.")

    def _parse(self) -> None:
        if bytes(self._bytes[:8]) == b"version ":
            raise FileFormatError(f"{self.path} is a pointer of Git LFS and not the file itself; run git lfs pull.")
        if bytes(self._bytes[:4]) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        (self.version,) = self._take("I", 4)
        if self.version not in (2, 3):
            swapped = int.from_bytes(self.version.to_bytes(4, "little"), "big")
            raise FileFormatError(
                f"{self.path} is "
                + (
                    "a GGUF file for big-endian machines"
                    if swapped in (2, 3)
                    else f"of version {self.version} of GGUF, and versions 2 and 3 are read"
                )
                + "; convert the model again."
            )
        tensors, keys = self._take("QQ", 8)
        at = 24
        self.keys: dict[str, Key] = {}
        for _ in range(keys):
            begin = at
            name, at = self._text(at)
            (kind,) = self._take("I", at)
            end = self._end(kind, at + 4)
            if name in self.keys:
                raise ValueError(f"it has the key {name!r} twice")
            self.keys[name] = Key(kind, at + 4, end, begin)
            at = end
        found = []
        for _ in range(tensors):
            name, at = self._text(at)
            (dimensions,) = self._take("I", at)
            if dimensions > 4:
                raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
            shape = self._take(f"{dimensions}Q", at + 4)
            number, start = self._take("IQ", at + 4 + 8 * dimensions)
            at += 16 + 8 * dimensions
            found.append(Tensor(name, TYPES.get(number), number, tuple(reversed(shape)), start))
        self.alignment = self.whole("general.alignment", 32)
        if self.alignment < 1 or self.alignment & (self.alignment - 1):
            raise ValueError(f"its alignment is {self.alignment}, and no power of two")
        self._place(found, at + -at % self.alignment)

    def _place(self, found: list[Tensor], origin: int) -> None:
        """Where the tensors are in the file, checked."""
        self.tensors: dict[str, Tensor] = {}
        for tensor in found:
            placed = tensor._replace(start=origin + tensor.start)
            if tensor.name in self.tensors:
                raise ValueError(f"it has the tensor {tensor.name!r} twice")
            if 0 in tensor.shape:
                raise ValueError(f"tensor {tensor.name!r} has the shape {tensor.shape}")
            if placed.kind is not None:
                if tensor.shape and tensor.shape[-1] % placed.kind.block:
                    raise ValueError(f"the shape of tensor {tensor.name!r} does not fit its type, {placed.label}")
                if placed.start + placed.size > self._data.size:
                    raise ValueError(f"tensor {tensor.name!r} is incomplete")
            self.tensors[tensor.name] = placed

    def _take(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from("<" + form, self._bytes, at)

    def _text(self, at: int) -> tuple[str, int]:
        end = self._end(_TEXT, at)
        return bytes(self._bytes[at + 8 : end]).decode("utf-8"), end

    def _end(self, kind: int, at: int) -> int:
        """The byte after a value."""
        if kind == _TEXT:
            end = at + 8 + self._take("Q", at)[0]
        elif kind == _ARRAY:
            inner, count = self._take("IQ", at)
            end = at + 12
            if inner in _SCALARS:
                end += count * struct.calcsize("<" + _SCALARS[inner])
            elif count > self._data.size:
                raise ValueError("an array is longer than the file")
            else:
                for _ in range(count):
                    end = self._end(inner, end)
        elif kind in _SCALARS:
            end = at + struct.calcsize("<" + _SCALARS[kind])
        else:
            raise ValueError(f"a value has the unknown type {kind}")
        if end > self._data.size:
            raise ValueError("a value is incomplete")
        return int(end)

    def value(self, name: str) -> Any:
        """The value of a key: a number, a text, or a list of these; None where there is no such key.

        Raises
        ------
        FileFormatError
            If it is damaged.
        """
        key = self.keys.get(name)
        if key is None:
            return None
        try:
            return self._value(key.kind, key.start)[0]
        except (ValueError, RecursionError) as error:
            raise self.fault(f"the value of key {name!r} cannot be read ({first_line(error)})") from error

    def _value(self, kind: int, at: int) -> tuple[Any, int]:
        if kind == _TEXT:
            return self._text(at)
        if kind in _SCALARS:
            return self._take(_SCALARS[kind], at)[0], self._end(kind, at)
        inner, count = self._take("IQ", at)
        if inner in _SCALARS:
            return list(self._take(f"{count}{_SCALARS[inner]}", at + 12)), self._end(kind, at)
        values = []
        at += 12
        for _ in range(count):
            value, at = self._value(inner, at)
            values.append(value)
        return values, at

    def whole(self, name: str, default: int) -> int:
        """The value of a key that is a whole number.

        Raises
        ------
        FileFormatError
            If it is something else.
        """
        value = self.value(name)
        if value is None:
            return default
        if type(value) is not int:
            raise self.fault(f"key {name!r} is {str(value)[:40]!r} where a whole number is expected")
        return value

    def between(self, start: int, end: int) -> bytes:
        """Bytes of the file, such as those of a key with its value."""
        return bytes(self._bytes[start:end])

    def raw(self, tensor: Tensor) -> NDArray[np.uint8]:
        """The bytes of a tensor where they are in the file.

        Raises
        ------
        FileFormatError
            If its type is not known, so that its size is not.
        """
        if tensor.kind is None:
            raise FileFormatError(
                f"{self.path}: tensor {tensor.name!r} is of type {tensor.label}, which is not known here; requantize "
                "it to another type."
            )
        return self._data[tensor.start : tensor.start + tensor.size]

    def plain(self, tensor: Tensor) -> NDArray[Any]:
        """The values of a tensor of plain floats; bfloat16 as float32, which holds it exactly."""
        assert tensor.kind is not None and tensor.kind.name in PLAIN
        stored = np.frombuffer(self.raw(tensor).tobytes(), PLAIN[tensor.kind.name])
        if tensor.kind.name == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.reshape(tensor.shape)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds floats as they are."""
    return tensor.kind is not None and tensor.kind.name in PLAIN


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds integers, which are no weights."""
    return tensor.kind is not None and tensor.kind.name in INTEGERS


def parts(path: Path) -> list[Path]:
    """The files of a model of which ``path`` is one, in their order.

    Raises
    ------
    FileFormatError
        If one is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    found = [path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)]
    missing = next((file for file in found if not file.is_file()), None)
    if missing is not None:
        raise FileFormatError(f"{path} is one of {len(found)} files, but {missing} does not exist; fetch all of them.")
    return found


def located(path: Path) -> Path | None:
    """The GGUF file that a path denotes, in a folder without safetensors the only model there; None for other files.

    Raises
    ------
    FileFormatError
        If a folder holds several models.
    """
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if not files or any(path.glob("*.safetensors")):
            return None
        first = [file for file in files if (part := _PART.fullmatch(file.name)) is None or int(part[2]) == 1]
        if len(first) != 1:
            some = ", ".join(file.name for file in (first or files)[:4])
            raise FileFormatError(f"{path} holds {len(first or files)} candidates ({some}); name one of them.")
        return first[0]
    if path.suffix == ".gguf":
        return path
    try:
        with path.open("rb") as stream:
            return path if stream.read(4) == MAGIC else None
    except OSError:
        # Whoever reads it says what is wrong.
        return None
