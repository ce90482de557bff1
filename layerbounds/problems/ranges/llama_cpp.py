"""Range ``llama.cpp``: the scale search of llama.cpp's symmetric formats."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.ranges.rule import Codes, Fitted, positive

#: Offsets of the code that the weight of largest magnitude is mapped to; 0 first, so that it wins ties.
OFFSETS = np.concatenate(([0.0], 0.1 * np.delete(np.arange(-9, 10), 9)))


def llama_cpp(block: Float, codes: Codes) -> Fitted:
    """Of 19 trial scales the one whose codes fit best, and the least-squares scale of these codes.

    The function make_qx_quants of llama.cpp (ggml-quants.c) in the mode that its 6-bit format uses, where weights count
    by their squares. With N = 2^(b−1) and m the weight of largest magnitude, the codes q of the scale −m/(N + d),
    d = −0.9, −0.8, …, 0.9, are those nearest to the weights; (Σ w²·w·q)² / Σ w²·q² is largest for the best of them, and
    its scale is Σ w²·w·q / Σ w²·q². The largest weight is mapped to the code −N, so scales are negative where m is
    positive.
    """
    # Powers of the weights neither overflow nor underflow in units of the largest one.
    size = np.abs(block).max(axis=1)
    unit = np.where(size > 0, size, 1.0)
    x = block / unit[:, None]
    importance = x * x
    largest = x[np.arange(len(x)), np.argmax(np.abs(x), axis=1)]
    best = np.full(len(x), -np.inf)
    scale = np.ones(len(x))
    for offset in OFFSETS:
        inverse = -(codes.high + 1.0 + offset) / np.where(largest != 0, largest, 1.0)
        q = np.clip(np.rint(inverse[:, None] * x), codes.low, codes.high)
        product, square = (importance * x * q).sum(axis=1), (importance * q * q).sum(axis=1)
        some = square > 0
        quality = np.where(some, product * product / np.where(some, square, 1.0), -np.inf)
        better = quality > best
        best[better] = quality[better]
        scale[better] = (product / np.where(some, square, 1.0))[better]
    scale *= unit
    return np.copysign(positive(np.abs(scale)), scale), np.zeros(len(block))
