"""llama.cpp: a file for ``llama-quantize --tensor-type-file``.

Each word of it is ``pattern=type``; a pattern is a regular expression that is searched for in a tensor's name, and the
first that is found counts (read in tools/quantize/quantize.cpp and src/llama-quant.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from layerbounds.allocation.formats.compression import DENSE, Compression, Format, InexpressibleError
from layerbounds.allocation.formats.gguf_names import gguf_name
from layerbounds.allocation.formats.matching import compiled
from layerbounds.exceptions import FileFormatError

#: Types whose levels are a grid of the package's: a 16-bit scale for each block of inputs (and a minimum in Q4_1 and
#: Q5_1, of which zero points are a special case). K-quants have scales that are quantized themselves.
_TYPES = {
    "q4_0": Compression(4, True, 32),
    "q4_1": Compression(4, False, 32),
    "q5_0": Compression(5, True, 32),
    "q5_1": Compression(5, False, 32),
    "q8_0": Compression(8, True, 32),
    "mxfp4": Compression(granularity=32, codebook="mxfp4"),
    "tq1_0": Compression(granularity=256, codebook="ternary"),
    "f16": Compression(DENSE),
}
#: Other names of the same grids.
_SAME = {"tq2_0": "tq1_0", "bf16": "f16", "f32": "f16"}


def _write(chosen: Mapping[str, Compression]) -> str:
    lines = []
    for name, wanted in chosen.items():
        if wanted.pruned:
            raise InexpressibleError(name, "it does not prune")
        kind = next((kind for kind, grid in _TYPES.items() if grid.same(wanted)), None)
        if kind is None:
            raise InexpressibleError(
                name,
                f"{wanted.label} is no type of it; it has 4, 5 and 8 bits with a scale per group of 32, MXFP4, and "
                "ternary weights with a scale per group of 256 (its K-quants quantize the scales, too)",
            )
        lines.append(f"^{re.escape(gguf_name(name))}$={kind}")
    return "\n".join(lines) + "\n"


def _read(text: str, names: Sequence[str]) -> dict[str, Compression]:
    rules = []
    for word in text.split():
        pattern, mark, kind = word.rpartition("=")
        if not mark or not pattern or not kind:
            raise FileFormatError(f"{word!r} in the file is no pattern=type; pass a file for --tensor-type-file.")
        rules.append((compiled(pattern.lower()), kind.lower()))
    if not rules:
        raise FileFormatError("the file is empty; pass a file for --tensor-type-file.")
    chosen = {}
    for name in names:
        tensor = gguf_name(name)
        found = next((kind for pattern, kind in rules if pattern.search(tensor)), None)
        if found is None:
            raise FileFormatError(
                f"the file says nothing about {tensor}, layer {name!r}, which then has the type of the whole model; "
                "write it for that tensor, too."
            )
        grid = _TYPES.get(_SAME.get(found, found))
        if grid is None:
            raise FileFormatError(
                f"type {found} of {tensor}, layer {name!r}, has levels that are no grid of a run; score types "
                f"{', '.join([*_TYPES, *_SAME])}."
            )
        chosen[name] = grid
    return chosen


FORMAT = Format("llama.cpp", "llama.cpp: a file for --tensor-type-file", _write, _read)
