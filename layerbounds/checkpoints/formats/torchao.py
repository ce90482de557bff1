"""torchao: its tensor subclasses in safetensors files, described by JSON in the file's metadata.

Layouts: the package torchao 0.18.0 (``prototype/safetensors``, ``quantization/quantize_/workflows``,
``prototype/mx_formats``); what ``Int4Tensor`` means by its numbers is said by the quantizer that makes them
(``int4_row_quantize_zp`` of MSLK).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.formats.narrow_floats import e2m1, float8, six_bits
from layerbounds.checkpoints.packing import unpack_nibbles
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.tensor_files import FLOAT_NAMES
from layerbounds.problems.float_types import FLOAT_TYPES
from layerbounds.problems.grids import Grid

LABEL = "torchao"

_DATA = re.compile(r"(?P<module>.*)\._(?P<parameter>[^.]+)_qdata")


def names(source: Source) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    found = []
    for name in source.names:
        match = _DATA.fullmatch(name)
        if match:
            end = match["parameter"]
            found.append(match["module"] if end == "weight" else f"{match['module']}.{end}")
    return sorted(found)


def parts(source: Source, name: str) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    prefix = _prefix(source, name)
    return sorted(other for other in source.names if other.startswith(prefix))


def read(source: Source, name: str) -> QuantizedWeight:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    prefix = _prefix(source, name)
    module, _, parameter = prefix[:-1].rpartition("._")
    described = source.metadata_of(f"{prefix}qdata").get(f"{module}.{parameter}")
    try:
        content = json.loads(described or "")
        kind, values = str(content["_type"]), {key: _plain(value) for key, value in content["_data"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise source.fault(f"its metadata does not describe the tensor {module + '.' + parameter!r}") from error
    tensor = _Tensor(source, name, prefix, values)
    if kind not in _READERS:
        raise FileFormatError(
            f"{source.path}: layer {name!r} is a {kind}; tensors of the kinds {', '.join(_READERS)} are read."
        )
    source.matrix(f"{prefix}qdata")
    return tensor.made(kind, _READERS[kind](tensor))


def _prefix(source: Source, name: str) -> str:
    weight = f"{name}._weight_"
    if f"{weight}qdata" in source.names:
        return weight
    module, _, parameter = name.rpartition(".")
    return f"{module}._{parameter}_"


def _plain(value: Any) -> Any:
    """A value without the type that its JSON names."""
    return value["_data"] if isinstance(value, Mapping) and set(value) == {"_type", "_data"} else value


@dataclass
class _Decoded:
    """What a kind of tensor holds."""

    form: str
    levels: Float
    positions: NDArray[Any]
    #: Of shape (out, groups), as are the others.
    scale: Float
    dtype: str
    zero: Float | None = None
    offset: Float | None = None
    parts: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Tensor:
    """The tensors that one tensor was taken apart to, and its other attributes."""

    source: Source
    name: str
    prefix: str
    values: Mapping[str, Any]

    def has(self, end: str) -> bool:
        return self.prefix + end in self.source.names

    def kind(self, end: str) -> str:
        return self.source.entry(self.prefix + end).kind

    def floats(self, end: str) -> Float:
        return self.source.floats(self.prefix + end)

    def numbers(self, end: str) -> Float:
        """Integers or floats."""
        return self.source.numbers(self.prefix + end)

    def codes(self, *types: str) -> NDArray[Any]:
        if self.kind("qdata") not in types:
            raise self.source.fault(
                f"tensor {self.prefix + 'qdata'!r} is of type {self.kind('qdata')}, not of {' or '.join(types)}"
            )
        return self.source.integers(self.prefix + "qdata")

    def dtype(self, key: str) -> str:
        found = self.values.get(key)
        if not isinstance(found, str) or found not in FLOAT_TYPES:
            raise self.source.fault(f"layer {self.name!r} is described by {key} {found!r}")
        return "float32" if found == "float64" else found

    def block(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Outputs and inputs that share a scale."""
        size = self.values.get("block_size")
        if type(size) is int:
            size = [1, size]
        if (
            not isinstance(size, list)
            or len(size) != 2
            or not all(type(part) is int and part > 0 for part in size)
            or any(whole % part for whole, part in zip(shape, size, strict=True))
        ):
            raise self.source.fault(f"layer {self.name!r} of shape {shape} is described by block_size {size}")
        return size[0], size[1]

    def spread(self, values: Float, end: str, shape: tuple[int, ...], *, transposed: bool = False) -> Float:
        """Numbers of blocks as those of output channels and groups of inputs."""
        rows, columns = self.block(shape)
        want = shape[0] // rows, shape[1] // columns
        if values.size != math.prod(want) or (transposed and values.shape != want[::-1]):
            raise self.source.fault(
                f"tensor {self.prefix + end!r} has shape {values.shape}, but weights of shape {shape} in blocks of "
                f"{rows} x {columns} need {want[0]} x {want[1]} numbers"
            )
        by_block = values.T if transposed else values.reshape(want)
        return np.repeat(by_block, rows, axis=0)

    def made(self, kind: str, found: _Decoded) -> QuantizedWeight:
        shape = found.positions.shape
        rows, columns = self.block(shape)
        notes: tuple[str, ...] = ()
        if self.has("act_pre_scale"):
            notes = ("inputs are multiplied by act_pre_scale before the layer: the weights are those of the products",)
        share = f"groups of {columns}" if rows == 1 else f"blocks of {rows} x {columns}"
        form = f"{kind}, {found.form}, {share}"
        try:
            grid = Grid(
                found.levels,
                found.scale,
                np.zeros(()) if found.zero is None else found.zero,
                shape[1],
                label=form,
                offset=found.offset,  # type: ignore[arg-type]
            )
        except InputError as error:
            raise self.source.fault(f"layer {self.name!r} has an impossible grid: {error}") from error
        bits = self.source.bits(*(name for name in parts(self.source, self.name) if "_act_" not in name))
        return QuantizedWeight(
            self.name, f"torchao {form}", grid, found.positions, shape, found.dtype, bits, notes, found.parts
        )


def _integers(bits: int) -> Float:
    return np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.float64)


def _int4(tensor: _Tensor) -> _Decoded:
    # Halves of bytes are signed numbers, the low half first, and the "zero point" is added after the scale.
    packed = tensor.codes("I8", "U8").view(np.uint8)
    positions = unpack_nibbles(packed) ^ 8
    shape = positions.shape
    if tensor.values.get("shape") != list(shape):
        raise tensor.source.fault(
            f"layer {tensor.name!r} is described by shape {tensor.values.get('shape')}, not {shape}"
        )
    scale = tensor.spread(tensor.floats("scale"), "scale", shape, transposed=True)
    offset = tensor.spread(tensor.floats("zero_point"), "zero_point", shape, transposed=True)
    return _Decoded("4 bits", _integers(4), positions, scale, _of_scale(tensor), offset=offset)


def _of_scale(tensor: _Tensor) -> str:
    if tensor.kind("scale") not in FLOAT_NAMES:
        raise tensor.source.fault(f"tensor {tensor.prefix + 'scale'!r} is of type {tensor.kind('scale')}")
    return FLOAT_NAMES[tensor.kind("scale")]


def _intx(tensor: _Tensor) -> _Decoded:
    target = str(tensor.values.get("target_dtype"))
    if not re.fullmatch("int[1-8]", target):
        raise tensor.source.fault(f"layer {tensor.name!r} is described by target_dtype {target!r}")
    return _bytes(tensor, int(target[3:]))


def _int8(tensor: _Tensor) -> _Decoded:
    return _bytes(tensor, 8)


def _bytes(tensor: _Tensor, bits: int) -> _Decoded:
    values = tensor.codes("I8").astype(np.int16) + 2 ** (bits - 1)
    if values.size and (values.min() < 0 or values.max() >= 2**bits):
        raise tensor.source.fault(f"tensor {tensor.prefix + 'qdata'!r} holds integers that {bits} bits cannot hold")
    scale = tensor.spread(tensor.floats("scale"), "scale", values.shape)
    zero = None
    if tensor.has("zero_point"):
        zero = tensor.spread(tensor.numbers("zero_point"), "zero_point", values.shape)
    return _Decoded(f"{bits} bits", _integers(bits), values, scale, tensor.dtype("dtype"), zero=zero)


def _float8(tensor: _Tensor) -> _Decoded:
    levels, positions = _of_eight_bits(tensor)
    scale = tensor.spread(tensor.floats("scale"), "scale", positions.shape)
    return _Decoded(tensor.kind("qdata").removeprefix("F8_"), levels, positions, scale, tensor.dtype("dtype"))


def _of_eight_bits(tensor: _Tensor) -> tuple[Float, NDArray[np.uint8]]:
    kind = tensor.kind("qdata")
    if kind not in ("F8_E4M3", "F8_E5M2"):
        raise tensor.source.fault(f"tensor {tensor.prefix + 'qdata'!r} is of type {kind}, and not of 8-bit floats")
    return float8(tensor.floats("qdata"), kind)


def _nvfp4(tensor: _Tensor) -> _Decoded:
    levels, positions = e2m1(unpack_nibbles(tensor.codes("U8")))
    block = _unswizzled(tensor, positions.shape)
    whole = tensor.floats("per_tensor_scale") if tensor.has("per_tensor_scale") else np.ones(())
    if whole.size != 1:
        raise tensor.source.fault(f"tensor {tensor.prefix + 'per_tensor_scale'!r} is not one number")
    kept = {"block_scale": block, "per_tensor_scale": whole}
    scale = tensor.spread(block * whole.item(), "scale", positions.shape)
    return _Decoded("E2M1 (NVFP4)", levels, positions, scale, tensor.dtype("orig_dtype"), parts=kept)


def _mx(tensor: _Tensor) -> _Decoded:
    element = str(tensor.values.get("elem_dtype"))
    six = {"fp6_e2m3": "E2M3", "fp6_e3m2": "E3M2"}
    if element == "float4_e2m1fn_x2":
        levels, positions = e2m1(unpack_nibbles(tensor.codes("U8")))
        what = "E2M1"
    elif element in six:
        codes = tensor.codes("U8")
        if codes.size and codes.max() > 63:
            raise tensor.source.fault(f"tensor {tensor.prefix + 'qdata'!r} holds codes of more than 6 bits")
        what = six[element]
        levels, positions = six_bits(codes, what)
    else:
        levels, positions = _of_eight_bits(tensor)
        what = tensor.kind("qdata").removeprefix("F8_")
    scale = tensor.spread(_unswizzled(tensor, positions.shape), "scale", positions.shape)
    return _Decoded(f"{what} (MX)", levels, positions, scale, tensor.dtype("orig_dtype"))


def _unswizzled(tensor: _Tensor, shape: tuple[int, ...]) -> Float:
    """Scales of blocks in rows; files may hold them in tiles of 128 x 4, in the order of NVIDIA's tensor cores."""
    values = tensor.floats("scale")
    if not tensor.values.get("is_swizzled_scales"):
        return values
    rows, columns = shape[0], shape[1] // tensor.block(shape)[1]
    down, across = -(-rows // 128), -(-columns // 4)
    if values.size != down * across * 512:
        raise tensor.source.fault(
            f"tensor {tensor.prefix + 'scale'!r} has shape {values.shape}, not that of {down * across} tiles of 128 x 4"
        )
    tiles = values.reshape(down, across, 32, 4, 4).transpose(0, 3, 2, 1, 4)
    return tiles.reshape(down * 128, across * 4)[:rows, :columns]


_READERS = {
    "Int4Tensor": _int4,
    "IntxUnpackedToInt8Tensor": _intx,
    "Int8Tensor": _int8,
    "Float8Tensor": _float8,
    "NVFP4Tensor": _nvfp4,
    "MXTensor": _mx,
}
