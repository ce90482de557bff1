"""Integers packed into words and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import InputError


def unpack_stream(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Fields of a stream of bits along the last axis, lowest bits first, across the borders of words.

    Parameters
    ----------
    words : ndarray of integers, shape (..., words)
        Of 8, 16, 32 or 64 bits, little-endian.
    bits : int
        Of a field, 1 to 8.
    count : int
        Fields of each row.

    Returns
    -------
    ndarray of uint8, shape (..., count)

    Raises
    ------
    InputError
        If there are fewer words than the fields need.
    """
    little = np.ascontiguousarray(words).astype(words.dtype.newbyteorder("<"), copy=False)
    if little.shape[-1] * little.dtype.itemsize * 8 < bits * count:
        raise InputError(f"{count} fields of {bits} bits need more than {little.shape[-1]} words.")
    stream = np.unpackbits(little.view(np.uint8), axis=-1, bitorder="little", count=bits * count)
    fields = stream.reshape(*stream.shape[:-1], count, bits)
    return np.asarray(np.packbits(fields, axis=-1, bitorder="little")[..., 0])


def pack_stream(fields: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """The other way round: fields along the last axis as words of 32 bits, the last one filled with zeros."""
    spread = np.unpackbits(np.ascontiguousarray(fields, dtype=np.uint8)[..., None], axis=-1, bitorder="little")
    stream = spread[..., :bits].reshape(*fields.shape[:-1], -1)
    missing = -stream.shape[-1] % 32
    stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, missing)])
    return np.packbits(stream, axis=-1, bitorder="little").view("<i4").astype(np.int32)


def unpack_words(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Fields along the last axis, as many as a word can hold whole, lowest bits first, and the rest unused.

    Parameters and errors as in `unpack_stream`, which this is for 1, 2, 4 and 8 bits.
    """
    each = words.dtype.itemsize * 8 // bits
    if words.shape[-1] * each < count:
        raise InputError(f"{count} fields of {bits} bits need more than {words.shape[-1]} words.")
    unsigned = np.ascontiguousarray(words).view(words.dtype.str.replace("i", "u"))
    shifts = (np.arange(each) * bits).astype(unsigned.dtype)
    fields = (unsigned[..., None] >> shifts) & unsigned.dtype.type((1 << bits) - 1)
    flat = fields.reshape(*words.shape[:-1], -1)[..., :count]
    return np.asarray(flat.astype(np.uint8))


def unpack_nibbles(packed: NDArray[np.uint8], *, high_first: bool = False) -> NDArray[np.uint8]:
    """The two halves of each byte along the last axis, the low one first."""
    halves = (packed >> 4, packed & 15) if high_first else (packed & 15, packed >> 4)
    return np.stack(halves, axis=-1).reshape(*packed.shape[:-1], -1)


def pack_nibbles(fields: NDArray[np.uint8], *, high_first: bool = False) -> NDArray[np.uint8]:
    """The other way round, of an even number of fields."""
    first, second = fields[..., ::2], fields[..., 1::2]
    low, high = (second, first) if high_first else (first, second)
    return (low | (high << 4)).astype(np.uint8)


#: Widths of the planes of bits in which GPTQModel's planar layout stores fields, low bits first.
_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
#: Fields whose planes lie together.
_PLANAR_BLOCK = 32


def unpack_planar(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Fields along the last axis whose low and high bits lie in planes of their own, in blocks of 32 fields.

    A block takes ``bits`` words of 32 bits: first those with the low bits of all its fields, then those with the higher
    ones (4 + 1 bits for fields of 5 bits, 4 + 2 for 6, 4 + 2 + 1 for 7, 2 + 1 for 3).

    Parameters and errors as in `unpack_stream`.
    """
    if count % _PLANAR_BLOCK or words.dtype.itemsize != 4 or words.shape[-1] * 32 < bits * count:
        raise InputError(f"{count} fields of {bits} bits in planes need whole blocks of {_PLANAR_BLOCK} fields.")
    blocks = words[..., : count * bits // 32].reshape(*words.shape[:-1], count // _PLANAR_BLOCK, bits)
    fields = np.zeros((*blocks.shape[:-1], _PLANAR_BLOCK), dtype=np.uint8)
    start = 0
    for width in _PLANES[bits]:
        plane = unpack_stream(np.ascontiguousarray(blocks[..., start : start + width]), width, _PLANAR_BLOCK)
        fields |= plane << start
        start += width
    return fields.reshape(*words.shape[:-1], count)


def pack_planar(fields: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """The other way round, of a number of fields that 32 divides."""
    blocks = np.asarray(fields, dtype=np.uint8).reshape(*fields.shape[:-1], -1, _PLANAR_BLOCK)
    planes = []
    start = 0
    for width in _PLANES[bits]:
        planes.append(pack_stream((blocks >> start) & ((1 << width) - 1), width))
        start += width
    return np.concatenate(planes, axis=-1).reshape(*fields.shape[:-1], -1)
