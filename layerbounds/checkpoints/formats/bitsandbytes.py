"""bitsandbytes: tables of 16 values (NF4, FP4), whose scales may be quantized once more, and integers of LLM.int8().

Layouts: the package bitsandbytes 0.50.2 (``QuantState`` in ``functional.py``, ``backends/default/ops.py``,
``nn/modules.py``).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.packing import unpack_nibbles
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.problems.codebooks import codebook
from layerbounds.problems.float_types import FLOAT_TYPES
from layerbounds.problems.grids import Grid

LABEL = "bitsandbytes"

_STATE = "weight.quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_PARTS = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", "SCB")
#: The values of 4-bit floats in the order of their codes, which is not that of OCP's E2M1.
_FP4 = np.array([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12


def names(source: Source) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    found = {name.partition(f".{_STATE}")[0] for name in source.names if f".{_STATE}" in name}
    for name in source.names:
        layer, _, end = name.rpartition(".")
        if end == "SCB" and f"{layer}.weight" in source.names:
            found.add(layer)
    return sorted(found)


def parts(source: Source, name: str) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    ends = (*_PARTS, "weight_format", *(f"{_STATE}{kind}" for kind in _KINDS))
    return [f"{name}.{end}" for end in ends if f"{name}.{end}" in source.names]


def read(source: Source, name: str) -> QuantizedWeight:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    if f"{name}.SCB" in source.names:
        return _eight_bits(source, name)
    for kind in _KINDS:
        if f"{name}.{_STATE}{kind}" in source.names:
            return _four_bits(source, name, kind)
    raise FileFormatError(f"{source.path}: layer {name!r} has a table of bitsandbytes that is not known here.")


def _made(
    source: Source, name: str, form: str, codes: Float, scale: Float, positions: Any, **more: Any
) -> QuantizedWeight:
    try:
        grid = Grid(codes, scale, np.zeros(()), positions.shape[1], label=form)
    except InputError as error:
        raise source.fault(f"layer {name!r} has an impossible grid: {error}") from error
    bits = source.bits(*parts(source, name))
    return QuantizedWeight(name, f"bitsandbytes {form}", grid, positions, positions.shape, bits=bits, **more)


def _eight_bits(source: Source, name: str) -> QuantizedWeight:
    weight = source.integers(f"{name}.weight")
    scale = source.floats(f"{name}.SCB")
    if weight.dtype != np.int8 or weight.ndim != 2 or not weight.size or scale.shape != weight.shape[:1]:
        raise source.fault(
            f"layer {name!r} has weights of type {weight.dtype} and shape {weight.shape} with scales of shape "
            f"{scale.shape}, where bytes and a scale for each output are expected"
        )
    if weight.min() < -127:
        raise source.fault(f"tensor {name + '.weight'!r} holds -128, which LLM.int8() does not")
    positions = weight.astype(np.int16) + 127
    codes = np.arange(-127.0, 128.0)
    return _made(source, name, "int8, a scale per channel", codes, scale[:, None] / 127, positions, dtype="float16")


def _four_bits(source: Source, name: str, kind: str) -> QuantizedWeight:
    state = _state(source, f"{name}.{_STATE}{kind}")
    shape, block, dtype = _described(source, name, state)
    out, n = shape
    packed = _bytes(source, f"{name}.weight")
    if len(packed) < (out * n + 1) // 2:
        raise source.fault(f"tensor {name + '.weight'!r} has {len(packed)} bytes, too few for weights of shape {shape}")
    fields = unpack_nibbles(packed[None], high_first=True)[0, : out * n].reshape(shape)
    codes, place = np.unique(_table(source, name, kind), return_inverse=True)
    scale, kept = _scales(source, name, state, -(-out * n // block))
    # Blocks run through the rows one after the other, and need not end where these do.
    size = math.gcd(n, block)
    first = np.arange(0, out * n, size).reshape(out, n // size)
    nested = " (nested)" if kept else ""
    return _made(
        source,
        name,
        f"{kind}, blocks of {block}{nested}",
        codes,
        scale[first // block],
        place.astype(np.uint8)[fields],
        dtype=dtype,
        parts=kept,
    )


def _state(source: Source, name: str) -> dict[str, Any]:
    values = source.integers(name)
    try:
        state = json.loads(values.astype(np.uint8).tobytes().decode("utf-8"))
        if isinstance(state, dict):
            return state
    except (ValueError, RecursionError):
        pass
    raise source.fault(f"tensor {name!r} does not hold the JSON that describes the layer")


def _described(source: Source, name: str, state: dict[str, Any]) -> tuple[tuple[int, int], int, str]:
    shape, block, dtype = state.get("shape"), state.get("blocksize"), state.get("dtype")
    whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if (
        not whole
        or type(block) is not int
        or not 0 < block < 2**31
        or not isinstance(dtype, str)
        or dtype not in FLOAT_TYPES
    ):
        raise source.fault(f"layer {name!r} is described by shape {shape}, blocksize {block} and dtype {dtype}")
    assert isinstance(shape, list)
    if len(shape) != 2:
        raise FileFormatError(
            f"{source.path}: layer {name!r} has shape {tuple(shape)}; only single matrices are read, no stacks of them."
        )
    return (shape[0], shape[1]), block, "float32" if dtype == "float64" else dtype


def _bytes(source: Source, name: str) -> NDArray[np.uint8]:
    """The bytes of a tensor, which may be declared as numbers of a wider type."""
    values = source.read(name)
    if source.entry(name).kind == "BF16":
        values = (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    elif source.entry(name).kind == "F16":
        values = values.astype(np.float16)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _table(source: Source, name: str, kind: str) -> Float:
    """The 16 values by their codes: those of the file, which have to be those that the name stands for."""
    given = source.floats(f"{name}.weight.quant_map")
    known = codebook("nf4") if kind == "nf4" else np.append(_FP4, -_FP4)
    if given.shape != (16,) or np.abs(given - known).max() > 1e-6:
        raise source.fault(f"tensor {name + '.weight.quant_map'!r} does not hold the 16 values of {kind}")
    return given + 0.0


def _scales(source: Source, name: str, state: dict[str, Any], count: int) -> tuple[Float, dict[str, NDArray[Any]]]:
    """A scale for each block; where they are quantized, in float32, in which bitsandbytes computes them."""
    absmax = f"{name}.weight.absmax"
    if f"{name}.weight.nested_absmax" not in source.names:
        scale = source.floats(absmax).ravel()
        if len(scale) != count:
            raise source.fault(f"tensor {absmax!r} has {len(scale)} scales for {count} blocks")
        return scale, {}
    codes = source.integers(absmax).ravel()
    table = source.floats(f"{name}.weight.nested_quant_map").ravel()
    outer = source.floats(f"{name}.weight.nested_absmax").ravel()
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if (
        type(block) is not int
        or not 0 < block < 2**31
        or not isinstance(offset, (int, float))
        or not abs(offset) < 1e30
    ):
        raise source.fault(f"layer {name!r} is described by nested_blocksize {block} and nested_offset {offset}")
    if codes.dtype != np.uint8 or len(codes) != count or len(table) != 256 or len(outer) != -(-count // block):
        raise source.fault(
            f"layer {name!r} has {len(codes)} codes of scales, a table of {len(table)} and {len(outer)} scales "
            f"of them for {count} blocks"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        share = outer.astype(np.float32)[np.arange(count) // block]
        single = table.astype(np.float32)[codes] * share + np.float32(offset)
    if not np.all(np.isfinite(single)):
        raise source.fault(f"scales of layer {name!r} exceed float32")
    kept: dict[str, NDArray[Any]] = {"block_scale": table[codes], "block_of_scales": outer, "offset": np.array(offset)}
    return single.astype(np.float64), kept
