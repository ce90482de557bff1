"""Range ``gptq``: the shrinking range of GPTQ's quantizer with its option ``mse``."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.ranges.rule import Codes, Fitted, best_of, positive, rounded, unless_zero, with_zero

#: Shares of the whole range that are tried: 1, 0.99, …, 0.21.
SHARES = 1.0 - np.arange(80) / 100.0
#: Exponent of the weight error.
NORM = 2.4


def gptq(block: Float, codes: Codes) -> Fitted:
    """The share p of the weights' range with the smallest Σ|w − level|^2.4: 1, 0.99, …, 0.21; the largest of equals.

    The quantizer that comes with Frantar, Ashkboos, Hoefler & Alistarh, "GPTQ" (ICLR 2023), with ``mse=True`` and its
    defaults norm 2.4, grid 100, maxshrink 0.8. Asymmetric: s = p·(h − l)/(2^b − 1) with l = min(min w, 0) and
    h = max(max w, 0), zero point −l/s rounded for p = 1. Symmetric: the same with h = max|w| and l = −h, but l = 0
    where no weight is negative, so that such rows get scales of half the size and clip.
    """
    low, high = with_zero(block)
    top = len(codes.values) - 1
    if codes.kind == "symmetric":
        high = np.maximum(-low, high)
        low = np.where(low < 0, -high, 0.0)
    base = positive((high - low) / top)
    zero = np.zeros(block.shape[0]) if codes.kind == "symmetric" else np.clip(np.rint(-low / base), 0, top)

    def error(scale: Float) -> Float:
        # In units of the scale of the whole range, so that the power neither overflows nor underflows.
        deviation = np.abs(block - rounded(block, scale, zero, codes)) / base[:, None]
        return np.asarray((deviation**NORM).sum(axis=1))

    return unless_zero(block, best_of(SHARES[:, None] * base, error)), zero
