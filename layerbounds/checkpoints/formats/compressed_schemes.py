"""What the configuration of a compressed-tensors checkpoint says about each layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerbounds.checkpoints.source import Source


@dataclass(frozen=True)
class Scheme:
    """How the weights of a layer are quantized; None where the configuration does not say.

    Attributes
    ----------
    bits : int or None
    group_size : int or None
        Inputs that share a scale, where they come in groups.
    block : tuple of int or None
        Outputs and inputs that share a scale, where they come in blocks.
    form : str or None
        Of storage: ``"pack-quantized"``, ….
    """

    bits: int | None = None
    group_size: int | None = None
    block: tuple[int, int] | None = None
    form: str | None = None


def scheme_of(source: Source, name: str) -> tuple[Scheme, tuple[str, ...]]:
    """The scheme of a layer, and notes on how it was found.

    Targets are names of layers, patterns (``re:…``) or classes of modules, in this order of precedence. A file does not
    say which class a layer has, so that the first group with a class is taken (``Linear`` before others).

    Raises
    ------
    FileFormatError
        If the configuration is not of the form that compressed-tensors writes.
    """
    groups = source.quantization.get("config_groups")
    if not groups:
        return Scheme(), ("no configuration describes the layer: what its tensors show was taken",)
    if not isinstance(groups, Mapping):
        raise source.fault("config_groups of its configuration is no table")
    named: list[tuple[bool, str, Any]] = []
    classes: dict[str, Any] = {}
    for label, group in groups.items():
        if isinstance(group, list):
            # The name of a scheme that compressed-tensors knows, and its targets.
            group = {"targets": group}
        if not isinstance(group, Mapping) or not isinstance(group.get("targets"), list):
            raise source.fault(f"group {label!r} of its configuration has no list of targets")
        for target in map(str, group["targets"]):
            pattern = target.startswith("re:")
            if target == name or (pattern and _matches(source, target, name)):
                named.append((pattern, target, group))
            elif not pattern and "." not in target:
                classes[target] = group
    if named:
        # The order in which compressed-tensors itself prefers them.
        return _scheme(source, min(named, key=lambda found: found[:2])[2]), ()
    if not classes:
        return Scheme(), ("no group of the configuration names the layer: what its tensors show was taken",)
    chosen = "Linear" if "Linear" in classes else next(iter(classes))
    notes = () if len(classes) == 1 else (f"its configuration was taken to be that of the class {chosen}",)
    return _scheme(source, classes[chosen]), notes


def _matches(source: Source, target: str, name: str) -> bool:
    try:
        return re.match(target.removeprefix("re:"), name) is not None
    except re.error as error:
        raise source.fault(f"target {target!r} of its configuration is no regular expression") from error


def _scheme(source: Source, group: Mapping[str, Any]) -> Scheme:
    weights = group.get("weights")
    form = group.get("format") or source.quantization.get("format")
    if form == "mixed-precision" or not isinstance(form, str):
        form = None
    if not isinstance(weights, Mapping):
        return Scheme(form=form)
    bits, size, block = weights.get("num_bits"), weights.get("group_size"), weights.get("block_structure")
    if isinstance(block, str):
        block = block.split("x")
    try:
        return Scheme(
            bits=None if bits is None else int(bits),
            group_size=int(size) if size is not None and int(size) > 0 else None,
            block=None if block is None else (int(block[0]), int(block[1])),
            form=form,
        )
    except (TypeError, ValueError, IndexError) as error:
        raise source.fault(f"its configuration describes weights by {dict(weights)}") from error
