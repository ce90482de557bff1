"""compressed-tensors: what llm-compressor and vLLM write.

Layouts: the package compressed-tensors 0.20.0 (``compressors/``), and for what it no longer writes 0.17.0 (words that
hold fields whole) and 0.13.0 (``weight_g_idx``, zero points in bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.formats.compressed_schemes import Scheme, scheme_of
from layerbounds.checkpoints.formats.narrow_floats import e2m1, float8, six_bits
from layerbounds.checkpoints.formats.scales import DTYPES, by_channel, exponents
from layerbounds.checkpoints.packing import unpack_nibbles, unpack_stream, unpack_words
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.problems.grids import Grid

LABEL = "compressed-tensors"

_PACKED, _WEIGHT, _SCALE, _ZERO = "weight_packed", "weight", "weight_scale", "weight_zero_point"
_GLOBAL, _GROUP, _SHAPE = "weight_global_scale", "weight_g_idx", "weight_shape"
_OF_WEIGHTS = (_PACKED, _WEIGHT, _SCALE, _ZERO, _GLOBAL, _GROUP, _SHAPE)
#: What belongs to a layer and says how its inputs and outputs are quantized.
_OF_ACTIVATIONS = tuple(
    f"{what}_{part}" for what in ("input", "output") for part in ("scale", "zero_point", "global_scale", "g_idx")
)
#: What sparse variants store instead of weights, which compressed-tensors itself no longer reads.
_SPARSE = ("compressed", "bitmask", "shape", "meta", "scale_packed")


def names(source: Source) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    method = source.quantization.get("quant_method", "compressed-tensors")
    if method not in ("compressed-tensors", "sparseml") or "quant_algo" in source.quantization:
        return []
    found = []
    for name in source.names:
        layer, _, end = name.rpartition(".")
        here = {part for part in (*_OF_WEIGHTS, *_SPARSE) if f"{layer}.{part}" in source.names}
        codes = end == _WEIGHT and _SCALE in here and _narrow(source.entry(name).kind)
        if end == _PACKED or codes or (end == "compressed" and "bitmask" in here):
            found.append(layer)
    return sorted(found)


def parts(source: Source, name: str) -> list[str]:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    ends = (*_OF_WEIGHTS, *_OF_ACTIVATIONS, *_SPARSE)
    return [f"{name}.{end}" for end in ends if f"{name}.{end}" in source.names]


def read(source: Source, name: str) -> QuantizedWeight:
    """See `layerbounds.checkpoints.formats.registry.Format`."""
    scheme, notes = scheme_of(source, name)
    if source.quantization.get("transform_config"):
        notes += ("its configuration names transforms: the weights are those of transformed inputs or outputs",)
    layer = _Layer(source, name, scheme, notes)
    if layer.has("compressed") or layer.has("meta"):
        form = scheme.form if layer.has("compressed") else "marlin-24"
        raise FileFormatError(
            f"{source.path}: layer {name!r} is stored in a sparse form ({form or 'sparse-bitmask'}), which is not read "
            "and which compressed-tensors gave up after 0.14; decompress it with that version."
        )
    if not layer.has(_PACKED):
        return _plain(layer)
    if source.entry(layer[_PACKED]).kind in ("I32", "U32"):
        return _packed_integers(layer)
    return _packed_floats(layer)


@dataclass(frozen=True)
class _Layer:
    """A layer's tensors by the ends of their names."""

    source: Source
    name: str
    scheme: Scheme
    notes: tuple[str, ...]

    def __getitem__(self, end: str) -> str:
        return f"{self.name}.{end}"

    def has(self, end: str) -> bool:
        return self[end] in self.source.names

    def made(
        self,
        form: str,
        codes: tuple[Float, NDArray[Any]],
        scale: tuple[Float, int],
        dtype: str,
        *,
        zero: Float | None = None,
        notes: tuple[str, ...] = (),
        parts: dict[str, NDArray[Any]] | None = None,
    ) -> QuantizedWeight:
        levels, positions = codes
        numbers, size = scale
        n = positions.shape[1]
        group = self._group(n, numbers.shape[1])
        try:
            grid = Grid(
                levels,
                numbers,
                np.zeros(()) if zero is None else zero,
                n,
                size if group is None else None,
                label=form,
                group=group,  # type: ignore[arg-type]
            )
        except InputError as error:
            raise self.source.fault(f"layer {self.name!r} has an impossible grid: {error}") from error
        return QuantizedWeight(
            name=self.name,
            format=f"compressed-tensors {form}",
            grid=grid,
            codes=positions,
            shape=positions.shape,
            dtype=dtype,
            bits=self.source.bits(*(self[end] for end in _OF_WEIGHTS)),
            notes=self.notes + notes,
            parts=parts or {},
        )

    def _group(self, n: int, groups: int) -> NDArray[np.int64] | None:
        """The scale group of each input, where the file has them; -1 stands for groups that were never set."""
        if not self.has(_GROUP):
            return None
        found = self.source.integers(self[_GROUP]).astype(np.int64)
        if np.any(found == -1):
            return None
        if found.shape != (n,) or found.min() < 0 or found.max() >= groups:
            raise self.source.fault(
                f"tensor {self[_GROUP]!r} of shape {found.shape} does not give {n} inputs one of {groups} groups each"
            )
        return found

    def scale(self, shape: tuple[int, int]) -> tuple[tuple[Float, int], str]:
        """The scales of channels and groups, the size of the groups, and the type of the weights."""
        kind = self.source.entry(self[_SCALE]).kind
        if kind not in DTYPES:
            raise self.source.fault(f"tensor {self[_SCALE]!r} is of type {kind} where floats are expected")
        return self._placed(self.source.floats(self[_SCALE]), shape), DTYPES[kind]

    def _placed(self, scale: Float, shape: tuple[int, int]) -> tuple[Float, int]:
        return by_channel(self.source, self[_SCALE], scale, shape, self.scheme.group_size, self.scheme.block)

    def powers(self, shape: tuple[int, int]) -> tuple[Float, int]:
        """Scales that are stored as exponents."""
        return self._placed(exponents(self.source, self[_SCALE]), shape)

    def zero_point(self, zero: Float, shape: tuple[int, int]) -> Float:
        return by_channel(self.source, self[_ZERO], zero, shape, self.scheme.group_size, self.scheme.block)[0]

    def matrix(self, end: str) -> tuple[int, int]:
        return self.source.matrix(self[end])


def _narrow(kind: str) -> bool:
    return kind in ("I8", "I16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


def _described(bits: str, size: int, n: int, scheme: Scheme, zero: bool) -> str:
    if scheme.block:
        share = f"blocks of {scheme.block[0]} x {scheme.block[1]}"
    else:
        share = "a scale per channel or tensor" if size >= n else f"groups of {size}"
    return f"{bits}, {share}{', asymmetric' if zero else ''}"


# --- integers -----------------------------------------------------------------------------------------------------


def _integers(bits: int) -> Float:
    return np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.float64)


def _packed_integers(layer: _Layer) -> QuantizedWeight:
    source = layer.source
    rows, columns = layer.matrix(_PACKED)
    shape = _stored_shape(layer, rows)
    bits, dense, notes = _packing(layer, shape[1], columns)
    fields = _unpacked(source.integers(layer[_PACKED]), bits, shape[1], dense)
    scale, dtype = layer.scale(shape)
    zero = _zero_points(layer, bits, dense, shape, scale[0].shape[1])
    form = _described(f"pack-quantized, {bits} bits", scale[1], shape[1], layer.scheme, zero is not None)
    return layer.made(form, (_integers(bits), fields), scale, dtype, zero=zero, notes=notes)


def _stored_shape(layer: _Layer, rows: int) -> tuple[int, int]:
    given = layer.source.integers(layer[_SHAPE]).ravel().tolist()
    if len(given) != 2 or given[0] != rows or given[1] < 1:
        raise layer.source.fault(f"tensor {layer[_SHAPE]!r} says {given}, but {layer[_PACKED]!r} has {rows} rows")
    return int(given[0]), int(given[1])


def _packing(layer: _Layer, n: int, columns: int) -> tuple[int, bool, tuple[str, ...]]:
    """Bits of a field, whether fields cross the borders of words, and notes."""
    source, bits = layer.source, layer.scheme.bits
    choices = range(1, 9) if bits is None else (bits,)
    found = [
        (b, dense)
        for b in choices
        if 1 <= b <= 8
        for dense in (True, False)
        if columns == (-(-n * b // 32) if dense else -(-n // (32 // b)))
    ]
    widths = sorted({b for b, _ in found})
    if not found:
        said = "any number of bits" if bits is None else f"{bits} bits, as the configuration says"
        raise source.fault(
            f"tensor {layer[_PACKED]!r} has {columns} words a row, which {n} fields of {said} do not fill"
        )
    if len(widths) > 1:
        raise source.fault(
            f"{columns} words a row of tensor {layer[_PACKED]!r} may hold fields of {' or '.join(map(str, widths))} "
            "bits and no configuration (config.json) says which"
        )
    width = widths[0]
    notes = () if bits else (f"fields of {width} bits, which is what fills its words",)
    if 32 % width == 0 or len(found) == 1:
        return width, found[0][1], notes
    # Few inputs: both ways of packing take as many words.
    version = str(source.quantization.get("version", ""))
    numbers = version.split(".")[:2]
    if len(numbers) == 2 and all(number.isdigit() for number in numbers):
        return width, [int(number) for number in numbers] >= [0, 18], notes
    unused = source.integers(layer[_PACKED]).astype(np.int64) >> (32 // width * width) & (2 ** (32 % width) - 1)
    dense = bool(np.any(unused))
    how = "crossing the borders of words" if dense else "whole in words, whose last bits are all 0"
    return width, dense, (*notes, f"fields were taken to be packed {how}: shapes do not say")


def _unpacked(words: NDArray[Any], bits: int, count: int, dense: bool) -> NDArray[np.uint8]:
    # Where both are the same, the latter is faster.
    return unpack_stream(words, bits, count) if dense and 32 % bits else unpack_words(words, bits, count)


def _zero_points(layer: _Layer, bits: int, dense: bool, shape: tuple[int, int], groups: int) -> Float | None:
    if not layer.has(_ZERO):
        return None
    source = layer.source
    if source.entry(layer[_ZERO]).kind != "I32":
        return _plain_zeros(layer, shape)
    words = source.integers(layer[_ZERO])
    out = shape[0]
    need = -(-out * bits // 32) if dense else -(-out // (32 // bits))
    if words.shape != (need, groups):
        raise source.fault(
            f"tensor {layer[_ZERO]!r} has shape {words.shape}, but zero points of {bits} bits of {out} channels need "
            f"({need}, {groups})"
        )
    fields = _unpacked(np.ascontiguousarray(words.T), bits, out, dense)
    return np.asarray(fields.T.astype(np.float64) - 2 ** (bits - 1))


def _plain_zeros(layer: _Layer, shape: tuple[int, int]) -> Float:
    return layer.zero_point(layer.source.numbers(layer[_ZERO]), shape)


# --- a code per weight --------------------------------------------------------------------------------------------


def _plain(layer: _Layer) -> QuantizedWeight:
    source = layer.source
    shape = layer.matrix(_WEIGHT)
    kind = source.entry(layer[_WEIGHT]).kind
    powers = source.entry(layer[_SCALE]).kind in ("U8", "F8_E8M0")
    scale, dtype = (layer.powers(shape), "bfloat16") if powers else layer.scale(shape)
    zero = _plain_zeros(layer, shape) if layer.has(_ZERO) else None
    notes: tuple[str, ...] = ()
    codes: tuple[Float, NDArray[Any]]
    if kind in ("I8", "I16"):
        bits = layer.scheme.bits or 8
        if not 1 <= bits <= 8:
            raise FileFormatError(
                f"{source.path}: layer {layer.name!r} has weights of {bits} bits; codes of at most 8 bits are read."
            )
        if layer.scheme.bits is None:
            notes = ("integers of 8 bits, which is what their type can hold",)
        integers = source.integers(layer[_WEIGHT]).astype(np.int32) + 2 ** (bits - 1)
        if integers.min() < 0 or integers.max() >= 2**bits:
            raise source.fault(f"tensor {layer[_WEIGHT]!r} holds integers that {bits} bits cannot hold")
        codes = _integers(bits), integers.astype(np.uint8)
        what = f"{layer.scheme.form or 'int-quantized'}, {bits} bits"
    else:
        codes = float8(source.floats(layer[_WEIGHT]), kind)
        what = f"{layer.scheme.form or 'float-quantized'}, {kind.removeprefix('F8_')}"
    form = _described(what, scale[1], shape[1], layer.scheme, zero is not None)
    return layer.made(form, codes, scale, dtype, zero=zero, notes=notes)


# --- floats of four and six bits ----------------------------------------------------------------------------------


def _packed_floats(layer: _Layer) -> QuantizedWeight:
    source = layer.source
    rows, columns = layer.matrix(_PACKED)
    packed = source.integers(layer[_PACKED])
    if packed.dtype != np.uint8:
        raise source.fault(f"tensor {layer[_PACKED]!r} holds {packed.dtype} numbers where bytes are expected")
    if layer.has(_ZERO):
        raise FileFormatError(
            f"{source.path}: layer {layer.name!r} has packed floats with zero points, a variant that is not known here."
        )
    if layer.scheme.bits == 6:
        if columns % 3:
            raise source.fault(f"tensor {layer[_PACKED]!r} has {columns} bytes a row, not three for four weights")
        codes = six_bits(unpack_stream(packed, 6, columns // 3 * 4))
    else:
        codes = e2m1(unpack_nibbles(packed))
    shape = rows, codes[1].shape[1]
    kind = source.entry(layer[_SCALE]).kind
    if kind in ("U8", "F8_E8M0") and not layer.has(_GLOBAL):
        scale = layer.powers(shape)
        name = "mxfp6-pack-quantized, E2M3" if layer.scheme.bits == 6 else "mxfp4-pack-quantized"
        return layer.made(f"{name}, groups of {scale[1]}", codes, scale, "bfloat16")
    block = source.floats(layer[_SCALE])
    whole = source.floats(layer[_GLOBAL]) if layer.has(_GLOBAL) else np.ones(1)
    if whole.size != 1 or whole.item() == 0:
        raise source.fault(f"tensor {layer[_GLOBAL]!r} is not one number other than 0")
    # The scale of the tensor divides those of its groups.
    scale = layer._placed(block / whole.item(), shape)
    kept = {"block_scale": block, "global_scale": whole}
    return layer.made(f"nvfp4-pack-quantized, groups of {scale[1]}", codes, scale, "bfloat16", parts=kept)
