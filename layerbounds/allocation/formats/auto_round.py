"""AutoRound: ``layer_config``, a mapping from names of layers, or regular expressions, to schemes.

A name that is no layer's is searched for in all names, as a regular expression if it has marks of one
(read in its compressors/layer_config/resolver.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from layerbounds.allocation.formats.compression import (
    DENSE,
    Compression,
    Format,
    InexpressibleError,
    needs_integer_grid,
)
from layerbounds.allocation.formats.matching import compiled, entry, flag, parsed_json, whole
from layerbounds.exceptions import FileFormatError

_BITS = (2, 3, 4, 8)
#: A scheme's values where it says nothing: those of W4A16.
_DEFAULTS: dict[str, Any] = {"bits": 4, "group_size": 128, "sym": True, "data_type": "int"}
_MARKS = (".*", "^", "$", "|", "(", ")", "[", "]", "?", "+")
_WHAT = "a layer_config of AutoRound as JSON"


def _write(chosen: Mapping[str, Compression]) -> str:
    said: dict[str, dict[str, Any]] = {}
    for name, wanted in chosen.items():
        if wanted.pruned:
            raise InexpressibleError(name, "it does not prune")
        if not wanted.quantized:
            said[name] = {"bits": DENSE, "data_type": "fp"}
            continue
        needs_integer_grid(name, wanted, _BITS, tensor=True)
        size = {"channel": -1, "tensor": 0}.get(str(wanted.granularity), wanted.granularity)
        said[name] = {"bits": wanted.bits, "group_size": size, "sym": wanted.symmetric, "data_type": "int"}
    return json.dumps(said, indent=2) + "\n"


def _read(text: str, names: Sequence[str]) -> dict[str, Compression]:
    config = parsed_json(text, _WHAT)
    config = entry(config.get("layer_config", config), "layer_config")
    chosen: dict[str, Compression] = {}
    for key, value in config.items():
        if key not in names:
            expression = compiled(key if any(mark in key for mark in _MARKS) else re.escape(key))
            for name in names:
                # What names a layer itself counts before expressions.
                if name not in config and expression.search(name):
                    chosen[name] = _compression(value, name)
    for name in names:
        if name in config:
            chosen[name] = _compression(config[name], name)
        elif name not in chosen:
            raise FileFormatError(
                f"the file says nothing about layer {name!r}, which then has the scheme of the whole model; write it "
                "for that layer, too."
            )
    return chosen


def _compression(value: Any, name: str) -> Compression:
    if isinstance(value, str):
        preset = re.fullmatch(r"W([2-8])A16(_ASYM)?", value.upper())
        if value.upper() in ("BF16", "FP16"):
            return Compression()
        if preset is None:
            raise FileFormatError(
                f"scheme {value!r} of layer {name!r} is none of W2A16 to W8A16; write bits, group_size and sym."
            )
        return Compression(int(preset[1]), preset[2] is None, 128)
    said = entry(value, name)
    values = {**_DEFAULTS, **said}
    bits = whole(values["bits"], f"bits of {name!r}")
    if bits >= DENSE:
        return Compression()
    if values["data_type"] != "int":
        raise FileFormatError(
            f"data_type of layer {name!r} is {values['data_type']!r}; only 'int' is a grid that a run can have."
        )
    if whole(values.get("act_bits") or DENSE, f"act_bits of {name!r}") < DENSE:
        raise FileFormatError(f"the file quantizes what layer {name!r} sees, too; leave out act_bits.")
    size = whole(values["group_size"], f"group_size of {name!r}")
    if size < -1:
        raise FileFormatError(f"group_size of {name!r} in the file is {size}; write -1, 0 or a number of inputs.")
    shared: str | int = {-1: "channel", 0: "tensor"}.get(size, size)
    return Compression(bits, flag(values["sym"], f"sym of {name!r}"), shared)


FORMAT = Format("auto-round", "AutoRound: layer_config (JSON)", _write, _read)
