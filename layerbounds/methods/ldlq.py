"""LDLQ: the rounding of QuIP, without its incoherence processing."""

from __future__ import annotations

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.methods import lazy_rounding, stochastic_rounding, sweep
from layerbounds.kernels.successive import factors_in_order, rounding_order
from layerbounds.methods.base import ChannelView, check_damp, choice_of, chosen_levels

#: Columns whose errors are passed on at once: it changes the speed only.
BLOCK = 128


def ldlq(
    view: ChannelView,
    rounding: str = "nearest",
    damp: float = 0.0,
    reorder: bool = False,
    greedy_passes: int = 0,
) -> Float:
    """Round with the linear feedback of the LDL decomposition, to the nearest level or without bias.

    Chee et al., "QuIP: 2-Bit Quantization of Large Language Models With Guarantees" (NeurIPS 2023), section 3, and the
    greedy passes of its supplement; LDLQ with nearest rounding and GPTQ are the same map. QuIP's rotations change the
    layer: rotate weights and Gram matrix before they become a `Layer` to compare those.

    Parameters
    ----------
    view : ChannelView
    rounding : {"nearest", "stochastic"}
        Stochastic rounding takes the level above with the probability that makes it unbiased between two levels.
    damp : float
        Fraction of the mean diagonal added before the factorization; raised tenfold while that breaks down.
    reorder : bool
        Largest diagonal entry first (LDLQ-RG).
    greedy_passes : int
        Cyclic passes of coordinate descent at the end, in the order of the rounding.
    """
    check_damp(damp)
    one_of(rounding, "rounding", ("nearest", "stochastic"))
    if greedy_passes < 0:
        raise InputError(f"greedy_passes is {greedy_passes}; pass a number ≥ 0.")
    n = len(view.target)
    order = rounding_order(view.gram, reorder)
    _, shifts = view.once(("factors", damp, reorder, False), lambda: factors_in_order(view.gram, order, damp))
    target, levels, count = view.target[order], np.ascontiguousarray(view.levels[order]), view.count[order]
    choice = np.zeros(n, dtype=np.int64)
    if rounding == "nearest":
        lazy_rounding(shifts, target, levels, count, BLOCK, choice)
    else:
        stochastic_rounding(shifts, target, levels, count, view.rng.random(n), choice)
    result = np.empty(n)
    result[order] = levels[np.arange(n), choice]
    if greedy_passes:
        # First column first, as in the rounding.
        forward = order[::-1]
        gram = np.ascontiguousarray(view.gram[np.ix_(forward, forward)])
        value, aim = result[forward], view.target[forward]
        table, sizes = np.ascontiguousarray(view.levels[forward]), view.count[forward]
        gradient = gram @ (value - aim)
        for _ in range(greedy_passes):
            if not sweep(gram, table, sizes, True, value, gradient, aim):
                break
        result[forward] = value
    return chosen_levels(view, choice_of(view, result))
