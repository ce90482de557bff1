"""The heuristics by name, and the way to run one on a problem."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.heuristics.admm import admm
from layerbounds.heuristics.base import ChannelView, Heuristic, Method
from layerbounds.heuristics.beam import beam
from layerbounds.heuristics.coordinate_descent import coordinate_descent
from layerbounds.heuristics.gptq import gptq
from layerbounds.heuristics.hard_thresholding import hard_thresholding
from layerbounds.heuristics.lns import lns
from layerbounds.heuristics.magnitude import magnitude
from layerbounds.heuristics.obs import obs
from layerbounds.heuristics.pruning import PruningView
from layerbounds.heuristics.round_to_nearest import round_to_nearest
from layerbounds.heuristics.sparsegpt import sparsegpt
from layerbounds.heuristics.swap import swap
from layerbounds.heuristics.wanda import wanda
from layerbounds.names import match_name
from layerbounds.problem import Problem, check_channels
from layerbounds.pruning_problem import PruningProblem

_GRIDS = ("uniform grids", "codebook grids")
_SPARSITY = ("pruning with refit", "pruning masks")


def _entry(name: str, method: Method, summary: str, source: str, capabilities: tuple[str, ...] = _GRIDS) -> Heuristic:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return Heuristic(name, summary, source, method, capabilities, {p.name: p.default for p in parameters})


_HEURISTICS: dict[str, Heuristic] = {
    h.name: h
    for h in (
        _entry("rtn", round_to_nearest, "round each weight to its nearest level", "–"),
        _entry("gptq", gptq, "successive rounding with error feedback", "Frantar et al., ICLR 2023"),
        _entry("coordinate_descent", coordinate_descent, "greedy single moves, then pair moves", "Behdin et al. 2023"),
        _entry("beam", beam, "K-best beam in the V-BLAST order, then coordinate descent", "Anderson & Mohan 1984"),
        _entry("lns", lns, "exact search of subsets, with kicks", "Shaw, CP 1998"),
        _entry("magnitude", magnitude, "keep the largest weights", "Han et al., NeurIPS 2015", _SPARSITY),
        _entry("wanda", wanda, "keep the largest |weight|·‖input‖", "Sun et al., ICLR 2024", _SPARSITY),
        _entry("obs", obs, "remove one by one what costs least", "Frantar & Alistarh, NeurIPS 2022", _SPARSITY),
        _entry("sparsegpt", sparsegpt, "one pass with error feedback", "Frantar & Alistarh, ICML 2023", _SPARSITY),
        _entry("swap", swap, "exchange inputs while that helps, with kicks", "Beale et al. 1967", _SPARSITY),
        _entry(
            "hard_thresholding", hard_thresholding, "projected gradient, then refit", "Bertsimas et al. 2016", _SPARSITY
        ),
        _entry("admm", admm, "ridge solves and projections (ALPS)", "Meng et al., NeurIPS 2024", _SPARSITY),
    )
}


def heuristics() -> list[str]:
    """Names of the registered heuristics."""
    return list(_HEURISTICS)


def describe_heuristics() -> list[Heuristic]:
    """The registered heuristics with their sources, capabilities and options."""
    return list(_HEURISTICS.values())


def make_view(problem: Problem, channel: int, seed: int = 0) -> ChannelView | PruningView:
    """The channel as heuristics see it."""
    layer = problem.layer
    live = layer.live(layer.group_of(channel))
    if isinstance(problem, PruningProblem):
        return PruningView(
            gram=np.ascontiguousarray(layer.channel_gram(channel)[np.ix_(live, live)]),
            target=layer.target[channel][live],
            original=layer.matrix[channel][live],
            structure=problem.structure().restrict(live),
            refit=problem.refit,
            rng=np.random.default_rng([seed, channel]),
        )
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
    problem : QuantizationProblem or PruningProblem
    channels : sequence of int, optional
        Default: all.
    seed : int
    **options
        The method's own options.

    Returns
    -------
    ndarray of shape (channels, *weight.shape[1:])
        Feasible weights. Dead inputs take the level nearest to the original weight, or are dropped.

    Raises
    ------
    UnsupportedProblemError
        If the method is for another kind of problem.
    """
    heuristic = _HEURISTICS[match_name(name, list(_HEURISTICS), "heuristic")]
    if problem.requirement not in heuristic.capabilities:
        able = ", ".join(h.name for h in _HEURISTICS.values() if problem.requirement in h.capabilities)
        raise UnsupportedProblemError(
            f"heuristic {heuristic.name!r} cannot treat {problem.requirement}; these can: {able}."
        )
    unknown = sorted(set(options) - set(heuristic.options))
    if unknown:
        known = ", ".join(heuristic.options) or "none"
        raise InputError(f"heuristic {name!r} has no option {unknown[0]!r}; its options are: {known}.")
    chosen = check_channels(problem, channels)
    layer = problem.layer
    result = np.empty((len(chosen), layer.in_features))
    for row, channel in enumerate(chosen):
        live = layer.live(layer.group_of(channel))
        result[row] = problem.row_template(channel)
        if live.any():
            result[row, live] = heuristic.method(make_view(problem, channel, seed), **options)
    return result.reshape(len(chosen), *layer.weight.shape[1:])
