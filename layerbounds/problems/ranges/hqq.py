"""Range ``hqq``: half-quadratic quantization, which improves a real zero point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.ranges.rule import Codes, Fitted, positive

NORM, BETA, GROWTH, ITERATIONS = 0.7, 10.0, 1.01, 20


def hqq(blocks: Sequence[Float], codes: Codes) -> list[Fitted]:
    """The scale of the whole range, and a real zero point from alternating with a sparse error.

    Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023), with the defaults of the
    package hqq: p = 0.7, β = 10, growth 1.01, at most 20 iterations. s = (max w − min w)/(2^b − 1) stays, and z starts
    at −min w/s (with 4 bits rounded). Each iteration rounds, takes as sparse error e the part of the deviation
    r = w − level that soft thresholding leaves, sign(r)·max(|r| − |r|^(p−1)/β, 0), sets z to the mean of q − (w − e)/s,
    and lets β grow; it ends when the mean |r| of the whole tensor does not fall. β is no relative number: where all
    deviations are smaller than β^(−1/(2−p)) = 0.17, e is 0.
    """
    fitted = [_whole_range(block, codes) for block in blocks]
    beta, least = BETA, np.inf
    for _ in range(ITERATIONS):
        total, count = 0.0, 0
        for k, (block, (scale, zero)) in enumerate(zip(blocks, fitted, strict=True)):
            level = rounded_to(block, scale, zero, codes)
            deviation = block - level
            size = np.abs(deviation)
            with np.errstate(divide="ignore"):
                kept = np.maximum(size - size ** (NORM - 1.0) / beta, 0.0)
            sparse = np.sign(deviation) * kept
            # q − (w − e)/s, from the level s·(q − z).
            moved = zero + ((level - (block - sparse)) / scale[:, None]).mean(axis=1)
            fitted[k] = (scale, moved)
            total += float(size.sum())
            count += size.size
        beta *= GROWTH
        if not total / count < least:
            break
        least = total / count
    return fitted


def rounded_to(block: Float, scale: Float, zero: Float, codes: Codes) -> Float:
    """The levels nearest to the weights, for zero points that are no integers."""
    s, z = scale[:, None], zero[:, None]
    return np.asarray(s * (np.clip(np.rint(block / s + z), codes.low, codes.high) - z))


def _whole_range(block: Float, codes: Codes) -> Fitted:
    low, high = block.min(axis=1), block.max(axis=1)
    # Equal weights have a level of their own.
    flat = ~(high - low > 1e-12 * np.maximum(np.abs(low), np.abs(high)))
    scale = positive(np.where(flat, np.abs(low), (high - low) / codes.high))
    zero = -low / scale
    return scale, np.rint(zero) if len(codes.values) == 16 else zero
