"""FISTAPruner."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import InputError
from layerbounds.methods.pruning import PruningView, finish_pass, largest, single_inputs
from layerbounds.methods.sparsegpt import sparsegpt
from layerbounds.methods.wanda import wanda


def _dense(view: PruningView) -> Float:
    return view.target


STARTS: dict[str, Callable[[PruningView], Float]] = {"dense": _dense, "wanda": wanda, "sparsegpt": sparsegpt}


def fistapruner(
    view: PruningView,
    start: str = "sparsegpt",
    steps: int = 20,
    rounds: int = 30,
    ratio: float = 0.3,
    refit: bool = False,
) -> Float:
    """Minimise the error plus λ times the sum of sizes by FISTA, drop the smallest weights, and bisect on λ.

    Zhao et al., "FISTAPruner: Layer-wise Post-training Pruning for Large Language Models" (EMNLP 2025; arXiv
    2408.03728): the convex model's weights are rounded to the pattern. Where rounding makes up more than a part of the
    root of the error, λ was too small, otherwise too large; the best rounded weights stay, and each round starts from
    them. FISTA: Beck & Teboulle, SIAM J. Imaging Sciences 2(1), 2009.

    Parameters
    ----------
    view : PruningView
    start : {"dense", "wanda", "sparsegpt"}
        Where the first round starts.
    steps : int
        Steps of FISTA in a round.
    rounds : int
        Values of λ.
    ratio : float
        The part of the error that rounding may make up.
    refit : bool
        Re-optimise the kept weights at the end; the paper does not.
    """
    single_inputs(view, "fistapruner")
    one_of(start, "start", tuple(STARTS))
    if steps < 1 or rounds < 1 or not 0 <= ratio <= 1:
        raise InputError(
            f"steps is {steps}, rounds {rounds} and ratio {ratio}; pass positive numbers and a part in [0, 1]."
        )
    gram, target = view.gram, view.target
    correlation = gram @ target
    length = 1.0 / max(float(np.linalg.eigvalsh(gram)[-1]), 1e-300)

    def error(weights: Float) -> float:
        deviation = weights - target
        return float(np.sqrt(max(float(deviation @ (gram @ deviation)), 0.0)))

    point = STARTS[start](view)
    mask: Bool = largest(view, point)
    best = np.where(mask, point, 0.0)
    least = error(best)
    # From the largest λ on all weights are zero.
    low, high = 0.0, float(np.max(np.abs(correlation)))
    price = 1e-3 * high
    for _ in range(rounds):
        point = _fista(gram, correlation, best, price, length, steps)
        kept = largest(view, point)
        rounded = np.where(kept, point, 0.0)
        total = error(rounded)
        if total < least:
            mask, best, least = kept, rounded, total
        if total - error(point) > ratio * total:
            low = price
        else:
            high = price
        price = 0.5 * (low + high)
    return finish_pass(view, mask, best, refit)


def _fista(gram: Float, correlation: Float, start: Float, price: float, length: float, steps: int) -> Float:
    """So many steps towards the minimum of ½vᵀHv − cᵀv + λ‖v‖₁."""
    point, ahead, momentum = start, start, 1.0
    for _ in range(steps):
        moved = ahead - length * (gram @ ahead - correlation)
        new = np.sign(moved) * np.maximum(np.abs(moved) - length * price, 0.0)
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum))
        ahead = new + (momentum - 1.0) / following * (new - point)
        point, momentum = new, following
    return point
