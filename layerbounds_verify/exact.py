"""Float64 arrays as exact integers: every float64 number is an integer times a power of two.

An array becomes an object array of Python's integers, in units of 2^−p for a p that makes all of them whole. Weights
are in units of 2^−a and Gram matrices in units of 2^−b, so that all errors are integers in units of 2^−(2a + b): sums,
products and comparisons are exact, with NumPy's operators.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

#: Half an ulp of 1.
U = 2.0**-53


class RefusedError(Exception):
    """A certificate proves less than it claims; the message says why, in one sentence."""


class TooLittleError(RefusedError):
    """A proof gives a smaller lower end than is claimed."""

    def __init__(self, lower: float, claim: float) -> None:
        super().__init__(f"its proof gives a lower end of {lower:.17g}, and {claim:.17g} is claimed")
        self.lower = lower


def power(*arrays: Any) -> int:
    """The p of some arrays."""
    least = 0
    for array in arrays:
        values = np.asarray(array, dtype=np.float64)
        if not np.all(np.isfinite(values)):
            raise RefusedError("it holds NaN or infinity")
        used = values[values != 0.0]
        least = min(least, int(np.frexp(used)[1].min()) - 53 if used.size else 0)
    return -least


def integers(array: Any, p: int) -> Any:
    """An array times 2^p, an object array."""
    values = np.asarray(array, dtype=np.float64)
    part, exponent = np.frexp(values)
    whole = (part * 2.0**53).astype(np.int64).reshape(-1).tolist()
    shift = (exponent.astype(np.int64) - 53 + p).reshape(-1).tolist()
    result = np.empty(len(whole), dtype=object)
    result[:] = [w << s if s >= 0 else w >> -s for w, s in zip(whole, shift, strict=True)]
    return result.reshape(values.shape)


@lru_cache(maxsize=4)
def _of_matrix(data: bytes, n: int) -> tuple[Any, int]:
    matrix = np.frombuffer(data).reshape(n, n)
    return integers(matrix, power(matrix)), power(matrix)


def matrix_integers(matrix: Any) -> tuple[Any, int]:
    """A matrix as integers and their power; the last ones are kept, as many rows share theirs."""
    return _of_matrix(matrix.tobytes(), len(matrix))


def floats(array: Any, p: int) -> Any:
    """The float64 numbers nearest to integers times 2^−p."""
    unit = 1 << p
    return np.array([value / unit for value in array.reshape(-1)], dtype=np.float64).reshape(array.shape)


def below(value: Fraction) -> float:
    """The largest float64 number that is not larger."""
    near = float(value)
    return near if Fraction(near) <= value else float(np.nextafter(near, -np.inf))


def fraction(value: Any, p: int) -> Fraction:
    """An integer times 2^−p."""
    return Fraction(int(value), 1 << p)


#: Right factors of the last products with their digits, as many rows have one in common.
_KEPT: list[tuple[Any, int, Any]] = []


def product(left: Any, right: Any) -> Any:
    """The exact product of object arrays of integers, the left one of any leading shape.

    Both are cut into digits of so few bits that float64 products of digits, and their sums, are exact.
    """
    bits = (50 - right.shape[0].bit_length()) // 2
    sums: dict[int, Any] = {}
    second = next((digits for array, own, digits in _KEPT if array is right and own == bits), None)
    if second is None:
        second = _digits(right, bits)
        _KEPT[:] = [(right, bits, second), *_KEPT[:2]]
    for s, first in _digits(left, bits):
        for t, other in second:
            sums[s + t] = sums.get(s + t, 0) + (first @ other).astype(np.int64)
    total = np.zeros((*left.shape[:-1], right.shape[1]), dtype=object)
    for place, part in sums.items():
        total += part.astype(object) << bits * place
    return total


def _digits(array: Any, bits: int) -> list[tuple[int, Any]]:
    """Places k and float64 arrays, but for those of zeros, whose sum with the weights 2^(bits·k) is the array."""
    rest, sign = np.abs(array), np.where(array < 0, -1.0, 1.0)
    found = []
    for k in range(int(rest.max(initial=0)).bit_length() // bits + 1):
        digit = (rest >> bits * k & (1 << bits) - 1).astype(np.float64)
        if np.any(digit):
            found.append((k, digit * sign))
    return found
