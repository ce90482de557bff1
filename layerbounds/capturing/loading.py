"""Models, weights and data that the command line names: a factory in Python, a checkpoint, arrays."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from layerbounds.capturing.targets import CaptureWarning
from layerbounds.exceptions import FileFormatError, InputError, first_line
from layerbounds.layers.files import atomic_path
from layerbounds.layers.tensor_files import INDEX_SUFFIX, TensorFile, check_weight, open_tensors, read_tensors
from layerbounds.layers.weight_files import TRANSPARENT, canonical
from layerbounds.names import match_name

#: What `nn.DataParallel`, training frameworks and the like put before all names.
_WRAPPERS = ("module.", "model.")
#: Buffers that models compute themselves, and that only some versions of them store.
_COMPUTED = ("num_batches_tracked", "position_ids", "inv_freq")


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
    except (Exception, SystemExit) as error:
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
    except (Exception, SystemExit) as error:
        raise InputError(f"--model: {spec}() failed ({type(error).__name__}: {error}); correct it.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--model: {spec}() returned a {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Load a state dict from any file or folder that `layerbounds.layers.tensor_files.open_tensors` reads.

    Names may differ from the model's by what wrappers put before them (``module.``, ``model.``, ``_orig_mod.``), on
    either side. Weights tied to others may be absent, and so may constants that models compute themselves.

    Parameters
    ----------
    model : nn.Module
    path : Path

    Returns
    -------
    list of str
        What a reader should know about how the file was understood; empty where it is the model's state dict as it is.

    Raises
    ------
    FileFormatError
        If the file cannot be read, or holds codes instead of weights.
    InputError
        If names or shapes are not those of the model.
    """
    wanted = model.state_dict(keep_vars=True)
    own = {key: value for key, value in wanted.items() if isinstance(value, Tensor)}
    parameters = {id(value) for value in model.parameters()}
    state: dict[str, Any] = {}
    with open_tensors(path) as file:
        # What modules keep beside tensors (`get_extra_state`) only files of PyTorch can hold.
        keys, notes = match_state([*file.names, *file.extra], list(wanted))
        if len(set(keys.values())) < len(keys):
            raise InputError(f"{path} has several tensors that the model knows by one name; save the state dict again.")
        for name in file.names:
            if keys[name] in own:
                _check_tensor(file, name, own[keys[name]])
        state |= {keys[name]: value for name, value in file.extra.items()}
        for name in file.names:
            value = torch.from_numpy(file.read(name))
            target = own.get(keys[name])
            if target is not None and target.is_floating_point():
                if id(target) in parameters and not bool(torch.isfinite(value).all()):
                    raise InputError(f"{path}: tensor {name!r} holds NaN or infinite values; repair the file first.")
                value = value.to(target.dtype)
            state[keys[name]] = value
        notes = [*file.notes, *notes]
    try:
        # Modules may convert what older versions of them have stored, so that they decide what is missing.
        problems = model.load_state_dict(state, strict=False)
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the model: {text}; check the factory.") from error
    missing = [k for k in problems.missing_keys if not _may_be_absent(k) and not _tied(k, own, state)]
    unexpected = [key for key in problems.unexpected_keys if not _may_be_absent(key)]
    names = {key: name for name, key in keys.items()}
    surplus = f"has tensors that the model lacks: {some([names.get(k, k) for k in unexpected])}" if unexpected else ""
    if missing or unexpected:
        what = " and ".join(part for part in (f"lacks {some(missing)}" if missing else "", surplus) if part)
        raise InputError(f"{path} {what}; the weights belong to another model, or their names have another prefix.")
    return [*notes, *(f"{names.get(key, key)} is not used" for key in problems.unexpected_keys)]


def match_state(names: Sequence[str], wanted: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Give the tensors of a file the names that a model has for them, apart from the parts that wrappers add.

    Returns
    -------
    keys : dict of str to str
        From names of the file to names of the model, or of the same form where the model has no such tensor.
    notes : list of str
        What was taken off or put before the names.
    """
    own = {canonical(key): key for key in wanted}
    shorter = {name: canonical(name) for name in names}
    best: dict[str, str] = {name: name for name in names}
    found, notes = -1, []
    for off, before in itertools.product(_wrappers(shorter.values()), _wrappers(own)):
        keys = {name: before + short.removeprefix(off) for name, short in shorter.items()}
        count = sum(key in own for key in keys.values())
        if count > found:
            found, best = count, {name: own.get(key, key) for name, key in keys.items()}
            notes = [f"{off!r} was taken off the names"] if off else []
            notes += [f"{before!r} was put before the names"] if before else []
    inside = sorted({part for name in names for part in name.split(".") if part in TRANSPARENT})
    return best, [*(f"{part!r} was taken out of the names" for part in inside), *notes]


def _wrappers(names: Iterable[str]) -> list[str]:
    """What wrappers may have put before all of some names: nothing, the first prefix, the first two, …."""
    found, rest = [""], list(names)
    while prefix := next((p for p in _WRAPPERS if rest and all(name.startswith(p) for name in rest)), None):
        found.append(found[-1] + prefix)
        rest = [name.removeprefix(prefix) for name in rest]
    return found


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def _check_tensor(file: TensorFile, name: str, value: Tensor) -> None:
    """Make sure that a tensor of a file can stand for one of the model."""
    if isinstance(value, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
        return
    if value.is_meta:
        raise InputError(
            f"the model has tensor {name!r} on the meta device, where nothing can be loaded; build it on the CPU."
        )
    if value.is_floating_point():
        check_weight(file, name)
    entry = file.entry(name)
    if entry.shape != tuple(value.shape):
        raise InputError(
            f"{file.path} does not fit the model: {name} has shape {entry.shape} and the model needs "
            f"{tuple(value.shape)}; check the factory."
        )


def _may_be_absent(key: str) -> bool:
    return key.rpartition(".")[2] in (*_COMPUTED, "_extra_state")


def _tied(key: str, own: Mapping[str, Tensor], present: Iterable[str]) -> bool:
    return key in own and any(own.get(other) is own[key] for other in present)


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
    left_out: list[str] = []
    seen: set[tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]] = set()
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized or value.is_meta:
            left_out.append(key)
            continue
        mark = (value.data_ptr(), value.dtype, tuple(value.shape), tuple(value.stride()))
        if value.numel() and mark in seen:
            continue
        seen.add(mark)
        own[key] = value.detach().cpu().clone().contiguous()
    if left_out:
        warnings.warn(
            f"safetensors cannot hold {some(left_out)}, left out of {path}: save result.state_dict with torch.save to "
            "keep it",
            CaptureWarning,
            stacklevel=2,
        )
    try:
        with atomic_path(path) as temporary:
            save_file(own, temporary, {"layerbounds.compressed": json.dumps(list(compressed))})
    except SafetensorError as error:
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


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of all safetensors and JSON files of a folder, which may be named by an index in it."""
    if path.name.endswith(INDEX_SUFFIX):
        path = path.parent
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json")) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
