"""Which layer of a checkpoint is which captured one: by name, as both call it, or as a map says."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from layerbounds.arguments import as_path
from layerbounds.exceptions import FileFormatError, InputError, UnknownNameError, first_line
from layerbounds.layers.layer import Layer
from layerbounds.layers.weight_files import canonical
from layerbounds.names import match_name

#: Matrices that some software keeps as one and other software apart: the name of the one, and of its parts.
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("query", "key", "value"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "in_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("w1", "w3"),
}


def pair(name: str, captured: Mapping[str, Layer], stored: Sequence[str], given: Mapping[str, str]) -> str | None:
    """The checkpoint's name of a captured layer; None where it has none.

    Parameters
    ----------
    name : str
    captured : mapping of name to Layer
        Read only where the layer may go by another name.
    stored : sequence of str
        The names of the checkpoint's quantized layers.
    given : mapping of str to str
        Names of the checkpoint by names of layers, which go before everything else.

    Raises
    ------
    UnknownNameError
        If a given name is not in the checkpoint, or the end of a name is not unique.
    """
    if name in given:
        return match_name(given[name], stored, "quantized layer in the checkpoint")
    known = {canonical(key): key for key in stored}
    found = _like(canonical(name), known)
    if found is None:
        tied = captured[name].provenance.get("tied_to")
        others = [text for text in tied if isinstance(text, str)] if isinstance(tied, list) else []
        found = next((key for other in others if (key := _like(canonical(other), known)) is not None), None)
    return found


def _like(name: str, known: Mapping[str, str]) -> str | None:
    """The one that is called so, or of which either name is the end of the other."""
    if name in known:
        return known[name]
    longer = [key for key in known if key.endswith(f".{name}")]
    if len(longer) > 1:
        raise UnknownNameError(f"layer {name!r} may be {', '.join(longer[:4])} of the checkpoint; say which in a map.")
    # The checkpoint of a model that is part of another one has shorter names; the longest is the least ambiguous.
    ends = longer or sorted((key for key in known if name.endswith(f".{key}")), key=len)[-1:]
    return known[ends[0]] if ends else None


def fused(name: str, stored: Sequence[str]) -> str | None:
    """Why a layer has no partner, where the checkpoint keeps it together with others, or in parts; None elsewhere."""
    body, _, last = canonical(name).rpartition(".")
    known = {canonical(key) for key in stored}
    for whole, parts in _FUSED.items():
        if last == whole and all(_held(body, part, known) for part in parts):
            return f"the checkpoint has it in parts ({', '.join(parts)}); capture the model with these"
        if last in parts and _held(body, whole, known):
            return f"the checkpoint has it fused with others, as {whole}; capture the model in that form"
    return None


def _held(body: str, last: str, known: set[str]) -> bool:
    name = f"{body}.{last}" if body else last
    return any(key == name or key.endswith(f".{name}") or name.endswith(f".{key}") for key in known)


def partners(names: Any, layers: Sequence[str]) -> dict[str, str]:
    """A map of names, checked: keys are names of captured layers, or unique ends of them.

    Parameters
    ----------
    names : mapping of str to str, path-like or None
        Or a file with it: a JSON object, or two columns (with a comma, a tab or blanks between), the captured layer's
        name first.
    layers : sequence of str
        The captured layers.

    Raises
    ------
    InputError
        If it is something else, or names a layer that was not captured.
    """
    if names is None:
        return {}
    read = _read(names) if isinstance(names, (str, os.PathLike)) else names
    if not isinstance(read, Mapping) or not all(isinstance(n, str) for pair in read.items() for n in pair):
        raise InputError("a map of names goes from the captured layers' names to those of the checkpoint, all texts.")
    return {match_name(name, layers, "captured layer"): other for name, other in read.items()}


def _read(path: Any) -> Mapping[str, str]:
    file = as_path(path, "names")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{file} cannot be read as a map of names ({first_line(error)}); check it.") from error
    if text.lstrip().startswith("{"):
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{file} is no JSON object ({first_line(error)}); write it again.") from error
        return value if isinstance(value, Mapping) else {}
    found: dict[str, str] = {}
    for row in csv.reader(text.splitlines()):
        cells = [cell.strip() for part in row for cell in re.split(r"\s+", part.strip()) if cell.strip()]
        if not cells or cells[0].startswith("#"):
            continue
        if len(cells) != 2 or cells[0] in found:
            raise FileFormatError(
                f"{file}: {' '.join(cells)[:60]!r} is not one captured layer and its name in the checkpoint, given "
                "once; write two columns."
            )
        found[cells[0]] = cells[1]
    return found
