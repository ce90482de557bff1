"""One unit of work: a channel of a problem without its dead inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.problems.patterns import Structure
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.quantization import Problem


@dataclass(frozen=True, eq=False)
class ChannelTask:
    """One output channel, dead inputs removed.

    Attributes
    ----------
    channel : int
    gram : ndarray of shape (n, n)
        Gram matrix of the live inputs.
    target : ndarray of shape (n,)
        Unconstrained minimiser.
    constant : float
        Added to every error.
    energy : float
        f(0).
    live : ndarray of bool, shape (inputs,)
        Which of the layer's inputs these are.
    levels : ndarray of shape (n, levels)
        Sorted levels.
    codes : ndarray of shape (levels,); scale, zero_point : ndarray of shape (n,)
        ``levels = scale[:, None] * (codes - zero_point[:, None])``.
    uniform : bool
        Whether the codes are consecutive integers.
    shared : object
        What the backend's `prepare` returned for the channel's group.
    warm_start : ndarray of shape (n,) or None
        Feasible weights to start from.
    """

    channel: int
    gram: Float
    target: Float
    constant: float
    energy: float
    live: Bool
    levels: Float
    codes: Float
    scale: Float
    zero_point: Float
    uniform: bool
    shared: Any
    warm_start: Float | None


@dataclass(frozen=True, eq=False)
class PruningTask:
    """One output channel to prune, dead inputs removed.

    Attributes
    ----------
    channel, gram, target, constant, energy, live, shared
        As in `ChannelTask`.
    original : ndarray of shape (n,)
        The dense weights: what a kept weight is where ``refit`` is False.
    structure : Structure
        Units, groups and capacities of the live inputs.
    refit : bool
    warm_start : ndarray of shape (n,) or None
        Feasible weights to start from.
    """

    channel: int
    gram: Float
    target: Float
    constant: float
    energy: float
    live: Bool
    original: Float
    structure: Structure
    refit: bool
    shared: Any
    warm_start: Float | None


Task = ChannelTask | PruningTask


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
