"""Large-neighbourhood search."""

from __future__ import annotations

import time

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.methods.base import ChannelView, choice_of, chosen_levels
from layerbounds.methods.beam import beam
from layerbounds.methods.joint.lns import joint_lns
from layerbounds.methods.joint.view import JointView
from layerbounds.search.quantization.neighbourhoods import Neighbourhoods


def lns(view: ChannelView | JointView, time_limit: float = 1.0, rounds: int | None = None) -> Float:
    """Exact enumeration over random and related subsets of the weights, with kicks when it stalls.

    Shaw, "Using constraint programming and local search methods to solve vehicle routing problems" (CP 1998) for the
    neighbourhoods, Lourenço, Martin & Stützle, "Iterated local search" (2003) for the kicks; starts from the beam. In
    joint problems the support is free as well; they start from pruning, from quantization and from both at once.

    Parameters
    ----------
    view : ChannelView or JointView
    time_limit : float
        Seconds per channel.
    rounds : int, optional
        Subsets per channel instead of seconds, for results that repeat.
    """
    if not time_limit >= 0:
        raise InputError(f"time_limit is {time_limit}; pass a number of seconds ≥ 0.")
    if rounds is not None and rounds < 0:
        raise InputError(f"rounds is {rounds}; pass a number of subsets ≥ 0.")
    if isinstance(view, JointView):
        return joint_lns(view, time_limit, rounds)
    choice = choice_of(view, beam(view))
    deviation = chosen_levels(view, choice) - view.target
    value = float(deviation @ (view.gram @ deviation))
    search = Neighbourhoods(view.gram, view.target, view.levels, view.count, choice, value, view.rng)
    begin, done = time.perf_counter(), 0
    while (done < rounds) if rounds is not None else (time.perf_counter() - begin < time_limit):
        search.improve()
        done += search.rounds
    return np.asarray(chosen_levels(view, search.best))
