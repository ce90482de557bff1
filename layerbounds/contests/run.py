"""Run comparisons: of one layer, and of all layers of a network."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from layerbounds.arguments import check_functions, members, real_number, thread_count
from layerbounds.contests.checkpoint import Checkpoint
from layerbounds.contests.contest import Contest, Rules
from layerbounds.contests.levels import Comparison
from layerbounds.contests.standings import Standings
from layerbounds.contests.tournament import Tournament
from layerbounds.contests.work import Work
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.grids import Granularity, Range
from layerbounds.problems.problem import Problem
from layerbounds.problems.storage import Mask
from layerbounds.progress import watched

#: Shares of the time limit that the rounds after the first give to a channel; each begins from the bounds of the last.
ROUND_SHARES = (1 / 16, 1 / 4, 1.0)

#: Called after each piece of work: (verdicts decided, verdicts in all, name of the layer).
Progress = Callable[[int, int, str], None]


def versus(
    layer: Layer,
    bits: Iterable[int] = range(2, 9),
    *,
    granularity: Granularity = "channel",
    range: Range = "mse",
    symmetric: bool = True,
    pattern: str = "unstructured",
    refit: bool = True,
    channels: Sequence[int] | None = None,
    time_limit: float = 10.0,
    total_time: float | None = None,
    backend: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    scale: str | None = None,
    zero_point: str | None = None,
    mask: Mask = "none",
    share: int | Literal["all"] | None = None,
    axis: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Comparison:
    """Decide by certified intervals whether quantizing or pruning a layer can be better, at equal bits.

    b bits per weight are compared with density b/16, the convention of Kuzmin et al., "Pruning vs Quantization: Which
    is Better?" (NeurIPS 2023), which counts neither the mask nor the zeros of the quantized weights. The first round
    computes heuristics and root bounds of both methods for every channel and compression; further rounds of growing
    time limits go only to channels whose verdict is open, first to the lower bound of the method that seems worse.

    Parameters
    ----------
    layer : Layer
    bits : iterable of int
        1 to 8.
    granularity, range, symmetric
        Of the grids, as in `uniform_grid`. Scales are fitted to the weights and fixed.
    pattern : str
        ``"unstructured"`` or another that takes a density, at density bits/16, or ``"N:16"``: as many of every 16
        inputs as there are bits (any ``"N:M"`` where bits·M/16 is a whole number). Patterns that couple the output
        channels have a verdict for each set of them.
    refit : bool
        Whether kept weights are re-optimised or stay as they are.
    channels : sequence of int, optional
        Output channels to compare; the layer's verdict is then about their sum. Default: all.
    time_limit : float
        Seconds of search per channel, compression and method in the last round; those before it take 1/16 and 1/4 of
        it. With 0 there is only the first round.
    total_time : float, optional
        Seconds after which no more work begins; verdicts are then open that more time might decide.
    backend, jobs, seed
        As in `solve`.
    scale : {"free"}, optional
        All scales instead of fitted ones: the best that quantization can do on any uniform grid.
    zero_point : {"free", "real"}, optional
        With ``scale``: as in `quantization_problem`.
    mask : {"none", "bitmap", "entropy", "metadata"}
        What the mask of pruning costs to store (docs/patterns.md): pruning keeps as many inputs as fit into b bits per
        weight beside it.
    share, axis
        Of pruning, as in `pruning_problem`.
    checkpoint : path-like, optional
        Folder in which bounds are saved and from which they are taken up again.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called with (verdicts decided, verdicts in all,
        name of the layer).

    Returns
    -------
    Comparison
        Interrupted by Ctrl-C it holds the bounds reached so far.

    Raises
    ------
    InputError
        On invalid options.

    Examples
    --------
    >>> comparison = lb.versus(layer, bits=[3], channels=[0], time_limit=1)
    >>> comparison.levels[0].bits
    3
    """
    rules = Rules(
        granularity, range, symmetric, pattern, refit, backend, thread_count(jobs), seed, scale, zero_point, mask,
        share, axis,
    )  # fmt: skip
    selection = None if channels is None else {as_layer(layer).name: channels}
    with watched(progress, as_layer(layer).name, None, "verdicts") as told:
        return versus_layers(
            [layer],
            bits,
            rules=rules,
            channels=selection,
            time_limit=time_limit,
            total_time=total_time,
            checkpoint=checkpoint,
            progress=told,
        )[0]


def versus_layers(
    layers: Mapping[str, Layer] | Iterable[Layer],
    bits: Iterable[int] = range(2, 9),
    *,
    rules: Rules | None = None,
    channels: Mapping[str, Sequence[int]] | None = None,
    sample: int | None = None,
    time_limit: float = 10.0,
    total_time: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compare quantization with pruning for several layers, round by round.

    Every layer has its cheap bounds before any gets more time.

    Parameters
    ----------
    layers : mapping of name to Layer, or iterable of Layer
    bits : iterable of int
    rules : Rules, optional
        Grids, pattern, backend, threads and seed.
    channels : mapping of layer name to channels, optional
        Default: all, or the sample.
    sample : int, optional
        Compare at most so many channels of a layer, evenly spaced (`layerbounds.contests.sample.sample_channels`), and
        all channels that are bound to one of them.
    time_limit, total_time, checkpoint, progress
        As in `versus`.

    Returns
    -------
    list of Comparison
        In the order of the layers.
    """
    rules = rules or Rules(jobs=thread_count(None))
    wanted = members(bits, "bits")
    return _carry_out(
        layers,
        lambda layer, chosen: Contest(layer, wanted, chosen, rules, sample),
        channels=channels,
        time_limit=time_limit,
        total_time=total_time,
        checkpoint=checkpoint,
        progress=progress,
    )


def contest(
    layer: Layer,
    contenders: Iterable[str | int | Problem | tuple[str, Problem]],
    *,
    mask: Mask = "bitmap",
    granularity: Granularity = "channel",
    range: Range = "mse",
    symmetric: bool = True,
    pattern: str = "unstructured",
    refit: bool = True,
    channels: Sequence[int] | None = None,
    time_limit: float = 10.0,
    total_time: float | None = None,
    backend: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    scale: str | None = None,
    zero_point: str | None = None,
    share: int | Literal["all"] | None = None,
    axis: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Standings:
    """Decide by certified intervals which of several ways to compress a layer can be best, each against each.

    Every contender is a set of weights with its storage: bits, a pattern, or both. The time goes where a verdict is
    open, as in `versus`, and bounds are carried over where one contender allows all that another does.

    Parameters
    ----------
    layer : Layer
    contenders : iterable of str, int, Problem or (str, Problem)
        ``3`` or ``"3"``: a grid of 3 bits; ``"nf4"``: a codebook; ``"2:4"``, ``".25"``, ``"1/4"``: pruning;
        ``"4+2:4"``, ``"4+.5"``, ``"4+block:4+.5"``: both at once; ``"channel+.5"``, ``"head:64+k=6"``,
        ``"2:4+share=8"``: masks that several output channels have in common, whose intervals are compared with sums
        over these channels; ``"pruned"``: for the storage of each of the others,
        the pruning that keeps most within it. Or problems of this layer, alone or as (name, problem).
    mask : {"none", "bitmap", "entropy", "metadata"}
        What a pattern's mask costs to store (docs/patterns.md).
    granularity, range, symmetric, scale, zero_point
        Of the grids, as in `versus`.
    pattern, refit
        Of pruning without quantization, as in `versus`; the pattern is that of ``"pruned"``.
    share, axis
        Of pruning without quantization, where a contender does not say them.
    channels, time_limit, total_time, backend, jobs, seed, checkpoint, progress
        As in `versus`.

    Returns
    -------
    Standings
        Interrupted by Ctrl-C it holds the bounds reached so far.

    Raises
    ------
    InputError
        On invalid options.

    Examples
    --------
    >>> standings = lb.contest(layer, [2, 3], channels=[0], time_limit=1)
    >>> print(standings.statement())
    conv1 (1 of 16 channels): INT2 (2 bits) is worse than INT3 (3 bits); better in 0 channels, worse in 1, open in 0
    """
    rules = Rules(
        granularity, range, symmetric, pattern, refit, backend, thread_count(jobs), seed, scale, zero_point, mask,
        share, axis,
    )  # fmt: skip
    selection = None if channels is None else {as_layer(layer).name: channels}
    with watched(progress, as_layer(layer).name, None, "verdicts") as told:
        return contest_layers(
            [layer],
            contenders,
            rules=rules,
            channels=selection,
            time_limit=time_limit,
            total_time=total_time,
            checkpoint=checkpoint,
            progress=told,
        )[0]


def contest_layers(
    layers: Mapping[str, Layer] | Iterable[Layer],
    contenders: Iterable[str | int | Problem | tuple[str, Problem]],
    *,
    rules: Rules,
    channels: Mapping[str, Sequence[int]] | None = None,
    sample: int | None = None,
    time_limit: float = 10.0,
    total_time: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Standings]:
    """`contest` for several layers, round by round; the other arguments are those of `versus_layers`."""
    wanted = members(contenders, "contenders")
    return _carry_out(
        layers,
        lambda layer, chosen: Tournament(layer, wanted, chosen, rules, sample),
        channels=channels,
        time_limit=time_limit,
        total_time=total_time,
        checkpoint=checkpoint,
        progress=progress,
    )


Result = TypeVar("Result", Comparison, Standings)


def _carry_out(
    layers: Mapping[str, Layer] | Iterable[Layer],
    make: Callable[[Layer, Sequence[int] | None], Work[Result]],
    *,
    channels: Mapping[str, Sequence[int]] | None,
    time_limit: float,
    total_time: float | None,
    checkpoint: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> list[Result]:
    """All layers round by round: every one has its cheap bounds before any gets more time."""
    begin = time.perf_counter()
    real_number(time_limit, "time_limit", 0.0, unit="number of seconds")
    if total_time is not None and real_number(total_time, "total_time", 0.0, unit="number of seconds") == 0:
        raise InputError("total_time is 0; pass a positive number of seconds.")
    check_functions(progress=progress)
    store = Checkpoint(checkpoint) if checkpoint is not None else None
    works: list[Work[Result]] = []
    for layer in layers.values() if isinstance(layers, Mapping) else layers:
        work = make(layer, (channels or {}).get(layer.name) if isinstance(layer, Layer) else None)
        if total_time is not None:
            work.deadline = begin + total_time
        if store is not None:
            store.attach(work)
        works.append(work)
    if progress is not None:
        _announce(works, progress)
    for limit in [0.0] + [share * time_limit for share in ROUND_SHARES if time_limit > 0]:
        for work in works:
            work.round(limit)
            if work.interrupted:
                for other in works:
                    other.interrupted = True
                break
    return [work.result() for work in works]


def _announce(works: Sequence[Work[Any]], progress: Progress) -> None:
    """Tell after each piece of work how many verdicts of the whole run are decided."""
    everything = sum(work.verdicts for work in works)

    def tell(work: Work[Any]) -> None:
        progress(everything - sum(w.undecided for w in works), everything, work.layer.name)

    for work in works:
        work.listeners.append(tell)
