"""Solve a problem: the package's main entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import (
    MOST_THREADS,
    as_mapping,
    one_of,
    parse_bytes,
    real_number,
    shown,
    thread_count,
    whole_number,
)
from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.problems.problem import Problem, as_problem, check_channels
from layerbounds.problems.rows import noun
from layerbounds.progress import Bar, check_listener, listener, telling, watched
from layerbounds.scheduling.request import Progress, Report, Request
from layerbounds.scheduling.stages import Outcome, carry_out
from layerbounds.solution import Solution
from layerbounds.solvers.batched.backend import DEVICES


def solve(
    problem: Problem,
    backend: str = "auto",
    *,
    channels: Sequence[int] | None = None,
    time_limit: float | None = None,
    total_time: float | None = None,
    gap: ArrayLike = 0.0,
    jobs: int | None = None,
    seed: int = 0,
    node_limit: int | None = None,
    warm_start: ArrayLike | None = None,
    device: str | None = None,
    memory_limit: int | str | None = None,
    progress: Progress | bool | None = None,
    report: Report | bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Solution:
    """Find certified intervals around the smallest possible error of each output channel.

    Channels that the problem binds to one another, by a mask or a scale that they share, have one interval for all of
    them: what is said of a channel below is then about such a set (`Problem.sets`).

    Parameters
    ----------
    problem : Problem
    backend : str
        A name from `backends`, or ``"auto"``: ``"native"`` up to 1,024 live inputs, with a node limit, and for what
        ``"batched"`` cannot treat; beyond, ``"batched"`` for all channels at once, and ``"native"`` after it, from
        where it ended, if there is a ``time_limit`` or a ``total_time`` to spend.
    channels : sequence of int, optional
        Output channels to solve, of sets all of them; default: all.
    time_limit : float, optional
        Seconds of search per channel; default: 10, if there is no ``total_time``. Preparation that channels share, and
        compilation, are outside it. ``"batched"`` has no limit by default, else so many seconds for each channel, for
        all of them together; chosen by ``"auto"``, it counts as preparation.
    total_time : float, optional
        Seconds for all channels, beside preparation and compilation. Searches divide them evenly; after the bounds of
        ``"batched"``, which are part of it, they go to the channels whose intervals are widest, where upper − lower
        counts, 10 seconds or more for each.
    gap : float or array_like of shape (sets,)
        Stop a channel when (upper − lower)/upper is at most this; one number for all or one for each.
    jobs : int, optional
        Threads in total; default: all cores. Several channels are solved side by side; where there are fewer channels
        than threads, the others work on the same channels (native backend, without a node limit).
    seed : int
    node_limit : int, optional
        Nodes per channel. With it, the same seed and jobs give the same intervals.
    warm_start : array_like of shape (rows, *weight.shape[1:]) or (rows, n), optional
        Weights of the chosen channels, in their order, or of all, to start from; those that are not allowed are rounded
        or pruned first.
    device : {"cpu", "cuda", "mps"}, optional
        Where ``"batched"`` computes; others need PyTorch.
    memory_limit : int or str, optional
        Bytes, or a text such as ``"3GB"``, that ``"batched"`` may take: fewer rows are then worked on at a time, which
        takes longer.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook. A function is called after each channel with (done, total,
        channel, certified result); what later work narrows is not reported again.
    report : bool or callable, optional
        A function is called, from any thread, with a few words on what long work is at, such as ``points 5 of 40``,
        and from 200 inputs on, before ``"native"`` prepares, with how long that will take. True prints them on
        standard error; with ``progress=True`` they stand beside the bar.
    options : mapping, optional
        The backend's own options (docs/backends.md).

    Returns
    -------
    Solution
        An interrupted run (Ctrl-C) returns what it has, with ``interrupted`` set; during the preparation of the first
        backend it raises KeyboardInterrupt.

    Raises
    ------
    InputError
        On invalid options.
    UnsupportedProblemError
        If the backend cannot treat the problem.

    Examples
    --------
    >>> solution = lb.solve(problem, channels=[0, 1])
    >>> bool((solution.lower_bound <= solution.upper_bound).all())
    True
    """
    as_problem(problem)
    _check_options(time_limit, total_time, jobs, seed, node_limit)
    check_listener(progress, "progress")
    check_listener(report, "report")
    if device is not None:
        one_of(device, "device", DEVICES)
    chosen = check_channels(problem, channels)
    sets = problem.sets(chosen)
    starts = _warm_starts(problem, chosen, warm_start)
    with watched(progress, problem.layer.name, len(sets), noun(sets, len(sets))) as told:
        heard = listener(report) or (told.report if isinstance(told, Bar) else None)
        request = Request(
            problem=problem,
            sets=sets,
            gaps=_gaps(gap, sets),
            starts=[_start(starts, s) for s in sets],
            time_limit=time_limit,
            total_time=total_time,
            threads=thread_count(jobs),
            seed=seed,
            node_limit=node_limit,
            options=as_mapping(options, "options"),
            device=device,
            memory_limit=parse_bytes(memory_limit),
            progress=told,
            report=heard or (lambda text: None),
        )
        with telling(heard):
            return _solution(request, chosen, backend, carry_out(request, backend))


def _solution(request: Request, channels: list[int], backend: str, outcome: Outcome) -> Solution:
    """The intervals of all sets as one result."""
    problem, sets = request.problem, request.sets
    layer = problem.layer
    finished = [outcome.finished[i] for i in range(len(sets))]
    certified = [f.certified for f in finished]
    energy = problem.energy()
    order = {channel: i for i, channel in enumerate(channels)}
    weights = np.empty((len(channels), layer.in_features))
    for s, result in zip(sets, certified, strict=True):
        weights[[order[channel] for channel in s]] = problem.complete_set(s, result.weights)
    return Solution(
        problem=problem,
        channels=channels,
        sets=sets,
        lower_bound=np.array([c.lower for c in certified]),
        upper_bound=np.array([c.upper for c in certified]),
        weights=weights.reshape(len(channels), *layer.weight.shape[1:]),
        status=[c.status for c in certified],
        bound_kind=[c.bound_kind for c in certified],
        claimed_lower_bound=np.array([c.claimed_lower for c in certified]),
        energy=np.array([energy[s].sum() for s in sets]),
        seconds=np.array([f.seconds for f in finished]),
        nodes=np.array([f.nodes for f in finished], dtype=np.int64),
        trace=[list(c.trace) for c in certified],
        preparation_seconds=outcome.preparation,
        backend=backend,
        lower_backend=[f.lower_backend for f in finished],
        upper_backend=[f.upper_backend for f in finished],
        interrupted=outcome.interrupted,
        notes={s[0]: c.notes for s, c in zip(sets, certified, strict=True) if c.notes},
        certified_trace=outcome.own,
        evidence=[c.evidence for c in certified],
    )


def _check_options(
    time_limit: float | None, total_time: float | None, jobs: int | None, seed: int, node_limit: int | None
) -> None:
    for name, value in (("time_limit", time_limit), ("total_time", total_time)):
        if value is not None:
            real_number(value, name, 0.0, unit="number of seconds")
    if jobs is not None:
        whole_number(jobs, "jobs", 1, MOST_THREADS)
    whole_number(seed, "seed")
    if node_limit is not None:
        whole_number(node_limit, "node_limit", 1)


def _gaps(gap: ArrayLike, sets: list[list[int]]) -> list[float]:
    values, count = as_float64(gap, "gap"), len(sets)
    if values.shape not in ((), (count,)) or not np.all((values >= 0) & (values < 1)):
        raise InputError(
            f"gap is {shown(gap)}; pass a relative gap in [0, 1), or one for each of the {count} {noun(sets, count)}."
        )
    return [float(v) for v in np.broadcast_to(values, (count,))]


def _start(starts: dict[int, Float] | None, rows: list[int]) -> Float | None:
    """Weights to start a set of rows from."""
    if starts is None:
        return None
    return starts[rows[0]] if len(rows) == 1 else np.stack([starts[c] for c in rows])


def _warm_starts(problem: Problem, channels: list[int], warm_start: ArrayLike | None) -> dict[int, Float] | None:
    if warm_start is None:
        return None
    matrix = problem.layer.channel_weights(warm_start, channels, "warm_start")
    return dict(zip(channels, problem.project(matrix, channels), strict=True))
