"""Coordinate descent."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.heuristics.base import ChannelView, chosen_levels
from layerbounds.heuristics.gptq import gptq
from layerbounds.heuristics.round_to_nearest import round_to_nearest
from layerbounds.kernels.rounding import coordinate_descent as descend

STARTS = {"rtn": round_to_nearest, "gptq": gptq}


def choice_of(view: ChannelView, weights: Float) -> Int:
    """Indices of feasible weights in the level tables."""
    return np.asarray(np.argmin(np.abs(view.levels - weights[:, None]), axis=1))


def coordinate_descent(view: ChannelView, start: str = "rtn", pairs: bool = True) -> Float:
    """Move single weights to their best level, greedily, then pairs of weights to neighbouring levels.

    Single moves: Behdin et al., "QuantEase" (2023) and Nair & Suggala, "CDQuant" (2024), the greedy variant. The
    pair moves extend it.

    Parameters
    ----------
    view : ChannelView
    start : {"rtn", "gptq"}
    pairs : bool
    """
    if start not in STARTS:
        raise InputError(f"start is {start!r}; choose {' or '.join(map(repr, STARTS))}.")
    choice = choice_of(view, STARTS[start](view))
    descend(view.gram, view.target, view.levels, view.count, choice, pairs, 100 * len(choice))
    return chosen_levels(view, choice)
