"""GPTQ."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.methods import lazy_rounding
from layerbounds.kernels.successive import factors_in_order, rounding_order
from layerbounds.methods.base import ChannelView, check_damp


def gptq(
    view: ChannelView, damp: float = 0.01, act_order: bool = False, block_size: int = 128, reverse: bool = False
) -> Float:
    """Round weights one after the other and spread each error over the weights still free.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (ICLR 2023),
    algorithm 1. Back to front and without clipping it is Babai's nearest plane (arXiv 2507.18553). The damping
    only steers the method; its result is scored on the undamped Gram.

    Parameters
    ----------
    view : ChannelView
    damp : float
        Fraction of the mean diagonal added before the factorization; raised tenfold while that breaks down.
    act_order : bool
        Quantize the inputs of largest energy first.
    block_size : int
        Columns whose errors are passed on to the later columns at once. It changes the speed only.
    reverse : bool
        Quantize the last column of the order first.
    """
    check_damp(damp)
    if block_size < 1:
        raise InputError(f"block_size is {block_size}; pass a number of columns ≥ 1.")
    order = rounding_order(view.gram, act_order, reverse)
    _, shifts = view.once(("factors", damp, act_order, reverse), lambda: factors_in_order(view.gram, order, damp))
    choice = np.zeros(len(order), dtype=np.int64)
    levels = np.ascontiguousarray(view.levels[order])
    lazy_rounding(shifts, view.target[order], levels, view.count[order], int(block_size), choice)
    result = np.empty(len(order))
    result[order] = view.levels[order, choice]
    return result
