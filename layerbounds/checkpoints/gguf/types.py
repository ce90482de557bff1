"""The types of GGUF's tensors: numbers, and blocks of codes with their scales.

Layouts as in ggml/src/ggml-common.h and ggml-quants.c, and gguf/quants.py of the PyPI package gguf 0.19.0. Consecutive
inputs of a row make a block; all multi-byte numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float

Bytes = NDArray[np.uint8]


class Type(NamedTuple):
    """Name of a type, inputs of a block, and its bytes."""

    name: str
    block: int
    size: int


#: By the numbers that files have.
TYPES = {
    0: Type("F32", 1, 4),
    1: Type("F16", 1, 2),
    2: Type("Q4_0", 32, 18),
    3: Type("Q4_1", 32, 20),
    6: Type("Q5_0", 32, 22),
    7: Type("Q5_1", 32, 24),
    8: Type("Q8_0", 32, 34),
    9: Type("Q8_1", 32, 40),
    10: Type("Q2_K", 256, 84),
    11: Type("Q3_K", 256, 110),
    12: Type("Q4_K", 256, 144),
    13: Type("Q5_K", 256, 176),
    14: Type("Q6_K", 256, 210),
    15: Type("Q8_K", 256, 292),
    16: Type("IQ2_XXS", 256, 66),
    17: Type("IQ2_XS", 256, 74),
    18: Type("IQ3_XXS", 256, 98),
    19: Type("IQ1_S", 256, 50),
    20: Type("IQ4_NL", 32, 18),
    21: Type("IQ3_S", 256, 110),
    22: Type("IQ2_S", 256, 82),
    23: Type("IQ4_XS", 256, 136),
    24: Type("I8", 1, 1),
    25: Type("I16", 1, 2),
    26: Type("I32", 1, 4),
    27: Type("I64", 1, 8),
    28: Type("F64", 1, 8),
    29: Type("IQ1_M", 256, 56),
    30: Type("BF16", 1, 2),
    34: Type("TQ1_0", 256, 54),
    35: Type("TQ2_0", 256, 66),
    39: Type("MXFP4", 32, 17),
    40: Type("NVFP4", 64, 36),
    41: Type("Q1_0", 128, 18),
}
NUMBERS = {kind.name: number for number, kind in TYPES.items()}
#: Types that are plain numbers, and what NumPy calls them.
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}
INTEGERS = ("I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class Decoded:
    """What the blocks of some rows hold.

    Attributes
    ----------
    codes : ndarray of uint8, shape (rows, n)
        Positions in `Layout.codes`.
    scale : ndarray of shape (rows, groups)
    offset : ndarray of shape (rows, groups), optional
        Added to scale times code.
    parts : dict of str to ndarray
        What scale and offset are products of, as stored.
    """

    codes: Bytes
    scale: Float
    offset: Float | None = None
    parts: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A type whose levels are a grid.

    Attributes
    ----------
    codes : tuple of float
        Sorted.
    group : int
        Inputs that share a scale.
    decode : callable
        From blocks, shape (rows, blocks, bytes).
    """

    codes: tuple[float, ...]
    group: int
    decode: Callable[[Bytes], Decoded]


def half(raw: Bytes) -> NDArray[np.float16]:
    """Pairs of bytes along the last axis as numbers."""
    return np.ascontiguousarray(raw).view("<f2")


def fields(raw: Bytes, bits: int, run: int) -> Bytes:
    """Fields of bytes, spread as the types do it: the lowest of ``run`` bytes, then the next ones of the same bytes, ….

    Parameters
    ----------
    raw : ndarray of uint8, shape (rows, blocks, bytes)
    bits : int
    run : int

    Returns
    -------
    ndarray of uint8, shape (rows, blocks, bytes · 8 / bits)
    """
    rows, blocks, size = raw.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    spread = (raw.reshape(rows, blocks, size // run, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(spread.reshape(rows, blocks, -1))


def rows(values: NDArray[Any]) -> NDArray[Any]:
    """What the blocks of a row have, side by side: shape (rows, blocks, m) becomes (rows, blocks · m)."""
    return values.reshape(values.shape[0], -1)


def _q4_0(raw: Bytes) -> Decoded:
    return Decoded(rows(fields(raw[..., 2:], 4, 16)), rows(half(raw[..., :2])).astype(np.float64))


def _q4_1(raw: Bytes) -> Decoded:
    scale, offset = (rows(half(raw[..., at : at + 2])).astype(np.float64) for at in (0, 2))
    return Decoded(rows(fields(raw[..., 4:], 4, 16)), scale, offset)


def _fifth_bits(raw: Bytes) -> Bytes:
    return np.unpackbits(raw, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(raw: Bytes) -> Decoded:
    codes = fields(raw[..., 6:], 4, 16) | _fifth_bits(raw[..., 2:6])
    return Decoded(rows(codes), rows(half(raw[..., :2])).astype(np.float64))


def _q5_1(raw: Bytes) -> Decoded:
    codes = fields(raw[..., 8:], 4, 16) | _fifth_bits(raw[..., 4:8])
    scale, offset = (rows(half(raw[..., at : at + 2])).astype(np.float64) for at in (0, 2))
    return Decoded(rows(codes), scale, offset)


def _q8_0(raw: Bytes) -> Decoded:
    # Flipping the sign bit adds 128 to two's complement.
    return Decoded(rows(raw[..., 2:] ^ np.uint8(128)), rows(half(raw[..., :2])).astype(np.float64))


def _two_levels(codes: Bytes, d: Bytes, scales: NDArray[Any], low: Bytes | None = None, minima: Any = None) -> Decoded:
    """Scales (and minima) that are small integers times a half of the block."""
    parts = {"super_scale": rows(half(d)), "block_scale": rows(scales)}
    scale = rows(half(d).astype(np.float64) * scales)
    if low is None:
        return Decoded(rows(codes), scale, None, parts)
    parts |= {"super_minimum": rows(half(low)), "block_minimum": rows(minima)}
    return Decoded(rows(codes), scale, 0.0 - rows(half(low).astype(np.float64) * minima), parts)


def _q2_k(raw: Bytes) -> Decoded:
    packed = raw[..., :16]
    return _two_levels(fields(raw[..., 16:80], 2, 32), raw[..., 80:82], packed & 15, raw[..., 82:84], packed >> 4)


def _q3_k(raw: Bytes) -> Decoded:
    high, packed = fields(raw[..., :32], 1, 32), raw[..., 96:108]
    # A mask of 0 takes 4 from the code, so that its position is the plain field of three bits.
    codes = fields(raw[..., 32:96], 2, 32) | high << np.uint8(2)
    scales = fields(packed[..., :8], 4, 8) | fields(packed[..., 8:], 2, 4) << np.uint8(4)
    return _two_levels(codes, raw[..., 108:110], scales.astype(np.int8) - np.int8(32))


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits, whose upper two bits are elsewhere for the last four of each."""
    first, second, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 2 & 48)], axis=-1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 2 & 48)], axis=-1)
    return scales, minima


def _q4_k(raw: Bytes) -> Decoded:
    scales, minima = _six_bits(raw[..., 4:16])
    return _two_levels(fields(raw[..., 16:], 4, 32), raw[..., :2], scales, raw[..., 2:4], minima)


def _q5_k(raw: Bytes) -> Decoded:
    scales, minima = _six_bits(raw[..., 4:16])
    codes = fields(raw[..., 48:], 4, 32) | fields(raw[..., 16:48], 1, 32) << np.uint8(4)
    return _two_levels(codes, raw[..., :2], scales, raw[..., 2:4], minima)


def _q6_k(raw: Bytes) -> Decoded:
    codes = fields(raw[..., :128], 4, 64) | fields(raw[..., 128:192], 2, 32) << np.uint8(4)
    return _two_levels(codes, raw[..., 208:], raw[..., 192:208].view(np.int8))


def _iq4_xs(raw: Bytes) -> Decoded:
    high = np.ascontiguousarray(raw[..., 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = (fields(raw[..., 4:8], 4, 1) | (high & 3).astype(np.uint8) << np.uint8(4)).astype(np.int8) - np.int8(32)
    return _two_levels(fields(raw[..., 8:], 4, 16), raw[..., :2], scales)


def _tq1_0(raw: Bytes) -> Decoded:
    # Five digits to the base of 3 are a fraction of 256; powers of 3 bring each to the front.
    powers = np.array([1, 3, 9, 27, 81], dtype=np.uint8)[:, None]
    pieces = [(raw[..., :32], 5), (raw[..., 32:48], 5), (raw[..., 48:52], 4)]
    spread = [(piece[..., None, :] * powers[:count]).reshape(*raw.shape[:2], -1) for piece, count in pieces]
    codes = (np.concatenate(spread, axis=-1).astype(np.uint16) * 3 >> 8).astype(np.uint8)
    return Decoded(rows(codes), rows(half(raw[..., 52:])).astype(np.float64))


def _tq2_0(raw: Bytes) -> Decoded:
    return Decoded(rows(fields(raw[..., :64], 2, 32)), rows(half(raw[..., 64:])).astype(np.float64))


#: 4-bit floats (E2M1) times 2 in the order of their bits (sign, size), and the place of each among the sorted codes.
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_E2M1_CODES = tuple(float(code) for code in sorted(set(_E2M1)))
_E2M1_POSITIONS = np.array([_E2M1_CODES.index(value) for value in _E2M1], dtype=np.uint8)


def _mxfp4(raw: Bytes) -> Decoded:
    exponents = rows(raw[..., :1])
    # Half of E8M0's power of two, as the codes are doubled; its last code is no number.
    scale = np.where(exponents == 255, np.nan, np.ldexp(1.0, exponents.astype(np.int32) - 128))
    return Decoded(rows(_E2M1_POSITIONS[fields(raw[..., 1:], 4, 16)]), scale)


def _ue4m3(codes: NDArray[np.int64]) -> Float:
    """8-bit floats without a sign, halved; ggml takes the code of NaN for 0."""
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = np.where(exponent > 0, mantissa + 8, mantissa).astype(np.float64)
    values = np.ldexp(size, np.maximum(exponent, 1) - 11)
    return np.where(codes == 127, 0.0, values)


_UE4M3 = _ue4m3(np.arange(256))


def _nvfp4(raw: Bytes) -> Decoded:
    codes = _E2M1_POSITIONS[fields(raw[..., 4:], 4, 8)]
    return Decoded(rows(codes), _UE4M3[rows(raw[..., :4])], None, {"block_scale": rows(raw[..., :4])})


def _whole(first: int, last: int) -> tuple[float, ...]:
    return tuple(float(code) for code in range(first, last + 1))


_IQ4 = tuple(float(code) for code in (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
#: The types whose levels are a grid, by their names.
LAYOUTS = {
    "Q4_0": Layout(_whole(-8, 7), 32, _q4_0),
    "Q4_1": Layout(_whole(0, 15), 32, _q4_1),
    "Q5_0": Layout(_whole(-16, 15), 32, _q5_0),
    "Q5_1": Layout(_whole(0, 31), 32, _q5_1),
    "Q8_0": Layout(_whole(-128, 127), 32, _q8_0),
    "Q2_K": Layout(_whole(0, 3), 16, _q2_k),
    "Q3_K": Layout(_whole(-4, 3), 16, _q3_k),
    "Q4_K": Layout(_whole(0, 15), 32, _q4_k),
    "Q5_K": Layout(_whole(0, 31), 32, _q5_k),
    "Q6_K": Layout(_whole(-32, 31), 16, _q6_k),
    "IQ4_NL": Layout(_IQ4, 32, _q4_0),
    "IQ4_XS": Layout(_IQ4, 32, _iq4_xs),
    "TQ1_0": Layout(_whole(-1, 1), 256, _tq1_0),
    "TQ2_0": Layout(_whole(-1, 1), 256, _tq2_0),
    "MXFP4": Layout(_E2M1_CODES, 32, _mxfp4),
    "NVFP4": Layout(_E2M1_CODES, 16, _nvfp4),
}
