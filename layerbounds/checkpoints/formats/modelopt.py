"""ModelOpt, NVIDIA's Model Optimizer: NVFP4, MX formats, 8-bit floats, integers.

Layouts: the package nvidia-modelopt 0.47.0 (``torch/export/quant_utils.py``, ``torch/quantization/qtensor``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.formats.narrow_floats import e2m1, float8
from layerbounds.checkpoints.formats.scales import DTYPES, block_of, by_channel, computing_type, exponents
from layerbounds.checkpoints.packing import unpack_nibbles
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.problems.grids import Grid

LABEL = "ModelOpt"

_WEIGHTS = ("weight", "weight_scale", "weight_scale_2")
_OTHERS = ("input_scale", "output_scale", "pre_quant_scale")
_FLOATS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
#: Variants whose weights are changed once more when they are used.
_UNKNOWN = ("W4A8_AWQ", "NVFP4_SVD", "NVFP4_SVDQUANT")


def names(source: Source) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    method = str(source.quantization.get("quant_method", ""))
    said = method.startswith("modelopt") or (not method and "quant_algo" in source.quantization)
    found = []
    for name in source.names:
        layer, _, end = name.rpartition(".")
        if end == "weight" and source.entry(name).kind in ("U8", "I8", *_FLOATS):
            second = f"{layer}.weight_scale_2" in source.names and not method
            if f"{layer}.weight_scale" in source.names and (said or second):
                found.append(layer)
    return sorted(found)


def parts(source: Source, name: str) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    return [f"{name}.{end}" for end in (*_WEIGHTS, *_OTHERS) if f"{name}.{end}" in source.names]


def read(source: Source, name: str) -> QuantizedWeight:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    algorithm = _algorithm(source, name)
    if algorithm in _UNKNOWN:
        raise FileFormatError(f"{source.path}: layer {name!r} is quantized by {algorithm}, a variant that is not read.")
    weight = f"{name}.weight"
    source.matrix(weight)
    decode = _packed if source.entry(weight).kind == "U8" else _bytes
    form, levels, positions, scale, kept = decode(source, name, f"{name}.weight_scale")
    notes: tuple[str, ...] = ()
    if f"{name}.pre_quant_scale" in source.names:
        notes = ("inputs are multiplied by pre_quant_scale before the layer: the weights are those of the products",)
    numbers, size = scale
    share = "a scale per channel or tensor" if size >= positions.shape[1] else f"groups of {size}"
    label = f"{form}, {share}"
    try:
        grid = Grid(levels, numbers, np.zeros(()), positions.shape[1], size, label=label)
    except InputError as error:
        raise source.fault(f"layer {name!r} has an impossible grid: {error}") from error
    bits = source.bits(*(f"{name}.{end}" for end in _WEIGHTS))
    return QuantizedWeight(name, label, grid, positions, positions.shape, computing_type(source), bits, notes, kept)


_Found = tuple[str, Float, NDArray[Any], tuple[Float, int], dict[str, NDArray[Any]]]


def _algorithm(source: Source, name: str) -> str:
    layers = source.quantization.get("quantized_layers")
    entry = layers.get(name) if isinstance(layers, dict) else None
    found = entry.get("quant_algo") if isinstance(entry, dict) else source.quantization.get("quant_algo")
    return str(found or "").upper()


def _packed(source: Source, name: str, scales: str) -> _Found:
    """Two weights in a byte."""
    packed = source.integers(f"{name}.weight")
    kind = source.entry(scales).kind
    second = f"{name}.weight_scale_2"
    if kind in DTYPES:
        # Neighbouring outputs share a byte, the first one in its low half, as signed integers.
        if second in source.names:
            raise FileFormatError(
                f"{source.path}: layer {name!r} has integers of 4 bits with {second!r}, a variant that is not read."
            )
        halves = unpack_nibbles(packed.T[..., None]).reshape(packed.shape[1], -1).T ^ 8
        shape = halves.shape
        found = by_channel(source, scales, _floats(source, scales), (shape[0], shape[1]))
        return "ModelOpt int4, 4 bits", np.arange(-8.0, 8.0), np.ascontiguousarray(halves), found, {}
    levels, positions = e2m1(unpack_nibbles(packed))
    shape = positions.shape[0], positions.shape[1]
    if second not in source.names and kind in ("U8", "F8_E8M0"):
        return "ModelOpt MXFP4", levels, positions, by_channel(source, scales, exponents(source, scales), shape), {}
    if kind != "F8_E4M3":
        raise source.fault(f"tensor {scales!r} is of type {kind}, which no scales of packed weights have")
    block, whole = source.floats(scales), source.floats(second)
    if whole.size != 1:
        raise source.fault(f"tensor {second!r} is not one number")
    kept = {"block_scale": block, "weight_scale_2": whole}
    # The scale of the tensor multiplies those of its groups, other than in compressed-tensors.
    return "ModelOpt NVFP4", levels, positions, by_channel(source, scales, block * whole.item(), shape), kept


def _bytes(source: Source, name: str, scales: str) -> _Found:
    """A byte for each weight."""
    entry = source.entry(f"{name}.weight")
    shape = entry.shape[0], entry.shape[1]
    kind = source.entry(scales).kind
    numbers = exponents(source, scales) if kind in ("U8", "F8_E8M0") else _floats(source, scales)
    scale = by_channel(source, scales, numbers, shape, block=block_of(source, scales, numbers, shape))
    if entry.kind == "I8":
        positions = source.integers(f"{name}.weight").astype(np.int16) + 128
        return "ModelOpt int8, 8 bits", np.arange(-128.0, 128.0), positions, scale, {}
    levels, codes = float8(source.floats(f"{name}.weight"), entry.kind)
    return f"ModelOpt FP8, {entry.kind.removeprefix('F8_')}", levels, codes, scale, {}


def _floats(source: Source, scales: str) -> Float:
    values = source.floats(scales)
    # Blocks may stand in a tensor of shape (blocks of outputs, 1, blocks of inputs, 1).
    return values[:, 0, :, 0] if values.ndim == 4 and values.shape[1::2] == (1, 1) else values
