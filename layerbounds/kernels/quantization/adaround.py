"""Compiled AdaRound: Adam on the rectified-sigmoid relaxation of rounding up or down, for one output channel."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

#: Stretch of the sigmoid, so that 0 and 1 are reached (Nagel et al. 2020, equation 23).
ZETA, GAMMA = 1.1, -0.1


@kernel()
def adaround(gram, target, low, high, iterations, rate, regularisation, warm, first, last):
    """Relaxed share h of each weight between the level below it and the one above, after training.

    Minimises (v − w)ᵀH(v − w) + λ Σ (1 − |2h − 1|^β), v = low + h·(high − low), h the clipped stretched sigmoid of the
    trained variables; the regulariser is off for the first ``warm`` iterations, then β falls from ``first`` to
    ``last`` along half a cosine.
    """
    n = target.shape[0]
    width = high - low
    stretch = ZETA - GAMMA
    variable = np.zeros(n)
    for i in range(n):
        if width[i] > 0.0:
            share = min(max((target[i] - low[i]) / width[i], 0.0), 1.0)
            variable[i] = -np.log(stretch / (share - GAMMA) - 1.0)
    sigmoid, share = np.empty(n), np.empty(n)
    mean, square = np.zeros(n), np.zeros(n)
    deviation = np.empty(n)
    for step in range(iterations + 1):
        for i in range(n):
            sigmoid[i] = 1.0 / (1.0 + np.exp(-variable[i]))
            share[i] = min(max(sigmoid[i] * stretch + GAMMA, 0.0), 1.0)
            deviation[i] = low[i] + share[i] * width[i] - target[i]
        if step == iterations:
            break
        gradient = np.dot(gram, deviation)
        beta = 0.0
        if step >= warm:
            progress = (step - warm) / max(iterations - warm, 1)
            beta = last + 0.5 * (first - last) * (1.0 + np.cos(np.pi * progress))
        decay, decay2 = 1.0 - 0.9 ** (step + 1), 1.0 - 0.999 ** (step + 1)
        for i in range(n):
            slope = 0.0
            if 0.0 < share[i] < 1.0:
                slope = 2.0 * gradient[i] * width[i]
                if step >= warm:
                    side = 2.0 * share[i] - 1.0
                    pull = 2.0 * regularisation * beta * abs(side) ** (beta - 1.0)
                    slope += -pull if side > 0.0 else pull
                slope *= stretch * sigmoid[i] * (1.0 - sigmoid[i])
            mean[i] = 0.9 * mean[i] + 0.1 * slope
            square[i] = 0.999 * square[i] + 0.001 * slope * slope
            variable[i] -= rate * (mean[i] / decay) / (np.sqrt(square[i] / decay2) + 1e-8)
    return share
