"""ADMM-Q."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.rounding import coordinate_descent as descend
from layerbounds.methods.base import ChannelView, choice_of, chosen_levels


def admm_q(
    view: ChannelView, steps: int = 300, penalty: float = 0.01, growth: float = 1.1, every: int = 3, polish: bool = True
) -> Float:
    """Alternate a ridge solve and rounding to the nearest levels with a growing penalty, then move single weights.

    Lucas, Makni, Meng, Deng & Mazumder, "ADMM-Q: An Improved Hessian-based Weight Quantizer for Post-Training
    Quantization of Large Language Models" (arXiv 2605.11222): real weights lower the error of the layer, their rounded
    copies keep to the grid, a dual variable and a rising penalty pull them together. Inputs are normalised to equal
    energy; one eigendecomposition serves all penalties and channels.

    Parameters
    ----------
    view : ChannelView
    steps : int
        Largest number of steps; it ends earlier where both copies agree.
    penalty, growth, every : float, float, int
        ρ of the first steps, in units of the energy of an input, and by what factor it grows every how many steps.
    polish : bool
        End with the local search: the single move that lowers the error most, while one does.
    """
    if steps < 1 or every < 1 or not penalty > 0 or not growth >= 1:
        raise InputError(
            f"steps is {steps}, every {every}, penalty {penalty} and growth {growth}; pass positive numbers and a "
            "factor of at least 1."
        )
    scale = np.sqrt(np.diag(view.gram))
    values, vectors = view.once("admm_q", lambda: np.linalg.eigh(view.gram / np.outer(scale, scale)))
    values = np.maximum(values, 0.0)
    target = view.target * scale
    right = ((target @ vectors) * values) @ vectors.T
    size = float(np.linalg.norm(target))
    choice = before = choice_of(view, view.target)
    rounded = chosen_levels(view, choice) * scale
    dual = np.zeros_like(target)
    rho = float(penalty)
    for step in range(1, steps + 1):
        dense = (((right - dual + rho * rounded) @ vectors) / (values + rho)) @ vectors.T
        choice = choice_of(view, (dense + dual / rho) / scale)
        rounded = chosen_levels(view, choice) * scale
        dual = dual + rho * (dense - rounded)
        if step % every == 0:
            if np.array_equal(choice, before) and np.linalg.norm(dense - rounded) <= 1e-4 * size:
                break
            before = choice
            rho *= growth
    if polish:
        descend(view.gram, view.target, view.levels, view.count, choice, False, 100 * len(choice))
    return chosen_levels(view, choice)
