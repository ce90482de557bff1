"""Solve a problem channel by channel: the package's main entry."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from layerbounds.arguments import MOST_THREADS, as_mapping, real_number, shown, whole_number
from layerbounds.arrays import Float, as_float64
from layerbounds.cancellation import interruptible
from layerbounds.certify.interval import CertifiedChannel, certify, certify_foreign
from layerbounds.exceptions import InputError, LayerboundsError, MissingExtraError, UnsupportedProblemError
from layerbounds.kernels.compilation import working_time
from layerbounds.problems.problem import Problem, as_problem, check_channels
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control, Dual, RawSolve, Status
from layerbounds.search.families import root_dual
from layerbounds.solution import Solution
from layerbounds.solvers.base import Backend, GroupBackend, read_options
from layerbounds.solvers.registry import get_backend, is_own

#: Share of the time limit that the root's dual point may take after a foreign solver has ended, its least seconds, and
#: its seconds after an interruption.
DUAL_SHARE, DUAL_SECONDS, DUAL_INTERRUPTED = 0.2, 1.0, 0.5
#: Large matrices need some factorizations: seconds per cubed number of inputs, and the most seconds.
DUAL_CUBIC, DUAL_MOST = 5e-8, 60.0
#: Seconds per squared number of inputs that certification takes, and the most of the time limit that is kept for it.
CERTIFY_SQUARE, CERTIFY_MOST = 1.2e-7, 0.5

#: Layers of so many inputs are prepared in a thread, so that Ctrl-C is heard during a call of LAPACK.
LONG_PREPARATION = 500

#: Called after each finished channel: (channels done, channels in all, channel, its certified result).
Progress = Callable[[int, int, int, CertifiedChannel], None]


def solve(
    problem: Problem,
    backend: str = "native",
    *,
    channels: Sequence[int] | None = None,
    time_limit: float = 10.0,
    gap: ArrayLike = 0.0,
    jobs: int | None = None,
    seed: int = 0,
    node_limit: int | None = None,
    warm_start: ArrayLike | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> Solution:
    """Find certified intervals around the smallest possible error of each output channel.

    Parameters
    ----------
    problem : QuantizationProblem or PruningProblem
    backend : str
        A name from `backends`.
    channels : sequence of int, optional
        Output channels to solve; default: all.
    time_limit : float
        Seconds of search per channel. Preparation that channels share, and compilation, are outside it.
    gap : float or array_like of shape (channels,)
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
    progress : callable, optional
        Called after each channel with (done, total, channel, certified result).
    options : mapping, optional
        The backend's own options (docs/backends.md).

    Returns
    -------
    Solution
        An interrupted run (Ctrl-C) returns what it has, with ``interrupted`` set; during the preparation it raises
        KeyboardInterrupt.

    Raises
    ------
    InputError
        On invalid options.
    UnsupportedProblemError
        If the backend cannot treat the problem.
    """
    as_problem(problem)
    _check_options(time_limit, jobs, seed, node_limit)
    if progress is not None and not callable(progress):
        raise InputError(f"progress is {shown(progress)}; pass a function.")
    chosen = check_channels(problem, channels)
    sets = problem.sets(chosen)
    gaps = _gaps(gap, len(sets))
    solver = get_backend(backend)
    _check_capabilities(solver, problem)
    settings = read_options(solver, as_mapping(options, "options"))
    threads = jobs if jobs is not None else os.cpu_count() or 1
    starts = _warm_starts(problem, chosen, warm_start)
    layer = problem.layer

    begin = time.perf_counter()
    groups = [layer.group_of(s[0]) for s in sets]

    def prepare() -> dict[int, Any]:
        return {g: solver.prepare(problem, g, threads) for g in sorted(set(groups))}

    shared = interruptible(prepare) if layer.in_features >= LONG_PREPARATION else prepare()
    preparation = time.perf_counter() - begin

    cancel = threading.Event()
    share = max(threads // len(sets), 1)
    limits = Control(time_limit, 0.0, node_limit, seed, share, cancel, options=settings)
    work = _Work(problem, solver, is_own(backend), sets, gaps, groups, shared, starts, limits)
    finished, interrupted = _run(
        work.units(), min(threads, len(sets)) if solver.concurrent else 1, cancel, sets, progress
    )

    certified = [finished[i].certified for i in range(len(sets))]
    energy = layer.energy()
    order = {channel: i for i, channel in enumerate(chosen)}
    weights = np.empty((len(chosen), layer.in_features))
    for s, result in zip(sets, certified, strict=True):
        weights[[order[channel] for channel in s]] = problem.complete_set(s, result.weights)
    return Solution(
        problem=problem,
        channels=chosen,
        sets=sets,
        lower_bound=np.array([c.lower for c in certified]),
        upper_bound=np.array([c.upper for c in certified]),
        weights=weights.reshape(len(chosen), *layer.weight.shape[1:]),
        status=[c.status for c in certified],
        bound_kind=[c.bound_kind for c in certified],
        claimed_lower_bound=np.array([c.claimed_lower for c in certified]),
        energy=np.array([energy[s].sum() for s in sets]),
        seconds=np.array([finished[i].seconds for i in range(len(sets))]),
        nodes=np.array([finished[i].nodes for i in range(len(sets))], dtype=np.int64),
        trace=[list(c.trace) for c in certified],
        preparation_seconds=preparation,
        backend=backend,
        interrupted=interrupted or cancel.is_set(),
        notes={s[0]: c.notes for s, c in zip(sets, certified, strict=True) if c.notes},
        certified_trace=work.own,
    )


@dataclass(frozen=True, eq=False)
class Finished:
    """A certified set of rows, its search time in seconds and its nodes."""

    index: int
    certified: CertifiedChannel
    seconds: float
    nodes: int


@dataclass(frozen=True, eq=False)
class _Work:
    """The pieces of one call of `solve`, one for each set of rows.

    Attributes
    ----------
    own : bool
        Whether the backend's proofs are those of the package's own searches.
    groups : list of int
        Gram group of each set.
    shared : dict
        What the backend prepared for each group.
    limits : Control
        Of every piece, whose clock starts with it.
    """

    problem: Problem
    solver: Backend
    own: bool
    sets: list[list[int]]
    gaps: list[float]
    groups: list[int]
    shared: dict[int, Any]
    starts: dict[int, Float] | None
    limits: Control

    def units(self) -> list[Callable[[], list[Finished]]]:
        """What can be done side by side: a set each, or a group each where the backend takes whole groups."""
        if hasattr(self.solver, "solve_group"):
            return [partial(self.together, group) for group in self.shared]
        return [partial(self.alone, index) for index in range(len(self.sets))]

    def alone(self, index: int) -> list[Finished]:
        """Solve and certify one set."""
        task = self.task(index)
        control = self.control(self.gaps[index], len(task.gram))
        raw = self.solver.solve(task, control) if self.own else self.foreign([task], control)[0]
        return [self.certified(index, task, raw, control, 1)]

    def together(self, group: int) -> list[Finished]:
        """Solve the sets of a group at once, and certify each."""
        members = [i for i, g in enumerate(self.groups) if g == group]
        tasks = [self.task(i) for i in members]
        control = self.control(min(self.gaps[i] for i in members), len(tasks[0].gram))
        raws = self.grouped(tasks, control) if self.own else self.foreign(tasks, control)
        triples = zip(members, tasks, raws, strict=True)
        return [self.certified(i, task, raw, control, len(tasks)) for i, task, raw in triples]

    def grouped(self, tasks: list[Task[Any]], control: Control) -> Sequence[RawSolve]:
        """The answers of a backend that takes whole groups."""
        return cast(GroupBackend, self.solver).solve_group(tasks, control)

    def foreign(self, tasks: list[Task[Any]], control: Control) -> list[RawSolve]:
        """Let a foreign solver work; what it does wrong becomes a note instead of an end of the run."""
        whole = hasattr(self.solver, "solve_group")
        try:
            raws = list(self.grouped(tasks, control) if whole else [self.solver.solve(t, control) for t in tasks])
            if len(raws) != len(tasks):
                raise ValueError(f"{len(raws)} answers for {len(tasks)} channels")
        except LayerboundsError:
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            return [RawSolve(None, Status.FAILED, notes=(f"the solver ended with an error: {text}",)) for _ in tasks]
        late = control.elapsed() - control.time_limit
        if late > max(0.05 * control.time_limit, 0.2):
            note = f"the solver took {late:.1f} s more than the time limit"
            raws = [replace(raw, notes=(*raw.notes, note)) for raw in raws]
        return raws

    def task(self, index: int) -> Task[Any]:
        """A set without its dead inputs."""
        rows = self.sets[index]
        start = None
        if self.starts is not None:
            start = self.starts[rows[0]] if len(rows) == 1 else np.stack([self.starts[c] for c in rows])
        return make_task(self.problem, rows, self.shared[self.groups[index]], start)

    def control(self, gap: float, size: int) -> Control:
        """The limits of a piece that begins now; certification is part of its time."""
        limit = self.limits.time_limit
        kept = min(CERTIFY_SQUARE * size**2, CERTIFY_MOST * limit) if self.own else 0.0
        return replace(self.limits, time_limit=limit - kept, gap=gap, started=working_time())

    def certified(self, index: int, task: Task[Any], raw: RawSolve, control: Control, share: int) -> Finished:
        """Certify an answer; ``share`` sets share the time."""
        seconds = control.elapsed()
        if self.own:
            return Finished(index, certify(task, raw, self.gaps[index]), control.elapsed() / share, raw.nodes)

        def derive(weights: Float | None) -> Dual | None:
            # After Ctrl-C a channel that was worked on still gets a short look; the others must not delay the end.
            left = DUAL_INTERRUPTED if seconds > DUAL_INTERRUPTED else 0.0
            cubic = min(DUAL_CUBIC * len(task.gram) ** 3, DUAL_MOST)
            allowed = left if control.cancel.is_set() else max(DUAL_SHARE * control.time_limit, DUAL_SECONDS, cubic)
            return root_dual(task, weights, allowed)

        return Finished(index, certify_foreign(task, raw, self.gaps[index], derive), seconds / share, raw.nodes)


def _run(
    units: list[Callable[[], list[Finished]]],
    workers: int,
    cancel: threading.Event,
    sets: list[list[int]],
    progress: Progress | None,
) -> tuple[dict[int, Finished], bool]:
    """Run pieces of work side by side; Ctrl-C sets ``cancel`` and waits for what they still return."""
    results: dict[int, Finished] = {}
    interrupted = False
    # Small factorizations with several BLAS threads are many times slower than with one.
    with threadpool_limits(limits=1), ThreadPoolExecutor(max_workers=workers) as pool:
        pending: set[Future[list[Finished]]] = {pool.submit(unit) for unit in units}
        try:
            while pending:
                try:
                    done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in done:
                        # In this order, so that a Ctrl-C in between loses no channel.
                        for piece in future.result():
                            results[piece.index] = piece
                        pending.discard(future)
                        if progress is not None:
                            for piece in future.result():
                                progress(len(results), len(sets), sets[piece.index][0], piece.certified)
                except KeyboardInterrupt:
                    # Every channel, begun or not, still returns a valid interval; a second Ctrl-C gives up.
                    if interrupted:
                        raise
                    interrupted = True
                    cancel.set()
        except BaseException:
            cancel.set()
            for future in pending:
                future.cancel()
            raise
    return results, interrupted


def _check_options(time_limit: float, jobs: int | None, seed: int, node_limit: int | None) -> None:
    real_number(time_limit, "time_limit", 0.0, unit="number of seconds")
    if jobs is not None:
        whole_number(jobs, "jobs", 1, MOST_THREADS)
    whole_number(seed, "seed")
    if node_limit is not None:
        whole_number(node_limit, "node_limit", 1)


def _gaps(gap: ArrayLike, channels: int) -> list[float]:
    values = as_float64(gap, "gap")
    if values.shape not in ((), (channels,)) or not np.all((values >= 0) & (values < 1)):
        raise InputError(
            f"gap is {shown(gap)}; pass a relative gap in [0, 1), or one for each of the {channels} channels."
        )
    return [float(v) for v in np.broadcast_to(values, (channels,))]


def _check_capabilities(solver: Backend, problem: Problem) -> None:
    state = solver.availability()
    if not state.available:
        raise MissingExtraError(f"backend {solver.name!r} is not available: {state.reason}")
    needed = problem.requirement
    if needed not in solver.capabilities:
        raise UnsupportedProblemError(
            f"backend {solver.name!r} cannot treat {needed}; choose another one (`layerbounds backends`)."
        )


def _warm_starts(problem: Problem, channels: list[int], warm_start: ArrayLike | None) -> dict[int, Float] | None:
    if warm_start is None:
        return None
    matrix = problem.layer.channel_weights(warm_start, channels, "warm_start")
    return dict(zip(channels, problem.project(matrix, channels), strict=True))
