"""GPTQModel: the arguments of a quantization config, with ``dynamic`` for each layer.

Keys of ``dynamic`` are regular expressions that match the beginning of a module's name, ``-:`` before those that are
not quantized; the first that matches counts, those with ``-:`` before all others (read in its
quantization/config.py).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from layerbounds.allocation.formats.compression import Compression, Format, InexpressibleError, needs_integer_grid
from layerbounds.allocation.formats.matching import compiled, entry, flag, parsed_json, whole
from layerbounds.exceptions import FileFormatError

_BITS = (2, 3, 4, 8)
#: What a config says about layers where it says nothing.
_DEFAULTS = {"bits": 4, "group_size": 128, "sym": True}
_WHAT = "a quantize_config.json of GPTQModel, or its `dynamic`"


def _write(chosen: Mapping[str, Compression]) -> str:
    said: dict[str, dict[str, Any]] = {}
    for name, wanted in chosen.items():
        if wanted.pruned:
            raise InexpressibleError(name, "it does not prune")
        if not wanted.quantized:
            said[f"-:^{re.escape(name)}$"] = {}
            continue
        needs_integer_grid(name, wanted, _BITS, tensor=False)
        said[f"+:^{re.escape(name)}$"] = _values(wanted)
    if not any(said.values()):
        raise InexpressibleError(next(iter(chosen)), "no layer is quantized")
    # Layers that the allocation does not know get what most of the others have.
    common = Counter(json.dumps(values) for values in said.values() if values).most_common(1)[0][0]
    ordered = {**{k: v for k, v in said.items() if not v}, **{k: v for k, v in said.items() if v}}
    return json.dumps({**json.loads(common), "dynamic": ordered}, indent=2) + "\n"


def _values(wanted: Compression) -> dict[str, Any]:
    size = -1 if wanted.granularity == "channel" else wanted.granularity
    return {"bits": wanted.bits, "group_size": size, "sym": wanted.symmetric}


def _read(text: str, names: Sequence[str]) -> dict[str, Compression]:
    config = parsed_json(text, _WHAT)
    if "dynamic" in config or "bits" in config:
        rules, common = entry(config.get("dynamic") or {}, "dynamic"), {**_DEFAULTS, **config}
    else:
        rules, common = config, _DEFAULTS
    ordered = sorted(rules.items(), key=lambda rule: not rule[0].startswith("-"))
    patterns = [(key[:1] == "-", compiled(re.sub(r"^[+-]:", "", key)), value) for key, value in ordered]
    chosen = {}
    for name in names:
        kept, values = False, dict(common)
        for negative, pattern, said in patterns:
            if pattern.match(name):
                kept, values = negative, {**common, **({} if negative else entry(said, pattern.pattern))}
                break
        chosen[name] = Compression() if kept else _compression(values, name)
    return chosen


def _compression(values: Mapping[str, Any], name: str) -> Compression:
    bits, size = whole(values["bits"], f"bits of {name!r}"), whole(values["group_size"], f"group_size of {name!r}")
    if size != -1 and size < 1:
        raise FileFormatError(f"group_size of {name!r} in the file is {size}; write -1 or a number of inputs.")
    return Compression(bits, flag(values["sym"], f"sym of {name!r}"), "channel" if size == -1 else size)


FORMAT = Format("gptqmodel", "GPTQModel: quantize_config with `dynamic` (JSON)", _write, _read)
