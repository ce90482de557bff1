"""QuantEase."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.methods import sweep
from layerbounds.methods.base import ChannelView, choice_of, chosen_levels


def quantease(view: ChannelView, iterations: int = 25, relax_every: int = 3) -> Float:
    """Cyclic coordinate descent on the layer error, from the dense weights.

    Behdin et al., "QuantEase: Optimization-based Quantization for Language Models" (arXiv 2309.01885).
    Every third sweep sets the weights to the real minimisers instead of levels, which lets the descent leave a local
    minimum; the last sweep never does.

    Parameters
    ----------
    view : ChannelView
    iterations : int
        Sweeps over all weights.
    relax_every : int
        Every how many sweeps the levels are ignored; 0 for never.
    """
    if iterations < 1 or relax_every < 0:
        raise InputError(
            f"iterations is {iterations} and relax_every {relax_every}; pass at least one sweep and a number ≥ 0."
        )
    gram = np.ascontiguousarray(view.gram)
    value, gradient = view.target.copy(), np.zeros(len(view.target))
    for step in range(1, iterations + 1):
        quantize = step == iterations or not relax_every or step % relax_every != 0
        moved = sweep(gram, view.levels, view.count, quantize, value, gradient, view.target)
        if quantize and not moved and not relax_every:
            break
    return chosen_levels(view, choice_of(view, value))
