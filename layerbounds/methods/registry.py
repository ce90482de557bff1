"""The heuristics by name, and the way to run one on a problem."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.arguments import MOST_THREADS, whole_number
from layerbounds.arrays import Float
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.methods.adaround import adaround
from layerbounds.methods.admm import admm
from layerbounds.methods.admm_q import admm_q
from layerbounds.methods.babai_klein import babai_klein
from layerbounds.methods.base import HEURISTICS, Check, Heuristic, Method
from layerbounds.methods.beam import beam
from layerbounds.methods.coordinate_descent import coordinate_descent
from layerbounds.methods.fistapruner import fistapruner
from layerbounds.methods.gptq import gptq
from layerbounds.methods.hard_thresholding import hard_thresholding
from layerbounds.methods.joint.hybrid_pass import sparsegpt_joint
from layerbounds.methods.joint.obc import obc
from layerbounds.methods.joint.obr import obr
from layerbounds.methods.joint.two_stages import (
    check_stages,
    prune_then_quantize,
    quantize_then_prune,
)
from layerbounds.methods.ldlq import ldlq
from layerbounds.methods.lns import lns
from layerbounds.methods.magnitude import magnitude
from layerbounds.methods.obq import obq
from layerbounds.methods.obs import obs
from layerbounds.methods.options import resolve_options
from layerbounds.methods.qronos import qronos
from layerbounds.methods.quantease import quantease
from layerbounds.methods.round_to_nearest import round_to_nearest
from layerbounds.methods.shared.forward import forward
from layerbounds.methods.shared.lasso import lasso
from layerbounds.methods.shared.osscar import osscar
from layerbounds.methods.shared.thinet import thinet
from layerbounds.methods.sparsegpt import sparsegpt
from layerbounds.methods.sparseswaps import sparseswaps
from layerbounds.methods.swap import swap
from layerbounds.methods.thanos import thanos
from layerbounds.methods.views import channel_view
from layerbounds.methods.wanda import wanda
from layerbounds.names import match_name
from layerbounds.problems.patterns import PATTERNS
from layerbounds.problems.problem import Problem, as_problem, check_channels

_GRIDS = ("uniform grids", "codebook grids")
_SHARED = ("shared pruning with refit", "shared pruning masks")
_ONE_CHANNEL = ("pruning with refit", "pruning masks")
_SPARSITY = (*_ONE_CHANNEL, *_SHARED)
_JOINT = ("pruning with quantization",)
_PATTERNS = tuple(pattern.kind for pattern in PATTERNS)
_SINGLE_INPUTS = tuple(pattern.kind for pattern in PATTERNS if pattern.single_inputs)


def _entry(
    name: str,
    method: Method,
    summary: str,
    source: str,
    capabilities: tuple[str, ...] = _GRIDS,
    patterns: tuple[str, ...] = _PATTERNS,
    check: Check | None = None,
) -> Heuristic:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    options = {p.name: p.default for p in parameters}
    return Heuristic(
        name, summary, source, method, capabilities, options, () if capabilities == _GRIDS else patterns, check
    )


HEURISTICS |= {
    h.name: h
    for h in (
        _entry("rtn", round_to_nearest, "round each weight to its nearest level", "–"),
        _entry("gptq", gptq, "successive rounding with error feedback", "Frantar et al., ICLR 2023"),
        _entry("ldlq", ldlq, "linear feedback of the LDL decomposition (QuIP)", "Chee et al., NeurIPS 2023"),
        _entry("obq", obq, "round one by one what costs least", "Frantar & Alistarh, NeurIPS 2022"),
        _entry("adaround", adaround, "learn rounding up or down by gradient descent", "Nagel et al., ICML 2020"),
        _entry("quantease", quantease, "cyclic coordinate descent from the dense weights", "Behdin et al. 2023"),
        _entry(
            "coordinate_descent",
            coordinate_descent,
            "single moves, then pair moves (CDQuant)",
            "Nair & Suggala 2024; Behdin et al. 2023",
        ),
        _entry(
            "babai_klein",
            babai_klein,
            "best of K randomized nearest-plane points (OJBKQ)",
            "Klein 2000; Wang et al. 2026",
        ),
        _entry("qronos", qronos, "correct the first weight, then GPTQ on the target", "Zhang et al., ICLR 2026"),
        _entry("admm_q", admm_q, "ridge solves and rounding, then single moves (ADMM-Q)", "Lucas et al. 2026"),
        _entry("beam", beam, "K-best beam in the V-BLAST order, then coordinate descent", "Anderson & Mohan 1984"),
        _entry("lns", lns, "exact search of subsets, with kicks", "Shaw, CP 1998", _GRIDS + _JOINT),
        _entry("magnitude", magnitude, "keep the largest weights", "Han et al., NeurIPS 2015", _SPARSITY),
        _entry("wanda", wanda, "keep the largest |weight|·‖input‖", "Sun et al., ICLR 2024", _SPARSITY),
        _entry("obs", obs, "remove one by one what costs least", "Frantar & Alistarh, NeurIPS 2022", _SPARSITY),
        _entry(
            "sparsegpt",
            sparsegpt,
            "one pass with error feedback",
            "Frantar & Alistarh, ICML 2023",
            _ONE_CHANNEL,
            _SINGLE_INPUTS,
        ),
        _entry(
            "thanos",
            thanos,
            "block by block, all of a block's weights at once",
            "Ilin & Richtárik 2025",
            _ONE_CHANNEL,
            _SINGLE_INPUTS,
        ),
        _entry(
            "fistapruner",
            fistapruner,
            "a price on the size of weights by FISTA, then drop the smallest",
            "Zhao et al., EMNLP 2025",
            _ONE_CHANNEL,
            _SINGLE_INPUTS,
        ),
        _entry("sparseswaps", sparseswaps, "best exchanges of a mask, no refit", "Zimmer et al. 2025", _SPARSITY),
        _entry("swap", swap, "exchange inputs while that helps, with kicks", "Beale et al. 1967", _SPARSITY),
        _entry(
            "hard_thresholding", hard_thresholding, "projected gradient, then refit", "Bertsimas et al. 2016", _SPARSITY
        ),
        _entry("forward", forward, "keep one more while there is room, then exchange", "Natarajan 1995", _SHARED),
        _entry("osscar", osscar, "remove, then exchange several at once (OSSCAR)", "Meng et al., ICML 2024", _SHARED),
        _entry("lasso", lasso, "factors of units with a price on their size", "He et al., ICCV 2017", _SHARED),
        _entry("thinet", thinet, "drop what adds least to the dropped output", "Luo et al., ICCV 2017", _SHARED),
        _entry("admm", admm, "ridge solves and projections (ALPS)", "Meng et al., NeurIPS 2024", _SPARSITY),
        _entry(
            "prune_then_quantize",
            prune_then_quantize,
            "any pruning method, then any quantization method on what is kept",
            "Han et al., ICLR 2016; Zhang et al. 2021",
            _JOINT,
            check=check_stages,
        ),
        _entry(
            "quantize_then_prune",
            quantize_then_prune,
            "any quantization method, then any pruning method on the quantized weights",
            "Zhang et al. 2021; Mozaffari et al. 2024",
            _JOINT,
            check=check_stages,
        ),
        _entry(
            "sparsegpt_joint",
            sparsegpt_joint,
            "prune and round in one pass with error feedback",
            "Frantar & Alistarh, ICML 2023",
            _JOINT,
            _SINGLE_INPUTS,
        ),
        _entry("obc", obc, "OBS, then OBQ on what is kept", "Frantar & Alistarh, NeurIPS 2022", _JOINT),
        _entry("obr", obr, "restore what pruning and rounding destroy by the others", "Guo et al., ICLR 2026", _JOINT),
    )
}


def heuristics() -> list[str]:
    """Names of the registered heuristics.

    Examples
    --------
    >>> "gptq" in lb.heuristics()
    True
    """
    return list(HEURISTICS)


def describe_heuristics() -> list[Heuristic]:
    """The registered heuristics with their sources, capabilities and options."""
    return list(HEURISTICS.values())


def make_view(problem: Problem, rows: Sequence[int], seed: int = 0, shared: dict[Hashable, Any] | None = None) -> Any:
    """A channel, or a set of channels that are bound to one another, as heuristics see it.

    Parameters
    ----------
    problem : Problem
    rows : sequence of int
        One of the problem's sets.
    seed : int
    shared : dict, optional
        What methods keep for the other channels with the same Gram matrix.
    """
    layer, first = problem.layer, rows[0]
    live = layer.live(layer.group_of(first))
    target, original = layer.target[rows][:, live], layer.matrix[rows][:, live]
    return channel_view(
        problem.allowed(first).restrict(live),
        np.ascontiguousarray(layer.channel_gram(first)[np.ix_(live, live)]),
        target[0] if len(rows) == 1 else target,
        original[0] if len(rows) == 1 else original,
        np.random.default_rng([seed, first]),
        {} if shared is None else shared,
    )


def find_heuristic(name: str, problem: Problem | None = None) -> Heuristic:
    """The heuristic of that name, able to treat a problem if one is given.

    Raises
    ------
    UnknownNameError
        If there is none of that name.
    UnsupportedProblemError
        If it is for another kind of problem.
    """
    heuristic = HEURISTICS[match_name(name, list(HEURISTICS), "heuristic")]
    if problem is not None and problem.requirement not in heuristic.capabilities:
        able = ", ".join(h.name for h in HEURISTICS.values() if problem.requirement in h.capabilities)
        if not able:
            raise UnsupportedProblemError(
                f"heuristic {heuristic.name!r} cannot treat {problem.requirement}, and no other one can yet."
            )
        raise UnsupportedProblemError(
            f"heuristic {heuristic.name!r} cannot treat {problem.requirement}; these can: {able}."
        )
    return heuristic


def run_heuristic(
    name: str,
    problem: Problem,
    *,
    channels: Sequence[int] | None = None,
    seed: int = 0,
    jobs: int = 1,
    **options: Any,
) -> Float:
    """Run a heuristic on every chosen output channel.

    Parameters
    ----------
    name : str
        A name from `heuristics`.
    problem : Problem
    channels : sequence of int, optional
        Default: all.
    seed : int
    jobs : int
        Channels treated side by side. It does not change the weights.
    **options
        The method's own options; names that other packages have for them work too (``percdamp``, ``actorder``,
        ``desc_act``, ``blocksize``, …).

    Returns
    -------
    ndarray of shape (channels, *weight.shape[1:])
        Feasible weights. Dead inputs take the level nearest to the original weight, or are dropped.

    Raises
    ------
    UnsupportedProblemError
        If the method is for another kind of problem.

    Examples
    --------
    >>> weights = lb.run_heuristic("gptq", problem)
    >>> bool(lb.evaluate(problem, weights).feasible.all())
    True
    """
    heuristic = find_heuristic(name, as_problem(problem))
    own_options = resolve_options(heuristic, options)
    chosen = check_channels(problem, channels)
    jobs = whole_number(jobs, "jobs", 1, MOST_THREADS)
    whole_number(seed, "seed")
    weights, _ = run_channels(heuristic, problem, chosen, seed, own_options, jobs)
    return weights.reshape(len(chosen), *problem.layer.weight.shape[1:])


def run_channels(
    heuristic: Heuristic,
    problem: Problem,
    channels: Sequence[int],
    seed: int,
    options: Mapping[str, Any],
    jobs: int,
) -> tuple[Float, float]:
    """Weights, shape (channels, n), that a heuristic finds, and the seconds of all threads together.

    Parameters
    ----------
    heuristic : Heuristic
    problem : Problem
    channels : sequence of int
    seed : int
    options : mapping
        Under the heuristic's own names.
    jobs : int
    """
    cancel = threading.Event()
    shared: dict[int, dict[Hashable, Any]] = {}
    weights = np.empty((len(channels), problem.layer.in_features))
    sets = problem.sets(channels)
    position = {channel: row for row, channel in enumerate(channels)}

    def work(first: int) -> float:
        begin = time.perf_counter()
        for rows in sets[first::jobs]:
            if cancel.is_set():
                break
            memory = shared.setdefault(problem.layer.group_of(rows[0]), {})
            weights[[position[row] for row in rows]] = run_set(heuristic, problem, rows, seed, memory, options)
        return time.perf_counter() - begin

    # One BLAS thread each: small factorizations with several are many times slower.
    with threadpool_limits(limits=1):
        if jobs == 1:
            return weights, work(0)
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            try:
                parts = [pool.submit(work, first) for first in range(min(jobs, len(sets)))]
                return weights, sum(part.result() for part in parts)
            except BaseException:
                cancel.set()
                raise


def run_set(
    heuristic: Heuristic,
    problem: Problem,
    rows: Sequence[int],
    seed: int,
    shared: dict[Hashable, Any],
    options: Mapping[str, Any],
) -> Float:
    """Weights, shape (rows, n), that a heuristic finds for one of the problem's sets of output channels.

    Parameters
    ----------
    heuristic : Heuristic
    problem : Problem
    rows : sequence of int
    seed : int
    shared : dict
        What the heuristic keeps for the channels of the same group; empty at first.
    options : mapping
        Under the heuristic's own names.

    Raises
    ------
    UnsupportedProblemError
        If a factorization breaks down.
    """
    layer = problem.layer
    live = layer.live(layer.group_of(rows[0]))
    weights = np.stack([problem.row_template(row) for row in rows])
    if live.any():
        try:
            weights[:, live] = heuristic.method(make_view(problem, rows, seed, shared), **options)
        except np.linalg.LinAlgError as error:
            raise UnsupportedProblemError(
                f"heuristic {heuristic.name!r} cannot factorize the Gram matrix of channel {rows[0]} ({error}); raise "
                "its damping or choose another one (`layerbounds heuristics`)."
            ) from error
    return weights
