"""A model directory as the template of another one: what changes is replaced, everything else is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from layerbounds.capturing.huggingface import is_model_directory
from layerbounds.capturing.loading import match_state
from layerbounds.capturing.targets import Target
from layerbounds.compression.destinations.places import new_folder
from layerbounds.exceptions import FileFormatError, InputError, first_line
from layerbounds.layers.tensor_files import INDEX_SUFFIX, Entry, open_tensors

#: Ends of files that hold weights or say how others are quantized: those are written anew or do not fit any more.
_NOT_COPIED = (
    ".safetensors", INDEX_SUFFIX, ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5",
    ".msgpack", ".part", "quantize_config.json", "quant_config.json", "hf_quant_config.json",
)  # fmt: skip
_CONFIG = "config.json"
_KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class ModelFolder:
    """A directory with config.json and safetensors files, from which a model was loaded.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    config : dict
        ``config.json``.
    entries : dict of str to Entry
        Type and shape of each tensor.

    Raises
    ------
    InputError
        If it is none, or one of a quantized model.
    """

    def __init__(self, path: Path) -> None:
        if not is_model_directory(path):
            raise InputError(
                f"the template {path} is no folder with a {_CONFIG}; pass the directory of the dense model."
            )
        try:
            self.config: dict[str, Any] = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path / _CONFIG} cannot be read ({first_line(error)}); write it again.") from error
        if not isinstance(self.config, dict):
            raise FileFormatError(f"{path / _CONFIG} is no JSON object; write it again.")
        if self.config.get("quantization_config") or self.config.get("compression_config"):
            raise InputError(f"the template {path} is quantized already; pass the directory of the dense model.")
        self.path = path
        with open_tensors(path) as file:
            self.entries: dict[str, Entry] = {name: file.entry(name) for name in file.names}
            self._weights = file.path
        if not self._weights.name.endswith((".safetensors", INDEX_SUFFIX)):
            raise FileFormatError(f"the template {path} holds no safetensors files; save the model as such.")
        self._shards = _shards(self._weights)
        #: Tensors of the layers that are compressed.
        self._layers: set[str] = set()

    def names(self, model: nn.Module, targets: Sequence[Target]) -> dict[str, str]:
        """The tensor that holds the weight of each layer.

        Raises
        ------
        InputError
            If there is none, or it has another shape or type than in the model.
        """
        stored = self.keys(model)
        found: dict[str, str] = {}
        for target in targets:
            name = next(
                (stored[k] for path in (target.name, *target.aliases) if (k := f"{path}.weight") in stored), None
            )
            if name is None:
                raise InputError(
                    f"the template {self.path} has no tensor for layer {target.name!r}; pass the directory from which "
                    "the model was loaded."
                )
            weight, entry = target.module.weight, self.entries[name]
            assert isinstance(weight, Tensor)
            have = (_KINDS.get(weight.dtype, str(weight.dtype)), tuple(weight.shape))
            if have != (entry.kind, entry.shape):
                raise InputError(
                    f"layer {target.name!r} is {have[0]} of shape {have[1]} in the model and {entry.kind} of shape "
                    f"{entry.shape} in the template {self.path}; load the model from it, in the type of its file "
                    '(dtype="auto").'
                )
            found[target.name] = name
        self._layers = {f"{name.removesuffix('weight')}{end}" for name in found.values() for end in ("weight", "bias")}
        return found

    def matrices(self) -> list[str]:
        """The layers of the file whose weights are matrices."""
        names = [name for name, entry in self.entries.items() if len(entry.shape) == 2]
        return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]

    def keys(self, model: nn.Module) -> dict[str, str]:
        """From names in the model's state dict to names of tensors, of those that are in both."""
        wanted = list(model.state_dict(keep_vars=True))
        matched, _ = match_state(list(self.entries), wanted)
        known = set(wanted)
        return {key: name for name, key in matched.items() if key in known}

    def write(
        self,
        out: Path,
        model: nn.Module,
        replaced: Callable[[str], Mapping[str, Tensor] | None],
        config: Mapping[str, Any],
        check: Callable[[Path], None],
        others: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write a directory like this one.

        Parameters
        ----------
        out : Path
            A folder that does not exist yet, or is empty.
        model : nn.Module
            Tensors that it has otherwise than the template are written as it has them.
        replaced : callable
            From the name of a tensor to those that stand in its place, or None.
        config : mapping
            Entries of ``config.json``.
        check : callable
            Gets the folder before it has its name.
        others : mapping of str to mapping, optional
            More JSON files.
        """
        state = model.state_dict()
        values = {name: state[key] for key, name in self.keys(model).items()}
        if getattr(model, "_weight_conversions", None):
            # transformers has turned tensors of the file into others: those of one name need not be the same.
            values = {name: value for name, value in values.items() if name in self._layers}
        with new_folder(out) as folder:
            self._copy_files(folder)
            for name, content in {_CONFIG: {**self.config, **config}, **(others or {})}.items():
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                (folder / name).write_text(text, encoding="utf-8")
            homes: dict[str, str] = {}
            total = 0
            for shard in self._shards:
                tensors, metadata = self._shard(shard, values, replaced)
                save_file(tensors, folder / shard.name, metadata)
                homes |= dict.fromkeys(tensors, shard.name)
                total += sum(value.numel() * value.element_size() for value in tensors.values())
            if self._weights.name.endswith(INDEX_SUFFIX):
                index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
                (folder / self._weights.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            check(folder)

    def _copy_files(self, folder: Path) -> None:
        for file in sorted(self.path.iterdir()):
            if file.is_file() and file.name != _CONFIG and not file.name.endswith(_NOT_COPIED):
                shutil.copyfile(file, folder / file.name)

    def _shard(
        self, shard: Path, values: Mapping[str, Tensor], replaced: Callable[[str], Mapping[str, Tensor] | None]
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118
                instead = replaced(name)
                if instead is not None:
                    tensors |= {key: value.contiguous() for key, value in instead.items()}
                    continue
                stored, value = file.get_tensor(name), values.get(name)
                if value is not None and (value.dtype, value.shape) == (stored.dtype, stored.shape):
                    stored = value.detach().cpu().clone()
                tensors[name] = stored.contiguous()
        return tensors, {"format": "pt", **metadata}


def _shards(weights: Path) -> list[Path]:
    if not weights.name.endswith(INDEX_SUFFIX):
        return [weights]
    homes = json.loads(weights.read_text(encoding="utf-8"))["weight_map"]
    return [weights.parent / name for name in dict.fromkeys(homes.values())]
