"""The heuristics by name, and the way to run one on a problem."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.grids import nearest_levels
from layerbounds.heuristics.base import ChannelView, Heuristic, QuantizationMethod
from layerbounds.heuristics.beam import beam
from layerbounds.heuristics.coordinate_descent import coordinate_descent
from layerbounds.heuristics.gptq import gptq
from layerbounds.heuristics.round_to_nearest import round_to_nearest
from layerbounds.names import match_name
from layerbounds.problem import Problem, check_channels

_GRIDS = ("uniform grids", "codebook grids")


def _entry(name: str, method: QuantizationMethod, summary: str, source: str) -> Heuristic:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return Heuristic(name, summary, source, method, _GRIDS, {p.name: p.default for p in parameters})


_HEURISTICS: dict[str, Heuristic] = {
    h.name: h
    for h in (
        _entry("rtn", round_to_nearest, "round each weight to its nearest level", "–"),
        _entry("gptq", gptq, "successive rounding with error feedback", "Frantar et al., ICLR 2023"),
        _entry(
            "coordinate_descent", coordinate_descent, "greedy single moves, then pair moves", "Behdin et al. 2023"
        ),
        _entry("beam", beam, "K-best beam in the V-BLAST order, then coordinate descent", "Anderson & Mohan 1984"),
    )
}


def heuristics() -> list[str]:
    """Names of the registered heuristics."""
    return list(_HEURISTICS)


def describe_heuristics() -> list[Heuristic]:
    """The registered heuristics with their sources, capabilities and options."""
    return list(_HEURISTICS.values())


def make_view(problem: Problem, channel: int, seed: int = 0) -> ChannelView:
    """The channel as heuristics see it."""
    layer = problem.layer
    live = layer.live(layer.group_of(channel))
    levels = np.ascontiguousarray(problem.grid.levels(channel)[live])
    return ChannelView(
        gram=np.ascontiguousarray(layer.channel_gram(channel)[np.ix_(live, live)]),
        target=layer.target[channel][live],
        levels=levels,
        count=np.full(len(levels), levels.shape[1], dtype=np.int64),
        rng=np.random.default_rng([seed, channel]),
    )


def run_heuristic(
    name: str, problem: Problem, *, channels: Sequence[int] | None = None, seed: int = 0, **options: Any
) -> Float:
    """Run a heuristic on every chosen output channel.

    Parameters
    ----------
    name : str
        A name from `heuristics`.
    problem : QuantizationProblem
    channels : sequence of int, optional
        Default: all.
    seed : int
    **options
        The method's own options.

    Returns
    -------
    ndarray of shape (channels, *weight.shape[1:])
        Feasible weights. Dead inputs take the level nearest to the original weight.
    """
    heuristic = _HEURISTICS[match_name(name, list(_HEURISTICS), "heuristic")]
    unknown = sorted(set(options) - set(heuristic.options))
    if unknown:
        known = ", ".join(heuristic.options) or "none"
        raise InputError(f"heuristic {name!r} has no option {unknown[0]!r}; its options are: {known}.")
    chosen = check_channels(problem, channels)
    layer = problem.layer
    result = np.empty((len(chosen), layer.in_features))
    for row, channel in enumerate(chosen):
        live = layer.live(layer.group_of(channel))
        result[row] = nearest_levels(problem.grid.levels(channel), layer.matrix[channel])
        if live.any():
            result[row, live] = heuristic.method(make_view(problem, channel, seed), **options)
    return result.reshape(len(chosen), *layer.weight.shape[1:])
