"""Floats of eight and four bits with scales of blocks, as DeepSeek and transformers store them.

Layouts: ``integrations/finegrained_fp8.py`` and ``fbgemm_fp8.py`` of transformers 5.23.
"""

from __future__ import annotations

import numpy as np

from layerbounds.checkpoints.formats.narrow_floats import e2m1, float8
from layerbounds.checkpoints.formats.scales import block_of, by_channel, computing_type, exponents
from layerbounds.checkpoints.packing import unpack_nibbles
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import InputError
from layerbounds.problems.grids import Grid

LABEL = "FP8"

_FLOATS = ("F8_E4M3", "F8_E5M2")
_PARTS = ("weight", "weight_scale_inv", "weight_scale", "activation_scale", "input_scale", "input_scale_ub")


def names(source: Source) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    plain = source.quantization.get("quant_method") in ("fp8", "fbgemm_fp8")
    found = []
    for name in source.names:
        layer, _, end = name.rpartition(".")
        if end == "weight" and source.entry(name).kind in (*_FLOATS, "I8"):
            scales = _scales(source, layer)
            if scales in source.names and (plain or scales.endswith("_inv")):
                found.append(layer)
    return sorted(found)


def parts(source: Source, name: str) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    return [f"{name}.{end}" for end in _PARTS if f"{name}.{end}" in source.names]


def read(source: Source, name: str) -> QuantizedWeight:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    weight, scales = f"{name}.weight", _scales(source, name)
    source.matrix(weight)
    stored = source.entry(weight).kind
    if stored == "I8":
        # Two floats of four bits in a byte, the low half first.
        levels, positions = e2m1(unpack_nibbles(source.integers(weight).view(np.uint8)))
        what = "FP4, E2M1"
    else:
        levels, positions = float8(source.floats(weight), stored)
        what = f"FP8, {stored.removeprefix('F8_')}"
    shape = positions.shape[0], positions.shape[1]
    kind = source.entry(scales).kind
    numbers = exponents(source, scales) if kind in ("U8", "F8_E8M0") else source.floats(scales)
    block = block_of(source, scales, numbers, shape)
    scale, size = by_channel(source, scales, numbers, shape, block=block)
    if block:
        share = f"blocks of {block[0]} x {block[1]}"
    else:
        share = "a scale per channel or tensor" if size >= shape[1] else f"groups of {size}"
    label = f"{what}, {share}"
    try:
        grid = Grid(levels, scale, np.zeros(()), shape[1], size, label=label)
    except InputError as error:
        raise source.fault(f"layer {name!r} has an impossible grid: {error}") from error
    return QuantizedWeight(name, label, grid, positions, shape, computing_type(source), source.bits(weight, scales))


def _scales(source: Source, name: str) -> str:
    inverse = f"{name}.weight_scale_inv"
    return inverse if inverse in source.names else f"{name}.weight_scale"
