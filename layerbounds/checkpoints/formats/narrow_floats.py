"""Floats of four to eight bits as codes of a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.layers.tensor_files import NARROW_FLOATS

#: The 16 values of OCP's E2M1, by its code: a sign, two bits of exponent, one of mantissa.
E2M1 = np.array([sign * size for sign in (1.0, -1.0) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)])


def _six_bits(mantissa_bits: int, bias: int) -> Float:
    code = np.arange(64)
    mantissa, exponent = code % 2**mantissa_bits, code % 32 >> mantissa_bits
    size = np.ldexp(
        mantissa + np.where(exponent > 0, 2.0**mantissa_bits, 0.0), np.maximum(exponent, 1) - bias - mantissa_bits
    )
    return np.asarray(np.where(code < 32, size, -size))


#: The 64 values of OCP's floats of six bits, by their codes.
_SIX_BITS = {"E2M3": _six_bits(3, 1), "E3M2": _six_bits(2, 3)}


def e2m1(codes: NDArray[Any]) -> tuple[Float, NDArray[np.uint8]]:
    """The sorted values of E2M1 (15: zero has two codes), and where those of codes of 4 bits are among them."""
    return _sorted(E2M1, codes)


def six_bits(codes: NDArray[Any], kind: str = "E2M3") -> tuple[Float, NDArray[np.uint8]]:
    """The sorted values of E2M3 or E3M2 (63), and where those of codes of 6 bits are among them."""
    return _sorted(_SIX_BITS[kind], codes)


def float8(values: Float, kind: str) -> tuple[Float, NDArray[np.uint8]]:
    """The sorted finite values of an 8-bit float, and where ``values``, numbers of that type, are among them."""
    table = NARROW_FLOATS[kind]
    table = table[np.isfinite(table)]
    grid, place = np.unique(table.astype(np.float64) + 0.0, return_inverse=True)
    by_bits = np.zeros(4096, dtype=np.uint8)
    by_bits[_leading(table)] = place
    return grid, by_bits[_leading(values.astype(np.float32))]


def _leading(values: NDArray[np.float32]) -> NDArray[Any]:
    """Sign, exponent and the first three bits of the mantissa, which is all that 8-bit floats have."""
    return np.asarray(values.view(np.uint32) >> 20)


def _sorted(table: Float, codes: NDArray[Any]) -> tuple[Float, NDArray[np.uint8]]:
    grid, place = np.unique(table + 0.0, return_inverse=True)
    return grid, place.astype(np.uint8)[codes]
