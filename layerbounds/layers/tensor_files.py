"""Named tensors of files from anywhere, read one at a time: safetensors, whole or in shards, and PyTorch's own format.

What NumPy has no type for (bfloat16, 8-bit floats) becomes float32, which holds it exactly.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import as_path
from layerbounds.exceptions import FileFormatError, MissingExtraError, first_line

#: Suffixes of what `torch.save` writes.
PYTORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

#: End of the name of an index of shards.
INDEX_SUFFIX = ".safetensors.index.json"
#: Types that NumPy has too, by the names of safetensors.
NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
#: Types in which weights are stored, and codes are not.
WIDE_FLOATS = ("F64", "F32", "F16", "BF16")
#: Types of floats that software computes with, as safetensors and as arrays call them.
FLOAT_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Entry:
    """What a file says about a tensor before it is read.

    Attributes
    ----------
    kind : str
        Its type, as safetensors calls it: ``F32``, ``BF16``, ``F8_E4M3``, ``I8``, ….
    shape : tuple of int
    """

    kind: str
    shape: tuple[int, ...]


class TensorFile(ABC):
    """One file, or several that belong together.

    Attributes
    ----------
    path : Path
    names : list of str
    metadata : dict of str to str
    notes : tuple of str
        What a reader should know about how the file was understood.
    extra : dict of str to object
        What a state dict holds beside tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.metadata: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self.extra: dict[str, Any] = {}

    @abstractmethod
    def entry(self, name: str) -> Entry:
        """Type and shape of a tensor."""

    @abstractmethod
    def read(self, name: str) -> NDArray[Any]:
        """The values of a tensor.

        Raises
        ------
        FileFormatError
            If it is of a type that cannot be read exactly.
        """

    def metadata_of(self, name: str) -> dict[str, str]:
        """The metadata of the file that a tensor is in, which may be one of several."""
        return self.metadata

    def map(self, name: str) -> NDArray[Any] | None:
        """The values of a tensor where they are in the file, not in memory; None where that cannot be.

        The operating system reads what is used, and may forget it again. Changes are in memory alone.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a file, or a folder with a model, for reading tensors by name.

    Parameters
    ----------
    path : path-like
        A safetensors file; an index of shards (``….safetensors.index.json``); a folder with ``model.safetensors``, such
        an index, or a single safetensors file; or a state dict of PyTorch (``.pt``, ``.pth``, ``.bin``, ``.ckpt``),
        read without running code.

    Raises
    ------
    FileFormatError
        If it is missing, damaged, or of another format.
    MissingExtraError
        If PyTorch is needed and not installed.
    """
    source = _located(as_path(path, "path"))
    file: TensorFile
    if source.name.endswith(INDEX_SUFFIX):
        file = _Shards(source)
    elif source.suffix in PYTORCH_SUFFIXES:
        try:
            from layerbounds.layers.pickled import PickledTensors
        except ImportError as error:
            raise MissingExtraError(f"{source} needs PyTorch; run: pip install 'layerbounds[torch]'") from error

        file = PickledTensors(source)
    else:
        file = _Safetensors(source)
    try:
        yield file
    finally:
        file.close()


def shards(path: Path) -> list[Path]:
    """The files that an index lists; none for other files, and for an index that cannot be read."""
    if not path.name.endswith(INDEX_SUFFIX):
        return []
    try:
        with open_tensors(path) as file:
            return file.files if isinstance(file, _Shards) else []
    except FileFormatError:
        # Reading it says what is wrong.
        return []


def read_tensors(
    path: str | os.PathLike[str], choose: Callable[[Sequence[str]], Iterable[str]] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read tensors and the metadata of a file, see `open_tensors`.

    Parameters
    ----------
    path : path-like
    choose : callable, optional
        Picks some of all names; default: all.
    """
    with open_tensors(path) as file:
        names = file.names if choose is None else choose(file.names)
        return {name: file.read(name) for name in names}, dict(file.metadata)


def check_weight(file: TensorFile, name: str, *, integers: bool = False) -> None:
    """Make sure that a tensor holds weights, and not the codes or flags of a quantized or pruned layer.

    Parameters
    ----------
    file : TensorFile
    name : str
    integers : bool
        Whether integers are weights where nothing in the file says that they have to be scaled.

    Raises
    ------
    FileFormatError
        If it does not.
    """
    kind = file.entry(name).kind
    if kind in WIDE_FLOATS:
        return
    base = name.rpartition(".")[0]
    scales = [n for n in file.names if n.startswith(f"{base}.") and "scale" in n[len(base) :]]
    if scales:
        raise FileFormatError(
            f"{file.path}: tensor {name!r} ({kind}) has to be scaled by {scales[0]!r}, so that it holds codes and not "
            "weights; dequantize it and store the weights as float32."
        )
    if (kind not in NARROW_FLOATS or kind == "F8_E8M0") and not (integers and kind in NUMPY_TYPES):
        raise FileFormatError(
            f"{file.path}: tensor {name!r} is of type {kind}, which is how quantized checkpoints store codes, and not "
            "a type of weights; dequantize it and store the weights as float32."
        )


def _located(path: Path) -> Path:
    """The file that a path denotes: in a folder, the one that `transformers` would load."""
    if not path.is_dir():
        if not path.is_file():
            raise FileFormatError(f"{path} does not exist or is not a file; check the path.")
        return path
    for choice in ("model.safetensors", f"model{INDEX_SUFFIX}"):
        if (path / choice).is_file():
            return path / choice
    for pattern in (f"*{INDEX_SUFFIX}", "*.safetensors"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise FileFormatError(
                f"{path} holds {len(found)} candidates ({', '.join(f.name for f in found[:4])}); name one of them."
            )
    raise FileFormatError(
        f"{path} holds neither model.safetensors nor an index of shards, model{INDEX_SUFFIX}; name the file with the "
        "weights."
    )


class _Safetensors(TensorFile):
    """A safetensors file: the length of a JSON header (8 bytes), the header, the arrays."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._entries: dict[str, tuple[Entry, int, int]] = {}
        try:
            self._stream: BufferedReader = path.open("rb")
        except OSError as error:
            raise self._damaged(error) from error
        try:
            self._parse()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._stream.close()
            if isinstance(error, FileFormatError):
                raise
            raise self._damaged(error) from error
        self.names = list(self._entries)

    def _damaged(self, error: BaseException) -> FileFormatError:
        return FileFormatError(
            f"{self.path} cannot be read as a safetensors file ({first_line(error)}); it is truncated or of another "
            "format."
        )

    def _parse(self) -> None:
        size = os.fstat(self._stream.fileno()).st_size
        start = self._stream.read(8)
        if start == b"version " and self._stream.read(21) == b"https://git-lfs.githu":
            raise FileFormatError(f"{self.path} is a pointer of Git LFS and not the file itself; run git lfs pull.")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise ValueError("its header is incomplete")
        header = json.loads(self._stream.read(length).decode("utf-8"), object_pairs_hook=_unique)
        self.metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        for name, value in header.items():
            kind, shape = value["dtype"], tuple(value["shape"])
            begin, end = value["data_offsets"]
            if not all(type(i) is int and i >= 0 for i in (*shape, begin, end)):
                raise ValueError(f"the shape or place of tensor {name!r} is not one")
            bits = bytes_of(str(kind))
            if end < begin or (bits and end - begin != bits * math.prod(shape)):
                raise ValueError(f"the size of tensor {name!r} does not fit its shape")
            if 8 + length + end > size:
                raise ValueError(f"tensor {name!r} is incomplete")
            self._entries[name] = (Entry(str(kind), shape), 8 + length + begin, end - begin)

    def entry(self, name: str) -> Entry:
        return self._entries[name][0]

    def read(self, name: str) -> NDArray[Any]:
        entry, begin, size = self._entries[name]
        if not bytes_of(entry.kind):
            raise unreadable(self.path, name, entry.kind)
        stored = np.empty(
            size // bytes_of(entry.kind), dtype=NUMPY_TYPES.get(entry.kind) or f"<u{bytes_of(entry.kind)}"
        )
        try:
            self._stream.seek(begin)
            # An empty array has no bytes to view.
            if size and self._stream.readinto(stored.view(np.uint8).data) != size:
                raise ValueError(f"tensor {name!r} is incomplete")
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        if entry.kind == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        elif entry.kind in NARROW_FLOATS:
            stored = NARROW_FLOATS[entry.kind][stored]
        return stored.astype(stored.dtype.newbyteorder("="), copy=False).reshape(entry.shape)

    def map(self, name: str) -> NDArray[Any] | None:
        entry, begin, size = self._entries[name]
        dtype = np.dtype(NUMPY_TYPES.get(entry.kind, "V"))
        if not size or not dtype.itemsize or begin % dtype.itemsize or not dtype.isnative:
            return None
        try:
            return np.memmap(self._stream, dtype, "c", begin, entry.shape)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        self._stream.close()


class _Shards(TensorFile):
    """The files that an index lists, each opened when a tensor of it is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._open: dict[str, _Safetensors] = {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
            self._home: dict[str, str] = dict(content["weight_map"])
            if not all(isinstance(file, str) for file in self._home.values()):
                raise ValueError("its weight_map does not name files")
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileFormatError(
                f"{path} is no index of safetensors shards ({first_line(error)}); write the files again."
            ) from error
        self.names = list(self._home)

    @property
    def files(self) -> list[Path]:
        """Those that are listed, whether they exist or not."""
        return [self.path.parent / file for file in dict.fromkeys(self._home.values())]

    def _shard(self, name: str) -> _Safetensors:
        file = self._home[name]
        if file not in self._open:
            shard = self.path.parent / file
            if not shard.is_file():
                raise FileFormatError(f"{shard}, which {self.path.name} lists, does not exist; fetch all shards.")
            self._open[file] = _Safetensors(shard)
        if name not in self._open[file].names:
            raise FileFormatError(
                f"{self.path} says that tensor {name!r} is in {file}, and it is not; write the files again."
            )
        return self._open[file]

    def entry(self, name: str) -> Entry:
        return self._shard(name).entry(name)

    def read(self, name: str) -> NDArray[Any]:
        return self._shard(name).read(name)

    def metadata_of(self, name: str) -> dict[str, str]:
        return self._shard(name).metadata

    def map(self, name: str) -> NDArray[Any] | None:
        return self._shard(name).map(name)

    def close(self) -> None:
        for file in self._open.values():
            file.close()


def unreadable(path: Path, name: str, kind: str) -> FileFormatError:
    """What is said about a tensor that cannot be turned into an array exactly."""
    return FileFormatError(
        f"{path}: tensor {name!r} is of type {kind}, which cannot be read as plain numbers; store it as float32 or "
        "float64."
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice!r} twice")
    return found


def bytes_of(kind: str) -> int:
    """Bytes of one value; 0 where the type is unknown."""
    if kind in NUMPY_TYPES:
        return np.dtype(NUMPY_TYPES[kind]).itemsize
    return 2 if kind == "BF16" else 1 if kind in NARROW_FLOATS else 0


def _float8(mantissa_bits: int, bias: int, nan: Sequence[int], infinity: int | None = None) -> NDArray[np.float32]:
    """All 256 values of an 8-bit float: sign, exponent, mantissa; ``nan`` and ``infinity`` are codes."""
    codes = np.arange(256)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes & 127) >> mantissa_bits
    size = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    values = np.ldexp(size.astype(np.float32), np.maximum(exponent, 1) - bias - mantissa_bits)
    if infinity is not None:
        values[[infinity, infinity | 128]] = np.inf
    values[list(nan)] = np.nan
    table: NDArray[np.float32] = np.where(codes & 128, -values, values).astype(np.float32)
    return table


#: The 256 values of each 8-bit float, by its code.
NARROW_FLOATS = {
    "F8_E4M3": _float8(3, 7, (0x7F, 0xFF)),
    "F8_E5M2": _float8(2, 15, (0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF), infinity=0x7C),
    "F8_E4M3FNUZ": _float8(3, 8, (0x80,)),
    "F8_E5M2FNUZ": _float8(2, 16, (0x80,)),
    # Powers of two alone: scales, and never weights.
    "F8_E8M0": np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan)).astype(np.float32),
}
