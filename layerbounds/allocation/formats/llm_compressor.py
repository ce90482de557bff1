"""llm-compressor: a recipe (YAML) with a config group for each grid and a pruning stage for each pattern.

Targets are names of modules, exact ones before ``re:`` expressions, which match their beginnings, before classes of
modules (read in compressed-tensors, utils/match.py). ``mask_structure: "N:M"`` drops N of every M weights, where
patterns here keep N of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from layerbounds.allocation.formats.compression import Compression, Format, InexpressibleError, needs_integer_grid
from layerbounds.allocation.formats.matching import compiled, entry, flag, whole
from layerbounds.exceptions import FileFormatError, MissingExtraError, first_line

_BITS = (2, 3, 4, 5, 6, 7, 8)
#: With re-fitted weights, and with weights as they are.
_PRUNERS = {True: "SparseGPTModifier", False: "WandaPruningModifier"}
_QUANTIZERS = ("GPTQModifier", "QuantizationModifier", "AWQModifier")
#: Presets that quantize weights only.
_SCHEMES = {
    "W4A16": Compression(4, True, 128),
    "W4A16_ASYM": Compression(4, False, 128),
    "W8A16": Compression(8, True, "channel"),
}
#: The class that targets mean by this name: what captures hold is not only of it.
_CLASSES = ("Linear", "Conv2d", "Conv1d", "Conv1D", "Conv3d")


def _write(chosen: Mapping[str, Compression]) -> str:
    grids: dict[str, tuple[Compression, list[str]]] = {}
    patterns: dict[str, tuple[Compression, list[str]]] = {}
    kept = []
    for name, wanted in chosen.items():
        if wanted.quantized:
            needs_integer_grid(name, wanted, _BITS, tensor=True)
            key = f"{wanted.bits} {wanted.symmetric} {wanted.granularity}"
            grids.setdefault(key, (wanted, []))[1].append(name)
        if wanted.pruned:
            # Where a grid follows, SparseGPT chooses the mask.
            refit = wanted.refit or wanted.quantized
            key = f"{wanted.pattern} {wanted.density} {refit}"
            _dropped(wanted, name)
            patterns.setdefault(key, (replace(wanted, refit=refit), []))[1].append(name)
        if not wanted.quantized and not wanted.pruned:
            kept.append(name)
    lines = [line for i, part in enumerate(patterns.values()) for line in _pruning_stage(i, *part)]
    if grids:
        lines += ["quantization_stage:", "  quantization_modifiers:", "    GPTQModifier:"]
        lines += [f"      ignore: {json.dumps(kept)}", "      config_groups:"]
        lines += [line for i, part in enumerate(grids.values()) for line in _config_group(i, *part)]
    if not lines:
        raise InexpressibleError(next(iter(chosen)), "no layer is compressed")
    return "\n".join(lines) + "\n"


def _dropped(wanted: Compression, name: str) -> tuple[float, str]:
    """The sparsity and the structure of a mask in the tool's words."""
    match = re.fullmatch(r"(\d+):(\d+)", wanted.pattern or "")
    if match is not None:
        keep, size = int(match[1]), int(match[2])
        return (size - keep) / size, f"{size - keep}:{size}"
    if wanted.pattern == "unstructured" and wanted.density is not None:
        return 1.0 - wanted.density, "0:0"
    raise InexpressibleError(name, f"its patterns are unstructured and N:M, not {wanted.pattern}")


def _pruning_stage(number: int, wanted: Compression, names: Sequence[str]) -> list[str]:
    sparsity, structure = _dropped(wanted, names[0])
    return [
        f"pruning{number}_stage:",
        "  pruning_modifiers:",
        f"    {_PRUNERS[wanted.refit]}:",
        f"      sparsity: {sparsity!r}",
        f'      mask_structure: "{structure}"',
        *_targets(names, 6),
    ]


def _config_group(number: int, wanted: Compression, names: Sequence[str]) -> list[str]:
    grouped = not isinstance(wanted.granularity, str)
    return [
        f"        group_{number}:",
        "          weights:",
        f"            num_bits: {wanted.bits}",
        '            type: "int"',
        f"            symmetric: {json.dumps(wanted.symmetric)}",
        f"            strategy: {json.dumps('group' if grouped else wanted.granularity)}",
        *([f"            group_size: {wanted.granularity}"] if grouped else []),
        *_targets(names, 10),
    ]


def _targets(names: Sequence[str], indent: int) -> list[str]:
    return [" " * indent + "targets:", *(" " * indent + f"- {json.dumps(name)}" for name in names)]


def _read(text: str, names: Sequence[str]) -> dict[str, Compression]:
    chosen = {name: Compression() for name in names}
    for kind, said in _modifiers(_parsed(text)):
        ignored = _names(said.get("ignore"), "ignore")
        if kind in _QUANTIZERS:
            for name in names:
                grid = _grid(said, name)
                if grid is not None and not any(_meant(target, name) for target in ignored):
                    pruned = chosen[name]
                    chosen[name] = replace(grid, pattern=pruned.pattern, density=pruned.density)
        elif kind in _PRUNERS.values():
            targets = _names(said.get("targets", ["Linear"]), "targets")
            for name in names:
                if any(_meant(target, name) for target in targets) and not any(_meant(t, name) for t in ignored):
                    chosen[name] = replace(_pruning(kind, said), **_grid_of(chosen[name]))
        else:
            raise FileFormatError(
                f"the recipe has a {kind}, which is about more than the choice for each layer; leave it out."
            )
    return chosen


def _parsed(text: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "recipes of llm-compressor need PyYAML; run: pip install 'layerbounds[yaml]'"
        ) from error
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FileFormatError(f"the file is no YAML ({first_line(error)}); pass a recipe of llm-compressor.") from error
    if not isinstance(value, dict) or not any(str(key).endswith("_stage") for key in value):
        raise FileFormatError("the file has no stage (a key that ends with _stage); pass a recipe of llm-compressor.")
    return value


def _modifiers(recipe: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for stage, groups in recipe.items():
        if not str(stage).endswith("_stage"):
            continue
        for group, modifiers in entry(groups, str(stage)).items():
            if str(group).endswith("_modifiers"):
                for kind, said in entry(modifiers, str(group)).items():
                    yield str(kind), entry(said or {}, str(kind))


def _names(value: Any, what: str) -> list[str]:
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise FileFormatError(f"{what} in the recipe is {value!r}; write a list of names.")
    return values


def _meant(target: str, name: str) -> bool:
    if target.startswith("re:"):
        return compiled(target[3:]).match(name) is not None
    return target == name or target in _CLASSES


def _rank(target: str) -> int:
    """Exact names count before expressions, and those before classes."""
    return 2 if target in _CLASSES else int(target.startswith("re:"))


def _grid(said: Mapping[str, Any], name: str) -> Compression | None:
    """The grid that a modifier gives a layer, or None."""
    groups: list[tuple[list[str], Any]] = []
    for key, group in entry(said.get("config_groups") or {}, "config_groups").items():
        groups.append((_names(entry(group, str(key)).get("targets"), "targets"), group))
    scheme = said.get("scheme")
    if isinstance(scheme, str):
        groups.append((_names(said.get("targets", ["Linear"]), "targets"), scheme))
    elif scheme is not None:
        groups += [(_names(targets, "targets"), preset) for preset, targets in entry(scheme, "scheme").items()]
    fitting = [(_rank(t), i) for i, (targets, _) in enumerate(groups) for t in targets if _meant(t, name)]
    return _compression(groups[min(fitting)[1]][1], name) if fitting else None


def _compression(group: Any, name: str) -> Compression:
    if isinstance(group, str):
        if group.upper() not in _SCHEMES:
            raise FileFormatError(
                f"scheme {group!r} of layer {name!r} is none of {', '.join(_SCHEMES)}; write weights."
            )
        return _SCHEMES[group.upper()]
    if group.get("input_activations") or group.get("output_activations"):
        raise FileFormatError(f"the recipe quantizes activations of layer {name!r}, too; leave them out.")
    weights = entry(group.get("weights"), f"weights of {name}")
    if str(weights.get("type", "int")).lower() != "int":
        raise FileFormatError(
            f"type of layer {name!r} is {weights['type']!r}; only 'int' is a grid that a run can have."
        )
    bits = whole(weights.get("num_bits", 8), f"num_bits of {name!r}")
    symmetric = flag(weights.get("symmetric", True), f"symmetric of {name!r}")
    size, strategy = weights.get("group_size"), weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "group":
        return Compression(bits, symmetric, whole(size, f"group_size of {name!r}"))
    if strategy not in ("channel", "tensor"):
        raise FileFormatError(f"strategy of layer {name!r} is {strategy!r}; choose channel, tensor or group.")
    return Compression(bits, symmetric, strategy)


def _grid_of(wanted: Compression) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in ("bits", "symmetric", "granularity", "codebook")}


def _pruning(kind: str, said: Mapping[str, Any]) -> Compression:
    structure, refit = str(said.get("mask_structure", "0:0")), kind == _PRUNERS[True]
    match = re.fullmatch(r"(\d+):(\d+)", structure)
    if match is None:
        raise FileFormatError(f"mask_structure in the recipe is {structure!r}; write N:M.")
    drop, size = int(match[1]), int(match[2])
    if size:
        return Compression(pattern=f"{size - drop}:{size}", refit=refit)
    sparsity = said.get("sparsity")
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity <= 1:
        raise FileFormatError(f"sparsity in the recipe is {sparsity!r}; write one number from 0 to 1.")
    return Compression(pattern="unstructured", density=1.0 - sparsity, refit=refit)


FORMAT = Format("llm-compressor", "llm-compressor: recipe (YAML)", _write, _read)
