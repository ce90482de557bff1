"""Large-neighbourhood search over levels and support."""

from __future__ import annotations

import time

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.joint.view import JointView
from layerbounds.problems.tasks import Task
from layerbounds.search.joint.incumbents import CHUNK, Neighbourhoods, best_start
from layerbounds.search.joint.units import joint_units


def joint_lns(view: JointView, time_limit: float, rounds: int | None) -> Float:
    """Starts from pruning and quantization, then subsets for some seconds or a number of them."""
    n = len(view.target)
    task = Task(
        rows=(0,),
        gram=view.gram,
        targets=view.target[None],
        constants=np.zeros(1),
        energy=float(view.target @ (view.gram @ view.target)),
        live=np.ones(n, dtype=np.bool_),
        allowed=view.allowed,
    )
    units = joint_units(task)
    begin, done = time.perf_counter(), 0
    search: Neighbourhoods = best_start(units, task, int(view.rng.integers(2**31)), lambda: False)
    while (done < rounds) if rounds is not None else (time.perf_counter() - begin < time_limit):
        chunk = CHUNK if rounds is None else min(CHUNK, rounds - done)
        search.improve(chunk)
        done += chunk
    return units.original(search.weights)
