"""Pieces of work: what a worker does to some rows of a layer at one choice, and the record that it returns."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.certify.interval import settled
from layerbounds.certify.solution_file import write_solution
from layerbounds.comparison.rescaled import rescaling
from layerbounds.exceptions import CertificationError, UnsupportedProblemError
from layerbounds.methods.registry import run_channels
from layerbounds.methods.specs import MethodSpec, choose_methods
from layerbounds.network.choices import Choice
from layerbounds.network.records import ABOUT, about_record
from layerbounds.network.yardsticks import yardsticks
from layerbounds.problems.evaluation import evaluate
from layerbounds.problems.problem import Problem
from layerbounds.proofs import Status
from layerbounds.scheduling.choice import AUTO, BATCHED, NATIVE, NATIVE_INPUTS
from layerbounds.solution import Solution, load_solution
from layerbounds.solve import solve
from layerbounds.solvers.registry import get_backend


@dataclass(frozen=True)
class Piece:
    """An order to a worker.

    Attributes
    ----------
    entry : tuple of int
        Numbers of layer and choice.
    fingerprint : str
        Of the problem.
    chunk : int
        Of the entry.
    rows : list of int
        Output channels of the chunk.
    choice : Choice
    search : list of int or None
        Which sets of the chunk are searched, by their places in it; None for first bounds of all.
    limit : float
        Seconds for each of them.
    methods : tuple of str
        Methods to score, with their options.
    given : mapping of str to (ndarray, str)
        Weights from elsewhere of these rows, shape (rows, n), and the type that they were rounded to.
    digests : mapping of str to str
        SHA-256 of all of these weights, of all layers.
    previous : bytes or None
        The record so far.
    seed : int
    backend : str
        Of the search; first bounds come from ``batched`` where it treats the problem and ``auto`` is asked for.
    threads : int
    total : float
        Seconds for all searches together.
    """

    entry: tuple[int, int]
    fingerprint: str
    chunk: int
    rows: list[int]
    choice: Choice
    search: list[int] | None
    limit: float
    methods: tuple[str, ...] = ()
    given: Mapping[str, tuple[Float, str]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    previous: bytes | None = None
    seed: int = 0
    backend: str = "auto"
    threads: int = 1
    total: float = math.inf


@dataclass(frozen=True)
class Finished:
    """What comes back.

    Attributes
    ----------
    piece : Piece
        Without its arrays.
    record : bytes
        The new record of the chunk.
    """

    piece: Piece
    record: bytes


def carry_out(piece: Piece, problem: Problem) -> Finished:
    """Do a piece of work.

    Parameters
    ----------
    piece : Piece
    problem : Problem
        The choice's, for the layer.

    Raises
    ------
    CertificationError
        If weights that are allowed have a smaller error than a lower bound.
    KeyboardInterrupt
        If it was cancelled.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record"
        solution: Solution | None = None
        about: dict[str, Any] = {"seed": piece.seed, "limit": [], "methods": {}, "yardsticks": {}}
        if piece.previous is not None:
            path.write_bytes(piece.previous)
            solution, about = load_solution(path, layer=problem.layer), about_record(path)
        about["entry"] = list(piece.entry)
        best = _score(piece, problem, about["methods"])
        if solution is None:
            solution = _first(piece, problem, best)
            about["limit"] = [0.0] * len(solution.sets)
            about["yardsticks"] = yardsticks(problem, piece.rows)
        if piece.search:
            before, begin = solution.seconds, time.perf_counter()
            solution = _searched(piece, problem, solution)
            whole = time.perf_counter() - begin < piece.total
            for place in piece.search:
                had = piece.limit if whole else float(solution.seconds[place] - before[place])
                about["limit"][place] = max(about["limit"][place], min(had, piece.limit))
        _check(about["methods"], solution)
        write_solution(path, vars(solution), by_hash=True, about={ABOUT: about})
        return Finished(replace(piece, given={}, previous=None), path.read_bytes())


def _score(piece: Piece, problem: Problem, scores: dict[str, Any]) -> Float | None:
    """Score the methods and the weights from elsewhere; the best allowed weights of each set, shape (rows, n)."""
    rows = piece.rows
    position = {channel: i for i, channel in enumerate(rows)}
    sets = problem.sets(rows)
    best, least = np.zeros((len(rows), problem.layer.in_features)), np.full(len(sets), np.inf)

    def keep(label: str, matrix: Float, seconds: float, dtype: str | None) -> None:
        score = evaluate(problem, matrix, rows, dtype=dtype)
        feasible = bool(score.feasible.all())
        scores[label] = {
            "errors": score.error.tolist(), "feasible": feasible, "seconds": seconds, "given": piece.digests.get(label),
        }  # fmt: skip
        for index in np.flatnonzero(score.feasible & (score.error < least)):
            members = [position[c] for c in sets[index]]
            best[members], least[index] = matrix[members], score.error[index]

    for spec in choose_methods(problem, piece.methods):
        found = _run(spec, problem, piece)
        if found is not None:
            keep(spec.label, *found, None)
        else:
            nothing = [math.inf] * len(sets)
            scores[spec.label] = {"errors": nothing, "feasible": False, "seconds": 0.0, "given": None}
    for label, (matrix, dtype) in piece.given.items():
        keep(label, matrix, 0.0, dtype)
    return best if len(least) and np.all(np.isfinite(least)) else None


def _run(spec: MethodSpec, problem: Problem, piece: Piece) -> tuple[Float, float] | None:
    """Weights of a method and its seconds; None where it cannot treat the problem."""
    scales = rescaling(problem, ())
    try:
        if scales is not None:
            return scales.run(spec, piece.rows, piece.seed, piece.threads)
        return run_channels(spec.heuristic, problem, piece.rows, piece.seed, spec.options, piece.threads)
    except UnsupportedProblemError:
        return None


def _first(piece: Piece, problem: Problem, best: Float | None) -> Solution:
    """First bounds: of all rows at once where that can be had, else the roots of the searches."""
    backend, limit = piece.backend, 0.0
    if backend == AUTO:
        whole = problem.requirement in get_backend(BATCHED).capabilities
        backend = BATCHED if whole else NATIVE
    return _whole(
        solve(
            problem,
            backend,
            channels=piece.rows,
            time_limit=None if backend == BATCHED else limit,
            jobs=piece.threads,
            seed=piece.seed,
            warm_start=best,
        )
    )


def _searched(piece: Piece, problem: Problem, known: Solution) -> Solution:
    """Search some sets from what is known of them; no interval gets wider."""
    places = piece.search or []
    position = {channel: i for i, channel in enumerate(known.channels)}
    rows = [channel for place in places for channel in known.sets[place]]
    matrix = known.weights.reshape(len(known.channels), -1)
    # Of large layers the search begins where the bounds of all rows end, which are found once more.
    small = problem.layer.in_features <= NATIVE_INPUTS
    found = solve(
        problem,
        NATIVE if piece.backend == AUTO and small else piece.backend,
        channels=rows,
        time_limit=piece.limit,
        total_time=None if piece.total == math.inf else piece.total,
        jobs=piece.threads,
        seed=piece.seed,
        warm_start=matrix[[position[c] for c in rows]],
    )
    return _intersected(known, _whole(found), places)


def _whole(solution: Solution) -> Solution:
    """A solution that has had its time: one that was cut short is not said to have had it.

    Raises
    ------
    KeyboardInterrupt
    """
    if solution.interrupted:
        raise KeyboardInterrupt
    return solution


def _intersected(known: Solution, found: Solution, places: list[int]) -> Solution:
    """What two solutions say together; ``found`` is of the sets of ``known`` at ``places``."""
    values = dict(vars(known))
    for name in ("lower_bound", "upper_bound", "weights", "seconds", "nodes", "claimed_lower_bound"):
        values[name] = np.array(values[name])
    for name in ("status", "bound_kind", "lower_backend", "upper_backend", "trace"):
        values[name] = list(values[name])
    position = {channel: i for i, channel in enumerate(known.channels)}
    theirs = {channel: i for i, channel in enumerate(found.channels)}
    for i, place in enumerate(places):
        rows = known.sets[place]
        if found.lower_bound[i] > known.upper_bound[place] or known.lower_bound[place] > found.upper_bound[i]:
            raise CertificationError(
                f"layer {known.problem.layer.name!r}, {known.problem.label}: two certified intervals contradict each "
                "other; please report this problem with its data."
            )
        if found.lower_bound[i] > known.lower_bound[place]:
            values["lower_bound"][place] = found.lower_bound[i]
            values["bound_kind"][place], values["lower_backend"][place] = found.bound_kind[i], found.lower_backend[i]
        if found.upper_bound[i] < known.upper_bound[place]:
            values["upper_bound"][place] = found.upper_bound[i]
            values["upper_backend"][place] = found.upper_backend[i]
            values["weights"][[position[c] for c in rows]] = found.weights[[theirs[c] for c in rows]]
        values["status"][place] = settled(
            float(values["lower_bound"][place]),
            float(values["upper_bound"][place]),
            0.0,
            float(known.energy[place]),
            Status(found.status[i]),
        )
        values["seconds"][place] += found.seconds[i]
        values["nodes"][place] += found.nodes[i]
        if not np.isnan(found.claimed_lower_bound[i]):
            values["claimed_lower_bound"][place] = found.claimed_lower_bound[i]
    values |= {"interrupted": found.interrupted, "evidence": [], "backend": found.backend}
    values["preparation_seconds"] = known.preparation_seconds + found.preparation_seconds
    values["certified_trace"] = known.certified_trace and found.certified_trace
    return Solution(**values)


def _check(scores: Mapping[str, Any], solution: Solution) -> None:
    """Raise if allowed weights have a smaller error than a lower bound."""
    for label, score in scores.items():
        errors = np.asarray(score["errors"])
        if score["feasible"] and np.any(errors < solution.lower_bound * (1.0 - 1e-9)):
            raise CertificationError(
                f"layer {solution.problem.layer.name!r}, {solution.problem.label}: allowed weights of {label!r} lie "
                "below a certified lower bound; please report this problem with its data."
            )
