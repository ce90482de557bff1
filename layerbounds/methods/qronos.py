"""Qronos."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import cholesky
from layerbounds.kernels.quantization.rounding import nearest, successive_rounding
from layerbounds.kernels.successive import factorize, rounding_order
from layerbounds.methods.base import ChannelView, check_damp, chosen_levels


def qronos(view: ChannelView, damp: float = 1e-6, act_order: bool = False) -> Float:
    """Round the first weight beside the other dense ones, then each as the best answer to what is rounded before it.

    Zhang et al., "Qronos: Correcting the Past by Shaping the Future... in Post-Training Quantization" (ICLR 2026; arXiv
    2505.11695). Inputs of quantized layers make the target differ from the dense weights. The first weight corrects
    their error as if nothing else could; from the second one on it is GPTQ on the target. Where target and dense
    weights are the same, all of it is GPTQ.

    Parameters
    ----------
    view : ChannelView
    damp : float
        Fraction of the largest eigenvalue that pulls the weights after the first one towards the dense ones; raised
        tenfold while the factorization breaks down.
    act_order : bool
        Quantize the inputs of largest energy first.
    """
    check_damp(damp)
    order = rounding_order(view.gram, act_order)
    gram = np.ascontiguousarray(view.gram[np.ix_(order, order)])
    lower, shifts = view.once(("qronos", damp, act_order), lambda: _factors(gram, damp))
    dense, levels, count = view.dense[order], np.ascontiguousarray(view.levels[order]), view.count[order]
    missing = gram @ (view.target[order] - dense)
    choice = np.zeros(len(order), dtype=np.int64)
    # The input that is rounded first stands last.
    first = len(order) - 1
    choice[first] = nearest(levels[first], count[first], dense[first] + missing[first] / gram[first, first])
    if first:
        target = dense + scipy.linalg.cho_solve((lower, True), missing, check_finite=False)
        target += shifts[first] * (levels[first, choice[first]] - target[first])
        inner = np.ascontiguousarray(shifts[:first, :first])
        successive_rounding(inner, target[:first], levels[:first], count[:first], choice[:first])
    unordered = np.empty_like(choice)
    unordered[order] = choice
    return chosen_levels(view, unordered)


def _factors(gram: Float, damp: float) -> tuple[Float, Float]:
    """Cholesky factor and centre shifts of the damped matrix."""
    largest = float(np.linalg.eigvalsh(gram)[-1])
    fraction = damp
    while True:
        charged = gram + fraction * largest * np.eye(len(gram))
        factors, lower = factorize(charged), cholesky(charged)
        if factors is not None and lower is not None:
            return lower, factors[1]
        fraction = max(10.0 * fraction, 1e-10)
