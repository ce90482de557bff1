"""Weights of a coarse type, moved to the levels that they were rounded from (docs/grids.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.problems.float_types import FLOAT_TYPES
from layerbounds.problems.levels import nearest_levels

#: Types that software reaches through float32, which rounds first.
_THROUGH_SINGLE = ("bfloat16", "float16")


def half_units(values: Float, outward: Bool, dtype: str) -> Float:
    """Half the distance from numbers of a type to the next one, away from zero where ``outward``, else towards it.

    Below a power of two the numbers of a type lie twice as close; around zero, and below the smallest normal number,
    all distances are equal. Half a unit of float32 comes on top for the 16-bit types.
    """
    distance = np.zeros(np.shape(values))
    for name in (dtype, "float32") if dtype in _THROUGH_SINGLE else (dtype,):
        kind = FLOAT_TYPES[name]
        mantissa, exponent = np.frexp(np.abs(values))
        exponent = np.where(values == 0.0, kind.smallest, np.maximum(exponent - kind.digits, kind.smallest))
        closer = (mantissa == 0.5) & (exponent > kind.smallest) & ~outward
        distance += np.ldexp(0.5, exponent - closer)
    return distance


def moved_to_levels(weights: Float, levels: Float, dtype: str) -> Float:
    """Weights at the level nearest to each where one rounding to the type explains the distance, others as they are.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        Numbers of the type.
    levels : ndarray of shape (n, levels)
        Sorted.
    dtype : {"float64", "float32", "bfloat16", "float16"}
    """
    nearest = nearest_levels(levels, weights)
    outward = np.abs(nearest) > np.abs(weights)
    return np.where(np.abs(nearest - weights) <= half_units(weights, outward, dtype), nearest, weights)
