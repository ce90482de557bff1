"""Runs over networks: every layer at several compressions, bounds first, then searches where they change an answer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from layerbounds.arguments import as_path, check_functions, members, real_number
from layerbounds.contests.contest import Rules
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.methods.specs import parse_method
from layerbounds.network.certificates import certificate_path, write_certificate_of
from layerbounds.network.choices import Choice, make_choices, share_of
from layerbounds.network.engines import opened_engine, parse_place
from layerbounds.network.folder import RunFolder
from layerbounds.network.given import Given, Weights
from layerbounds.network.job import Job, Progress, now, until
from layerbounds.network.plan import fitting_methods, opened, survey
from layerbounds.network.result import NetworkRun, open_run
from layerbounds.network.sources import Source, as_source, source_of
from layerbounds.network.worth import worth
from layerbounds.problems.grids import Granularity, Range
from layerbounds.problems.storage import Mask
from layerbounds.progress import check_listener, watched

#: Methods where none are named.
USUAL = ("rtn", "gptq", "magnitude", "sparsegpt")

#: Called with a run when everything has its first bounds.
Listener = Callable[[NetworkRun], None]


def run(
    layers: str | os.PathLike[str] | Mapping[str, Layer] | Iterable[Layer] | None,
    *,
    out: str | os.PathLike[str],
    bits: int | Iterable[int] | None = None,
    codebook: str | Iterable[str] | None = None,
    density: float | Iterable[float] | None = None,
    k: int | Iterable[int] | None = None,
    pattern: str | Iterable[str] | None = None,
    problems: Iterable[str | int] = (),
    joint: bool = False,
    share: int | Literal["all"] | None = None,
    axis: str | None = None,
    refit: bool = True,
    granularity: Granularity = "channel",
    symmetric: bool = True,
    range: Range = "mse",
    scale: str | None = None,
    zero_point: str | None = None,
    mask: Mask = "bitmap",
    methods: Iterable[str] | None = None,
    weights: Weights | None = None,
    channels: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    sample: int | None = None,
    time_limit: float = 10.0,
    total_time: float | None = None,
    budgets: Iterable[float] | None = None,
    backend: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    parallel: str = "processes",
    certificates: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
    listener: Listener | None = None,
) -> NetworkRun:
    """Bound every layer of a network at several compressions, and keep what is found out in a folder.

    First every layer gets bounds of all channels at once and the errors of the methods at each compression. Then
    channels are searched, with growing limits, where it changes an answer: what the best allocation of bits is, which
    of quantization and pruning is better at equal bits, and the largest gaps. A run that was ended in any way goes on
    when it is called again with the same layers and compressions.

    Parameters
    ----------
    layers : path-like, mapping of name to Layer, iterable of Layer, or None
        A layer file, or layers in memory; None for the embedded demo network.
    out : path-like
        Folder of the run (docs/run-folder.md).
    bits, codebook : optional
        Quantization, one or several of each.
    density, k, pattern : optional
        Pruning: patterns that say themselves how much they keep alone, the others at each density and number.
    problems : iterable of str or int
        More compressions, as the contenders of `contest`: ``"4+2:4"``, ``"channel+.5"``.
    joint : bool
        Every grid with every pattern instead of each alone.
    share, axis, refit, granularity, symmetric, range, scale, zero_point
        As in `versus`.
    mask : {"none", "bitmap", "entropy", "metadata"}
        What a pattern's mask counts in the bits of an allocation (docs/patterns.md).
    methods : iterable of str, optional
        Methods that are put beside the intervals, each where it can treat the compression; default: round-to-nearest
        and GPTQ to quantize, magnitudes and SparseGPT to prune.
    weights : mapping of label to path, or to (mapping of layer name to array_like), optional
        Weights from elsewhere that are scored, too.
    channels : sequence of int, or mapping of layer name to it, optional
        Output channels; default: all.
    sample : int, optional
        Draw so many channels of each layer instead (docs/network.md).
    time_limit : float
        Seconds of search for a channel, or set of channels, at a compression at most. With 0 there are first bounds
        alone.
    total_time : float, optional
        Seconds after which no more work begins.
    budgets : iterable of float, optional
        Bits per weight for which allocations are wanted; default: every half bit between the smallest and the largest
        compression.
    backend : str
        ``"auto"``, or a backend for everything.
    jobs : int, optional
        Workers at most; default: all cores of this machine, or of the cluster.
    seed : int
    parallel : str
        ``"processes"``, ``"threads"``, ``"dask://HOST:PORT"`` or ``"ray"`` (docs/distributed.md).
    certificates : path-like, optional
        Folder for a certificate of every layer at every compression, written after the work, which takes about as long
        as the searches did.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called with (sets of channels with first bounds,
        sets in all, name of the layer) after each piece of work.
    listener : callable, optional
        Called with the run when everything has its first bounds.

    Returns
    -------
    NetworkRun
        Interrupted by Ctrl-C, what was finished.

    Raises
    ------
    InputError
        On invalid options, or if the folder holds another run, or another process works in it.

    Examples
    --------
    >>> run = lb.run({"conv1": layer}, bits=[2, 3], channels=[0, 1], out="another", time_limit=1, parallel="threads")
    >>> lb.allocate(run, budget=5.0).choices
    {'conv1': 'INT3'}
    """
    begin = now()
    real_number(time_limit, "time_limit", 0.0, unit="number of seconds")
    if total_time is not None and real_number(total_time, "total_time", 0.0, unit="number of seconds") == 0:
        raise InputError("total_time is 0; pass a positive number of seconds.")
    check_listener(progress)
    check_functions(listener=listener)
    place = parse_place(parallel)
    rules = Rules(
        granularity, range, symmetric, "unstructured", refit, backend, 1, seed, scale, zero_point, mask,
        share_of(share), axis,
    )  # fmt: skip
    choices = make_choices(
        rules, bits=bits, codebook=codebook, density=density, k=k, pattern=pattern, problems=problems, joint=joint
    )
    texts = {parse_method(m).label: m for m in (USUAL if methods is None else members(methods, "methods"))}
    wanted = None if budgets is None else [real_number(b, "budget", 0.0) for b in members(budgets, "budgets")]
    folder = RunFolder(out)
    target = None if certificates is None else _certificate_folder(certificates)
    folder.create()
    name, unit = str(folder.path), "first bounds"
    with opened_engine(place, jobs) as engine, folder.locked(), watched(progress, name, None, unit) as told:
        source = as_source(layers, folder)
        grid = survey(source, choices, channels, sample, seed)
        given = Given(weights, source)
        options = {"methods": texts, "backend": backend, "time_limit": time_limit, "budgets": wanted}
        state = opened(folder, source, choices, grid, seed, options, given.digests)
        job = Job(
            run=state,
            source=source,
            choices=choices,
            methods=fitting_methods(source, choices, grid, texts, every=methods is not None),
            given=given,
            limit=float(time_limit),
            seed=seed,
            backend=backend,
            engine=engine,
            progress=told,
        )
        deadline = until(begin, total_time)
        job.carry_out(None, deadline)
        if listener is not None and not state.interrupted:
            try:
                listener(state)
            except KeyboardInterrupt:
                state.interrupted = True
        if not state.interrupted and time_limit > 0:
            job.carry_out(partial(worth, budgets=state.budgets if wanted is None else wanted), deadline)
        if target is not None and not state.interrupted:
            _certify(state, source, target)
    return state


def refine(
    out: str | os.PathLike[str],
    seconds: float,
    *,
    budget: float,
    layers: str | os.PathLike[str] | Mapping[str, Layer] | Iterable[Layer] | None = None,
    time_limit: float = math.inf,
    jobs: int | None = None,
    parallel: str = "processes",
    progress: Progress | None = None,
) -> NetworkRun:
    """Search on where the regret of the allocation at a budget comes from.

    Parameters
    ----------
    out : path-like
        Folder of a run.
    seconds : float
        Of the clock.
    budget : float
        Bits per weight.
    layers : optional
        As in `run`; default: where the run had them from.
    time_limit, jobs, parallel, progress
        As in `run`.

    Raises
    ------
    InputError
        If the layers are not there any more, or not those of the run.
    """
    begin = now()
    real_number(seconds, "seconds", 0.0, unit="number of seconds")
    real_number(budget, "budget", 0.0)
    place = parse_place(parallel)
    folder = RunFolder(out)
    with opened_engine(place, jobs) as engine, folder.locked():
        state = open_run(folder)
        source = source_of(state.about["source"], folder, layers)
        source.check(state.layers)
        if layers is not None:
            source.keep(repair=True)
        choices = [Choice.from_dict(about) for about in state.about["choices"]]
        job = Job(
            run=state,
            source=source,
            choices=choices,
            methods={},
            given=Given(None, source),
            limit=time_limit,
            seed=state.about["seed"],
            backend=state.about["options"]["backend"],
            engine=engine,
            progress=progress,
        )
        job.carry_out(partial(worth, budgets=[budget], alone=True), until(begin, seconds))
    return state


def _certificate_folder(path: str | os.PathLike[str]) -> Path:
    folder = as_path(path, "certificates")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder} ({error.strerror}); choose another one.") from error
    return folder


def _certify(state: NetworkRun, source: Source, target: Path) -> None:
    """Write the certificates of everything that has bounds."""
    try:
        for number, of_layer in enumerate(state.grid):
            for entry in of_layer:
                path = certificate_path(target, entry)
                if entry.sets and entry.visited:
                    write_certificate_of(state.folder, entry, source.layer(number), path)
    except KeyboardInterrupt:
        state.interrupted = True
