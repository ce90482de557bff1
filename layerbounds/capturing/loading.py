"""Models, weights and data that the command line names: a factory in Python, a checkpoint, arrays."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.files import atomic_path, read_tensors
from layerbounds.names import match_name


def load_object(spec: str, what: str) -> Any:
    """Import what ``module:name`` or ``folder/file.py:name`` denotes.

    Raises
    ------
    InputError
        If there is no such module, file or name, or importing it fails.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise InputError(f"{what} is {spec!r}; write module:name or folder/file.py:name.")
    # The console script, unlike `python -m`, does not look into the current folder.
    sys.path.insert(0, "")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: importing {place} failed ({type(error).__name__}: {error}); correct it.") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, name):
        raise InputError(f"{what}: {place} has no {name!r}; name a function or an object in it.")
    return getattr(module, name)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up there.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def build_model(spec: str) -> nn.Module:
    """Call the factory that ``module:name`` denotes.

    Raises
    ------
    InputError
        If it fails or returns no model.
    """
    factory = load_object(spec, "--model")
    if isinstance(factory, nn.Module):
        return factory
    try:
        model = factory()
    except Exception as error:
        raise InputError(f"--model: {spec}() failed ({type(error).__name__}: {error}); correct it.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--model: {spec}() returned a {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from a safetensors file, a folder of shards, or a PyTorch file read without running code.

    A ``module.`` before all names (DataParallel) and a ``state_dict`` entry around them are taken off.

    Raises
    ------
    FileFormatError
        If the file cannot be read, or holds more than tensors.
    InputError
        If names or shapes are not those of the model.
    """
    state = _read_state(path)
    prefix = "module."
    if state and all(key.startswith(prefix) for key in state) and not hasattr(model, "module"):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    try:
        problems = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the model: {text}; check the factory.") from error
    # Weights tied to others are stored once.
    missing = [key for key in problems.missing_keys if not _tied(model, key, state)]
    for keys, words in ((missing, "lacks"), (problems.unexpected_keys, "has tensors that the model lacks:")):
        if keys:
            shown = ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
            raise InputError(f"{path} {words} {shown}; the weights belong to another model.")


def _tied(model: nn.Module, key: str, state: Mapping[str, Tensor]) -> bool:
    own = model.state_dict(keep_vars=True)
    return any(other in state and own[other] is own[key] for other in own if other != key)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if path.is_dir():
        return _read_shards(path)
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist; check the path.")
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise FileFormatError(
                f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]}); it is damaged or holds code, "
                "which is never run: save model.state_dict() as safetensors."
            ) from error
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
            raise FileFormatError(f"{path} holds no state dict; save model.state_dict().")
        return content
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"{path} cannot be read as a safetensors file ({error}); it is truncated or of another format."
        ) from error
    return tensors


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return dict(_read_state(folder / "model.safetensors"))
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise FileFormatError(f"{index} is no index of safetensors shards ({error}); write the files again.") from error
    return {key: value for name in files for key, value in _read_state(folder / name).items()}


def save_state(path: Path, state: Mapping[str, Tensor], compressed: Sequence[str]) -> None:
    """Write a state dict as safetensors, atomically; names of tied weights are stored once, as `load_weights` expects.

    Parameters
    ----------
    path : Path
    state : mapping of name to Tensor
    compressed : sequence of str
        Names of the compressed layers, for the metadata.
    """
    own: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for key, value in state.items():
        mark = (value.data_ptr(), tuple(value.shape), tuple(value.stride()))
        if value.numel() and mark in seen:
            continue
        seen.add(mark)
        own[key] = value.detach().cpu().clone().contiguous()
    try:
        with atomic_path(path) as temporary:
            save_file(own, temporary, {"layerbounds.compressed": json.dumps(list(compressed))})
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path} ({error}); choose another file.") from error


class ArrayBatches(Sequence[Tensor]):
    """Batches of an array's rows as tensors, prepared one at a time; can be gone through again and again.

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
            return torch.from_numpy(np.array(batch, dtype=kind))
        # In float64, rounded once: the result does not depend on the order of the operations.
        values = batch.astype(np.float64) / (1.0 if self._divide is None else self._divide)
        shape = (1, -1) + (1,) * (values.ndim - 2)
        if self._mean is not None:
            values = values - np.reshape(self._mean, shape)
        if self._std is not None:
            values = values / np.reshape(self._std, shape)
        return torch.from_numpy(values.astype(np.float32))

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
        content = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(content, np.ndarray):
            if key is not None:
                raise InputError(f"{path} holds one array without a name; leave out --key.")
            return content
        with content:
            return np.asarray(content[_choose(list(content), key, path)])
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise FileFormatError(
            f"{path} cannot be read as an array ({error}); pass a .npy, .npz or safetensors file."
        ) from error


def _choose(names: list[str], key: str | None, path: Path) -> str:
    if key is not None:
        return match_name(key, names, f"array in {path}:")
    if len(names) != 1:
        raise InputError(f"{path} holds {len(names)} arrays ({', '.join(names[:8])}); choose one with --key.")
    return names[0]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of all safetensors and JSON files of a folder in the order of their names."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json")) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
