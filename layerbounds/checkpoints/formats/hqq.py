"""HQQ as its own library and transformers store it: a weight reshaped into groups, and its settings as tensors.

The weight (out, in) is reshaped to (out·in/g, g) for ``axis`` 1, where rows are groups of consecutive inputs, and to
(g, out·in/g) for ``axis`` 0, where columns are groups: of outputs that lie out/g apart, each with an input of its own,
where g divides the outputs. ``scale`` and ``zero`` have one number per group; a weight is ``scale · (code − zero)``
with real zero points.

``W_q`` packs rows: the first part of all rows has the highest bits of bytes (8, 4, 2, 1 bits), or of words of 32 bits,
of which 30 are used and whose rows are filled up with zeros to a multiple of 10 (3 bits). 5 and 6 bits take whole
bytes, 1.58 bits (codes 0, 1, 2) two bits. Settings are tensors beside it: ``nbits``, ``axis``, ``group_size``,
``shape``, ``packing`` (letters), ``view_as_float`` (bytes stored as if they were floats), ``compute_dtype``.

Source: hqq 0.2.8 (``core/quantize.py``, ``core/bitpack.py``, ``core/utils.py``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError
from layerbounds.problems.grids import Grid

LABEL = "HQQ"

_CODES = ".W_q"
#: What belongs to a layer beside its bias, which is not quantized.
_STORED = ("W_q", "scale", "zero", "zero_scale")
_SETTINGS = (
    *("nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "compute_dtype"),
    *("quant_scale", "quant_zero", "channel_wise", "optimize", "round_zero"),
    *("offload_meta", "encoded_state_dict", "stores_quant_config"),
)
#: Type of the words, bits of a field, and fields in a word.
_PACKINGS = {
    "8bit_u8": ("u1", 8, 1),
    "4bit_u8": ("u1", 4, 2),
    "3bit_32": ("<u4", 3, 10),
    "2bit_u8": ("u1", 2, 4),
    "1bit_u8": ("u1", 1, 8),
}
_DTYPES = {"torch.float16": "float16", "torch.bfloat16": "bfloat16", "torch.float32": "float32"}


def names(source: Source) -> list[str]:
    """The layers that are stored as HQQ stores them."""
    return sorted(name.removesuffix(_CODES) for name in source.names if name.endswith(_CODES))


def parts(source: Source, name: str) -> list[str]:
    """The tensors of a layer."""
    return [f"{name}.{end}" for end in (*_STORED, *_SETTINGS) if f"{name}.{end}" in source.names]


def read(source: Source, name: str) -> QuantizedWeight:
    """Decode a layer."""
    for end in ("quant_scale", "quant_zero"):
        if _number(source, name, end, 0):
            raise FileFormatError(
                f"{source.path}: scales or zero points of layer {name!r} are quantized themselves, a variant of HQQ "
                "that is not known here."
            )
    shape = tuple(int(size) for size in source.integers(f"{name}.shape").ravel())
    if len(shape) < 2 or min(shape) < 1:
        raise source.fault(f"tensor '{name}.shape' says {shape}, which is no shape of a weight")
    out, n = shape[0], math.prod(shape[1:])
    bits, axis = _number(source, name, "nbits"), _number(source, name, "axis")
    if axis not in (0, 1):
        raise source.fault(f"tensor '{name}.axis' says {axis:g}, not 0 or 1")
    dtype = _text(source, name, "compute_dtype")
    if dtype not in _DTYPES:
        raise source.fault(f"tensor '{name}.compute_dtype' says {dtype!r}, none of {', '.join(_DTYPES)}")
    grouped = _codes(source, name, out * n)
    most = round(2**bits - 1) if 1 <= bits <= 8 else 0
    if not 1 <= most <= 255 or grouped.max() > most:
        raise source.fault(f"codes of layer {name!r} go up to {grouped.max()}, which {bits:g} bits do not hold")
    _check_groups(source, name, grouped.shape, int(axis))
    scale, zero = _scales(source, name)
    block = math.gcd(grouped.shape[1], n) if axis == 1 else 1
    if scale.size == 1:
        block = n
    grid = Grid(
        np.arange(most + 1.0),
        _by_channel(source, name, "scale", scale, grouped.shape, (out, n), block),
        _by_channel(source, name, "zero", zero, grouped.shape, (out, n), block),
        n,
        group_size=block,
        uniform=True,
        label=f"{LABEL}, {bits:.3g} bits",
    )
    notes = []
    if np.any(zero != np.rint(zero)):
        notes.append(
            f"HQQ's own software rounds code − zero to {_DTYPES[dtype]} before it multiplies, so that its weights can "
            "differ from these levels by two roundings"
        )
    return QuantizedWeight(
        name,
        f"{LABEL}, {bits:.3g} bits, groups of {grouped.shape[int(axis)]} along axis {axis:g}",
        grid,
        grouped.reshape(out, n),
        shape,
        _DTYPES[dtype],
        source.bits(*(f"{name}.{end}" for end in _STORED)),
        tuple(notes),
    )


def _codes(source: Source, name: str, count: int) -> NDArray[np.uint8]:
    """The codes of all weights, reshaped into groups."""
    packing = _text(source, name, "packing")
    if packing not in _PACKINGS:
        raise FileFormatError(
            f"{source.path}: layer {name!r} is packed as {packing!r}, which is not known here; "
            f"known are {', '.join(_PACKINGS)}."
        )
    kind, bits, fields = _PACKINGS[packing]
    tensor = f"{name}{_CODES}"
    stored = source.read(tensor)
    if stored.ndim != 2 or not stored.size:
        raise source.fault(f"tensor {tensor!r} has shape {stored.shape} where a matrix is expected")
    floats = bool(_number(source, name, "view_as_float", 0))
    if floats != (stored.dtype.kind == "f"):
        raise source.fault(f"tensor {tensor!r} holds {stored.dtype} numbers, and 'view_as_float' says otherwise")
    if floats and source.entry(tensor).kind == "BF16":
        # What was read as float32 has the 16 bits in front.
        stored = (stored.view(np.uint32) >> 16).astype("<u2")
    whole = np.ascontiguousarray(stored)
    if (whole.shape[1] * whole.dtype.itemsize) % np.dtype(kind).itemsize or (
        not floats and whole.dtype.kind not in "iu"
    ):
        raise source.fault(f"tensor {tensor!r} holds {stored.dtype} numbers, which are no words of {packing}")
    words = whole.view(kind)
    rows, columns = words.shape
    wanted = -(-count // columns)
    if count % columns or rows != -(-wanted // fields) or (fields != 10 and rows * fields != wanted):
        raise source.fault(
            f"tensor {tensor!r} has shape {stored.shape}, which does not hold {count} codes of {packing}"
        )
    # The first part of the rows has the highest bits.
    mask = words.dtype.type((1 << bits) - 1)
    first = [(words >> words.dtype.type(bits * place)) & mask for place in reversed(range(fields))]
    return np.concatenate(first)[:wanted].astype(np.uint8)


def _check_groups(source: Source, name: str, grouped: tuple[int, ...], axis: int) -> None:
    if f"{name}.group_size" not in source.names:
        return
    size = _number(source, name, "group_size")
    if size != grouped[axis]:
        raise source.fault(
            f"codes of layer {name!r} are reshaped to {grouped}, but groups are said to have {size:g} along axis {axis}"
        )


def _scales(source: Source, name: str) -> tuple[Float, Float]:
    """Scales and zero points, which may stand together."""
    together = f"{name}.zero_scale"
    if together not in source.names:
        return source.floats(f"{name}.scale"), source.floats(f"{name}.zero")
    both = source.floats(together)
    if len(both) != 2:
        raise source.fault(f"tensor {together!r} has shape {both.shape} where two arrays are expected")
    return both[1], both[0]


def _by_channel(
    source: Source,
    name: str,
    end: str,
    values: Float,
    grouped: tuple[int, ...],
    shape: tuple[int, int],
    block: int,
) -> Float:
    """Numbers of groups as those of each output and of blocks of its inputs, shape (out, in / block)."""
    if values.size != 1 and values.shape not in ((grouped[0], 1), (1, grouped[1])):
        raise source.fault(
            f"tensor '{name}.{end}' has shape {values.shape}, which does not fit codes that are reshaped to {grouped}"
        )
    wide = np.broadcast_to(values.reshape(-1, 1) if values.size == 1 else values, grouped).reshape(shape)
    return np.ascontiguousarray(wide[:, ::block])


def _number(source: Source, name: str, end: str, default: float | None = None) -> float:
    """A setting that is a number."""
    tensor = f"{name}.{end}"
    if default is not None and tensor not in source.names:
        return default
    value = source.read(tensor)
    if value.size != 1 or value.dtype.kind not in "iufb" or not np.isfinite(value).all():
        raise source.fault(f"tensor {tensor!r} of shape {value.shape} and type {value.dtype} is no setting")
    return float(value.item())


def _text(source: Source, name: str, end: str) -> str:
    """A setting that is a text."""
    return "".join(map(chr, source.integers(f"{name}.{end}").ravel() & 0x7F))
