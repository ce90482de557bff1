"""Rounding one input after the other, each error passed on to those still free: a block of inputs of many rows."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.batched.levels import nearest_code
from layerbounds.kernels.compilation import REORDER, kernel


@kernel(fastmath=REORDER, force_inline=True, nested=True)
def _pass_on(error, row, begin, end, centres):
    for j in range(begin, end):
        centres[j] += error * row[j]


@kernel()
def round_block(shifts, centres, targets, inputs, codes, scale, zero, group, uniform, choice, errors):
    """Round a block of inputs in order.

    Parameters
    ----------
    shifts : (block, block) float32
        Row j: how far the centres of later inputs of the block move for a unit error of input j.
    centres : (rows, block) float32
        Targets, moved by the errors of all earlier blocks. Overwritten.
    targets : (rows, n) float64
    inputs : (block,) int64
        Their numbers.
    codes, scale, zero, group, uniform
        See `round_nearest`.
    choice : (rows, n) int16
        Filled at the inputs.
    errors : (rows, block) float32
        Filled: targets minus levels.
    """
    block = len(inputs)
    for r in range(centres.shape[0]):
        row = centres[r]
        for j in range(block):
            i = inputs[j]
            k = group[i]
            c = nearest_code(row[j] / scale[r, k] + zero[r, k], codes, uniform)
            choice[r, i] = c
            error = np.float32(targets[r, i] - scale[r, k] * (codes[c] - zero[r, k]))
            errors[r, j] = error
            _pass_on(error, shifts[j], j + 1, block, row)
