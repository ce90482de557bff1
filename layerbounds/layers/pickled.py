"""State dicts that `torch.save` wrote, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from layerbounds.exceptions import FileFormatError, first_line
from layerbounds.layers.tensor_files import Entry, TensorFile, unreadable

#: What training scripts call the entry with the state dict, beside the optimizer's and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")

_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
if hasattr(torch, "float8_e8m0fnu"):  # PyTorch 2.7
    _KINDS[torch.float8_e8m0fnu] = "F8_E8M0"


class PickledTensors(TensorFile):
    """A state dict, or one in a dict around it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            # What PyTorch says begins with advice to run the code.
            raise FileFormatError(
                f"{path} cannot be read as plain tensors: it is damaged or holds a whole model or other objects, whose "
                "code is never run; save model.state_dict()."
            ) from error
        except Exception as error:
            raise FileFormatError(
                f"{path} cannot be read as plain tensors ({first_line(error)}); it is damaged: save model.state_dict() "
                "again."
            ) from error
        state, entries = _state_dict(content, path)
        self.notes = (f"the weights are those of its entry {'.'.join(entries)!r}",) if entries else ()
        self.extra = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        self._tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        self.names = list(self._tensors)

    def entry(self, name: str) -> Entry:
        """See `TensorFile.entry`."""
        value = self._tensors[name]
        return Entry(_KINDS.get(value.dtype, str(value.dtype).removeprefix("torch.")), tuple(value.shape))

    def read(self, name: str) -> NDArray[Any]:
        """See `TensorFile.read`."""
        value = self._tensors[name].detach()
        for wrong, word in (
            (value.is_meta, "meta, without values"),
            (value.is_quantized, f"quantized {value.dtype}"),
            (value.layout is not torch.strided or value.is_nested, f"{str(value.layout).removeprefix('torch.')}"),
        ):
            if wrong:
                raise unreadable(self.path, name, word)
        kind = self.entry(name).kind
        if kind not in _KINDS.values():
            raise unreadable(self.path, name, kind)
        if value.is_floating_point() and value.dtype not in (torch.float64, torch.float32):
            # Exact, and NumPy has a type for it.
            value = value.to(torch.float32)
        array: NDArray[Any] = value.resolve_neg().numpy()
        return array

    def close(self) -> None:
        """See `TensorFile.close`."""
        self._tensors.clear()


def _state_dict(content: Any, path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The state dict in what was loaded, and the names of the entries around it."""
    entries: list[str] = []
    while not _is_state_dict(content):
        inner = [
            key
            for key in _WRAPPERS
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) and len(content[key])
        ]
        if len(inner) > 1:
            raise FileFormatError(
                f"{path} holds several state dicts ({', '.join(inner)}); save the right one by itself as safetensors."
            )
        if not inner:
            raise FileFormatError(f"{path} holds no state dict; save model.state_dict().")
        entries += inner
        content = content[inner[0]]
    return content, entries


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and all(isinstance(key, str) for key in content)
        and any(isinstance(value, Tensor) for value in content.values())
        and all(isinstance(value, Tensor) or key.endswith("_extra_state") for key, value in content.items())
    )
