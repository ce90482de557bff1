"""AdaRound."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.adaround import adaround as train
from layerbounds.methods.base import ChannelView


def adaround(
    view: ChannelView,
    iterations: int = 10_000,
    lr: float = 0.01,
    reg: float = 0.01,
    warm_start: float = 0.2,
    beta_start: float = 20.0,
    beta_end: float = 2.0,
) -> Float:
    """Learn by gradient descent whether each weight is rounded up or down.

    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020), section 3.3: the
    rectified sigmoid starts at the dense weights, Adam minimises the layer's reconstruction error plus
    λ Σ (1 − |2h − 1|^β), and β falls. The error is the full-batch one, (v − w)ᵀH(v − w), in place of mini-batches. A
    weight outside the levels stays at the last one.

    Parameters
    ----------
    view : ChannelView
    iterations : int
    lr : float
        Learning rate of Adam.
    reg : float
        λ.
    warm_start : float
        Fraction of the iterations without the regulariser.
    beta_start, beta_end : float
    """
    if iterations < 1 or not lr > 0 or not reg >= 0 or not 0 <= warm_start <= 1:
        raise InputError(
            f"iterations is {iterations}, lr {lr}, reg {reg}, warm_start {warm_start}; pass at least one iteration, "
            "a positive rate, a weight ≥ 0 and a fraction in [0, 1]."
        )
    if not (beta_start >= 1 and beta_end >= 1):
        raise InputError(f"beta_start is {beta_start} and beta_end {beta_end}; pass exponents ≥ 1.")
    n, top = len(view.target), view.count - 1
    below = np.clip(np.sum(view.levels <= view.target[:, None], axis=1) - 1, 0, np.maximum(top - 1, 0))
    above = np.minimum(below + 1, top)
    rows = np.arange(n)
    low, high = view.levels[rows, below].copy(), view.levels[rows, above].copy()
    low[view.target >= high] = high[view.target >= high]
    high[view.target <= low] = low[view.target <= low]
    share = train(
        np.ascontiguousarray(view.gram), view.target, low, high, int(iterations), float(lr), float(reg),
        int(warm_start * iterations), float(beta_start), float(beta_end),
    )  # fmt: skip
    return np.asarray(np.where(share >= 0.5, high, low))
