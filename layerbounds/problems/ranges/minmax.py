"""Range ``minmax``: the smallest scale that clips nothing."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.ranges.rule import Codes, Fitted, positive, with_zero


def minmax(block: Float, codes: Codes) -> Fitted:
    """The smallest scale that clips nothing; asymmetric with 0 a level, codebooks with max|w| at the largest |code|."""
    none = np.zeros(block.shape[0])
    if codes.kind == "asymmetric":
        return whole_range(block, codes)
    if codes.kind == "symmetric":
        return positive(np.maximum(block.max(axis=1) / codes.high, block.min(axis=1) / codes.low)), none
    if codes.binary:
        return positive(np.abs(block).mean(axis=1)), none
    base = largest_to_largest(block, codes)
    return 2.0 ** np.ceil(np.log2(base)) if codes.powers_of_two else base, none


def whole_range(block: Float, codes: Codes) -> Fitted:
    """Scale and integer zero point of the range from the least to the largest weight, 0 included."""
    low, high = with_zero(block)
    scale = positive((high - low) / codes.high)
    return scale, np.clip(np.rint(-low / scale), 0, codes.high)


def largest_to_largest(block: Float, codes: Codes) -> Float:
    """The scale that maps max|w| to the largest |code|."""
    peak = float(np.max(np.abs(codes.values)))
    return positive(np.abs(block).max(axis=1) / (peak or 1.0))
