"""Arrays of samples in files, and batches of them; importable without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import FileFormatError, InputError, first_line
from layerbounds.layers.tensor_files import open_tensors, read_tensors
from layerbounds.names import match_name


class SampleBatches(Sequence[Any]):
    """Batches of an array's rows, prepared one at a time; can be gone through again and again.

    Parameters
    ----------
    array : ndarray
        First axis: samples.
    size : int
        Samples in a batch.
    divide : float, optional
        What values are divided by first.
    mean, std : sequence of float, optional
        Subtracted from, and divided into, the second axis (the channels) of samples after that.
    preprocess : callable, optional
        From a batch of the array to the model's input, instead of all that.
    """

    def __init__(
        self,
        array: NDArray[Any],
        size: int,
        *,
        divide: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        preprocess: Any = None,
    ) -> None:
        scaled = divide is not None or mean is not None or std is not None
        if size < 1:
            raise InputError(f"the batch size is {size}; pass a positive number.")
        if preprocess is not None and scaled:
            raise InputError("pass either --preprocess or --divide, --mean and --std.")
        if array.ndim == 0 or len(array) == 0:
            raise InputError("the data hold no sample; pass an array whose first axis are samples.")
        if array.dtype.kind not in "fiu":
            raise InputError(f"the data are of type {array.dtype}; pass an array of numbers.")
        if preprocess is None and not scaled and array.dtype == np.uint8:
            raise InputError(
                "the data are bytes, as images are stored, and a model sees scaled ones; pass --divide 255 with --mean "
                "and --std as in training (--divide 1 for raw values), or --preprocess."
            )
        for what, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) not in (1, array.shape[1] if array.ndim > 1 else 1):
                raise InputError(
                    f"{what} has {len(values)} values for data of shape {array.shape}; pass one, or one per channel."
                )
        if divide == 0 or (std is not None and 0 in std):
            raise InputError("divide and std must not be zero.")
        if not np.isfinite([1.0 if divide is None else divide, *(mean or ()), *(std or ())]).all():
            raise InputError("divide, mean and std must be finite numbers.")
        self._array, self._size, self._preprocess = array, size, preprocess
        self._divide, self._mean, self._std = divide, mean, std
        self._scaled = scaled

    def __len__(self) -> int:
        return -(-len(self._array) // self._size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch = self._array[index * self._size : (index + 1) * self._size]
        if self._preprocess is not None:
            try:
                return self._preprocess(batch)
            except Exception as error:
                raise InputError(
                    f"--preprocess failed on batch {index} of shape {batch.shape} ({type(error).__name__}: {error}); "
                    "correct it."
                ) from error
        if not self._scaled:
            # Integers are token ids.
            kind = np.int64 if batch.dtype.kind in "iu" else np.float32
            return np.array(batch, dtype=kind)
        # In float64, rounded once: the result does not depend on the order of the operations.
        values = batch.astype(np.float64) / (1.0 if self._divide is None else self._divide)
        shape = (1, -1) + (1,) * (values.ndim - 2)
        if self._mean is not None:
            values = values - np.reshape(self._mean, shape)
        if self._std is not None:
            values = values / np.reshape(self._std, shape)
        return values.astype(np.float32)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def read_array(path: Path, key: str | None) -> NDArray[Any]:
    """Read one array of a .npy, .npz or safetensors file.

    Raises
    ------
    FileFormatError
        If the file cannot be read.
    InputError
        If it holds several arrays and none is named, or none of that name.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is not a file; check the path.")
    if path.suffix == ".safetensors":
        tensors, _ = read_tensors(path, lambda names: [_choose(list(names), key, path)])
        return next(iter(tensors.values()))
    try:
        if path.suffix == ".npy":
            return _unnamed(np.load(path, mmap_mode="r", allow_pickle=False), key, path)
        # A damaged archive would leave a file open that NumPy has opened itself.
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return _unnamed(content, key, path)
            with content:
                return np.asarray(content[_choose(list(content), key, path)])
    except InputError:
        raise
    except Exception as error:
        # Damaged archives raise what zipfile, zlib, pickle and struct think fit.
        raise FileFormatError(
            f"{path} cannot be read as an array ({first_line(error)}); pass a .npy, .npz or safetensors file."
        ) from error


def array_names(path: Path) -> list[str]:
    """Names of the arrays in a .npz or safetensors file; none where it cannot be read, which `read_array` explains."""
    try:
        if path.suffix == ".safetensors":
            with open_tensors(path) as file:
                return list(file.names)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return list(content)
    except Exception:
        return []


def _unnamed(array: NDArray[Any], key: str | None, path: Path) -> NDArray[Any]:
    if key is not None:
        raise InputError(f"{path} holds one array without a name; leave out --key.")
    return array


def _choose(names: list[str], key: str | None, path: Path) -> str:
    if key is not None:
        return match_name(key, names, f"array in {path}:")
    if len(names) != 1:
        raise InputError(f"{path} holds {len(names)} arrays ({', '.join(names[:8])}); choose one with --key.")
    return names[0]
