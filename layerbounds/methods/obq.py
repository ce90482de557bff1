"""Optimal brain quantization."""

from __future__ import annotations

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.arrays import Float, Int
from layerbounds.kernels.quantization.methods import optimal_brain_quantization
from layerbounds.kernels.successive import rounding_order
from layerbounds.methods.base import ChannelView, check_damp, chosen_levels
from layerbounds.methods.pruning import damped_inverse

ORDERS = ("error", "columns", "activations")


def obq(view: ChannelView, order: str = "error", damp: float = 0.01, outliers: bool = True) -> Float:
    """Round the weight whose rounding costs least, re-optimise the weights still free, and repeat.

    Frantar & Alistarh, "Optimal Brain Compression" (NeurIPS 2022), algorithm 3, with its rule for outliers; costs and
    updates from the exact inverse of the Gram matrix of the free inputs.

    Parameters
    ----------
    view : ChannelView
    order : {"error", "columns", "activations"}
        Smallest cost first, as published; or the order of GPTQ without or with ``act_order``, which then gives GPTQ.
    damp : float
        Fraction of the mean diagonal added before the inversion; raised tenfold while that breaks down.
    outliers : bool
        Round a weight beyond the last level by more than half of the last gap as soon as it appears.
    """
    check_damp(damp)
    one_of(order, "order", tuple(ORDERS))
    inverse = view.once(("inverse", damp), lambda: damped_inverse(view.gram, damp))
    n = len(view.target)
    sequence: Int = np.empty(0, dtype=np.int64)
    if order != "error":
        sequence = np.ascontiguousarray(rounding_order(view.gram, order == "activations")[::-1])
    choice = np.zeros(n, dtype=np.int64)
    optimal_brain_quantization(
        np.ascontiguousarray(inverse.copy()), view.target, view.levels, view.count, sequence, bool(outliers), choice
    )
    return chosen_levels(view, choice)
