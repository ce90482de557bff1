"""One channel of a problem as backends get it."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.quantization import Problem
from layerbounds.solvers.base import ChannelTask, PruningTask, Task


def make_task(problem: Problem, channel: int, shared: object, warm_start: Float | None) -> Task:
    """Extract one channel of a problem, without its dead inputs."""
    layer = problem.layer
    live = layer.live(layer.group_of(channel))
    gram = layer.channel_gram(channel)
    common: dict[str, Any] = {
        "channel": channel,
        "gram": gram if live.all() else np.ascontiguousarray(gram[np.ix_(live, live)]),
        "target": layer.target[channel][live],
        "constant": float(layer.constant[channel]),
        "energy": float(layer.energy()[channel]),
        "live": live,
        "shared": shared,
        "warm_start": None if warm_start is None else warm_start[live],
    }
    if isinstance(problem, PruningProblem):
        structure = problem.structure().restrict(live)
        return PruningTask(original=layer.matrix[channel][live], structure=structure, refit=problem.refit, **common)
    grid = problem.grid
    group = (np.arange(layer.in_features) // grid.group_size)[live]
    return ChannelTask(
        levels=grid.levels(channel)[live],
        codes=grid.codes,
        scale=grid.scale[channel][group],
        zero_point=grid.zero_point[channel][group],
        uniform=grid.uniform,
        **common,
    )
