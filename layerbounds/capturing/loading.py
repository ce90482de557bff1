"""Models, weights and data that the command line names: a factory in Python, a checkpoint, arrays."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from layerbounds.capturing.objects import load_object
from layerbounds.capturing.samples import SampleBatches
from layerbounds.capturing.targets import CaptureWarning
from layerbounds.exceptions import InputError
from layerbounds.layers.files import atomic_path
from layerbounds.layers.tensor_files import TensorFile, check_weight, open_tensors
from layerbounds.layers.weight_files import TRANSPARENT, canonical

#: What `nn.DataParallel`, training frameworks and the like put before all names.
_WRAPPERS = ("module.", "model.")
#: Buffers that models compute themselves, and that only some versions of them store.
_COMPUTED = ("num_batches_tracked", "position_ids", "inv_freq")


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


class ArrayBatches(SampleBatches):
    """The same as tensors."""

    def __getitem__(self, index: Any) -> Any:
        batch = super().__getitem__(index)
        return batch if self._preprocess is not None else torch.from_numpy(batch)
