"""Coordinate descent."""

from __future__ import annotations

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.kernels.quantization.methods import sweep
from layerbounds.kernels.quantization.rounding import coordinate_descent as descend
from layerbounds.methods.base import ChannelView, choice_of, chosen_levels
from layerbounds.methods.gptq import gptq
from layerbounds.methods.round_to_nearest import round_to_nearest

STARTS = {"rtn": round_to_nearest, "gptq": gptq}
MOVES = ("greedy", "cyclic")


def coordinate_descent(view: ChannelView, start: str = "rtn", moves: str = "greedy", pairs: bool = True) -> Float:
    """Move single weights to their best level, then pairs of weights to neighbouring levels.

    Greedy moves: Nair & Suggala, "CDQuant" (arXiv 2406.17542), algorithm 1; its block version optimises random pairs
    of weights, here the best pair of all is moved. Cyclic moves: Behdin et al., "QuantEase" (arXiv 2309.01885), from a
    feasible start.

    Parameters
    ----------
    view : ChannelView
    start : {"rtn", "gptq"}
    moves : {"greedy", "cyclic"}
        The single move that lowers the error most, or one weight after the other.
    pairs : bool
        Pair moves where no single move helps.
    """
    one_of(start, "start", tuple(STARTS))
    one_of(moves, "moves", tuple(MOVES))
    weights = STARTS[start](view)
    n = len(weights)
    if moves == "cyclic":
        gradient = view.gram @ (weights - view.target)
        for _ in range(100):
            if not sweep(view.gram, view.levels, view.count, True, weights, gradient, view.target):
                break
    choice = choice_of(view, weights)
    if moves == "greedy" or pairs:
        descend(view.gram, view.target, view.levels, view.count, choice, pairs, 100 * n)
    return chosen_levels(view, choice)
