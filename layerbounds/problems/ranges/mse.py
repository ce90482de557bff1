"""Range ``mse``: the shrink factor with the least squared weight error."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.ranges.minmax import largest_to_largest, whole_range
from layerbounds.problems.ranges.rule import Codes, Fitted, best_of, positive, rounded, unless_zero

#: Shrink factors that are tried (docs/grids.md).
MSE_STEPS = np.linspace(0.3, 1.1, 81)


def mse(block: Float, codes: Codes) -> Fitted:
    """Of 81 equal shrink factors in [0.3, 1.1], the one with the smallest squared weight error.

    The binary codebook always has mean|w|, the minimiser of its weight error; scales that have to be powers of two are
    the best of four around that of OCP Microscaling Formats (MX) v1.0.
    """
    zero = np.zeros(block.shape[0])
    if codes.binary:
        return positive(np.abs(block).mean(axis=1)), zero
    if codes.kind == "codebook":
        return _codebook(block, codes), zero
    if codes.kind == "symmetric":
        base = positive(np.abs(block).max(axis=1) / (codes.high + 0.5))
    else:
        base, zero = whole_range(block, codes)

    def error(scale: Float) -> Float:
        return np.asarray(((block - rounded(block, scale, zero, codes)) ** 2).sum(axis=1))

    return unless_zero(block, best_of(MSE_STEPS[:, None] * base, error)), zero


def _codebook(block: Float, codes: Codes) -> Float:
    base = largest_to_largest(block, codes)
    edges = 0.5 * (codes.values[1:] + codes.values[:-1])

    def error(scale: Float) -> Float:
        scaled = block / scale[:, None]
        return np.asarray(((scaled - codes.values[np.searchsorted(edges, scaled)]) ** 2).sum(axis=1) * scale**2)

    if codes.powers_of_two:
        peak = float(np.max(np.abs(codes.values)))
        exponent = np.floor(np.log2(base * peak)) - np.floor(np.log2(peak))
        candidates = 2.0 ** (exponent + np.arange(-2, 2)[:, None])
    else:
        candidates = MSE_STEPS[:, None] * base
    return unless_zero(block, best_of(candidates, error))
