"""Semidefinite relaxations with conic solvers through CVXPY (needs the `sdp` extra).

With X in the place of xxᵀ, in units of the grid step, both relaxations minimise tr(PX) − 2(Pc)ᵀx + cᵀPc over
[[X, x], [xᵀ, 1]] ⪰ 0:

* ``park-boyd`` (Park & Boyd, arXiv 1504.07672, used by Kuzmin et al., arXiv 2307.02973): X_ii ≥ (l + u)x_i − lu for the
  two levels around c_i only, and no box;
* ``box``: the same for every pair of neighbouring levels, and X_ii ≤ (l + u)x_i − lu for the two end levels.

A conic solver's value is no bound: certification takes the multipliers of these rows as the diagonal D and x as the
point z, proves D ⪯ H, and computes the bound anew (docs/bounds.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import proven_minorant
from layerbounds.bounds.quantization.relaxation import evaluate_relaxation, maximize_relaxation
from layerbounds.problems.evaluation import squared_error
from layerbounds.problems.levels import Levels, nearest_levels
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, DualPoint, RawSolve, Status
from layerbounds.solvers.base import Availability, Capability, Option
from layerbounds.solvers.foreign import Record, check_packages, nothing_to_solve, warm_up
from layerbounds.solvers.formulation import incumbent

CHUNK_NOTE = (
    "chunk={}: the claim is the sum of the bounds of separate blocks of inputs, cross terms dropped, as published with "
    "Kuzmin et al. (2023); it is no bound of the layer"
)


#: Larger blocks are left to SCS.
CLARABEL_INPUTS = 80


@dataclass(frozen=True, eq=False)
class Relaxed:
    """What a conic solver returned for a block: its value, x, X − xxᵀ, and the multipliers of the diagonal.

    The value is None where the solver was stopped early.
    """

    value: float | None
    x: Float
    spread: Float
    d: Float


class SdpBackend:
    """Semidefinite relaxation, repaired duals, randomized rounding."""

    name = "sdp"
    capabilities = frozenset({Capability.UNIFORM, Capability.CODEBOOK, Capability.WARM_START})
    options: Mapping[str, Option] = MappingProxyType(
        {
            "relaxation": Option("box", "which rows the relaxation has", ("box", "park-boyd")),
            "solver": Option(
                "auto",
                f"conic solver; auto is clarabel up to {CLARABEL_INPUTS} inputs (each of its iterations factorizes a "
                "dense matrix of n²/2 rows), scs above",
                ("auto", "clarabel", "scs"),
            ),
            "chunk": Option(0, "inputs of separate blocks, 0 for the whole channel"),
            "samples": Option(100, "points of the randomized rounding", least=1),
        }
    )
    concurrent = True

    def availability(self) -> Availability:
        """Whether CVXPY and its conic solvers can be imported."""
        return check_packages(["cvxpy", "clarabel", "scs"], "sdp")

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        """Nothing is shared; imports and compilation happen here."""
        warm_up(problem, "cvxpy")

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Relaxation of one channel, or of its blocks of inputs."""
        n = len(task.target)
        start = incumbent(task, control.seed) if n else task.target.copy()
        done = nothing_to_solve(task, control, start)
        if done is not None:
            return done
        # The incumbent scales the problem; the upper bound is that of the rounding alone (and of a warm start).
        unit = squared_error(task.gram, start - task.target)
        nearest = nearest_levels(task.allowed.values, task.target)
        record = Record(task, control, nearest if task.warm_start is None else task.warm_start, unit)
        chunk = control.options["chunk"] or n
        blocks = [np.arange(i, min(i + chunk, n)) for i in range(0, n, chunk)]
        rng = np.random.default_rng([control.seed, task.channel])
        parts: list[Relaxed] = []
        rounded = nearest.copy()
        for block in blocks:
            part = _relax(task, block, unit, control) if control.remaining() > 0 else None
            if part is None:
                status = Status.TIME_LIMIT if control.remaining() <= 0 else Status.FAILED
                return record.finish(status, ["the conic solver returned no point"])
            parts.append(part)
            rounded[block] = _round(task, block, part, control.options["samples"], rng)
        record.point(rounded)
        values = [part.value for part in parts if part.value is not None]
        status = Status.RELAXED if len(values) == len(parts) else Status.TIME_LIMIT
        if status == Status.RELAXED:
            record.bound(sum(values))
        if chunk < n:
            return record.finish(status, [CHUNK_NOTE.format(chunk)])
        raw = record.finish(status)
        return replace(raw, dual=_dual_point(task, parts[0], unit))


def _scaled(task: Task[Levels], block: Int, unit: float) -> tuple[Float, Float, Float]:
    """Gram matrix, centre and levels of a block, in units of the grid steps and of the incumbent's error."""
    scale = task.allowed.scale[block]
    gram = task.gram[np.ix_(block, block)] * np.outer(scale, scale) / unit
    return gram, task.target[block] / scale, task.allowed.values[block] / scale[:, None]


def _relax(task: Task[Levels], block: Int, unit: float, control: Control) -> Relaxed | None:
    import cvxpy

    gram, centre, levels = _scaled(task, block, unit)
    n = len(block)
    # Deviations from the nearest levels: small numbers suit conic solvers.
    base = nearest_levels(levels, centre)
    shifted, offset = levels - base[:, None], centre - base
    whole = cvxpy.Variable((n + 1, n + 1), PSD=True)
    x, square = whole[:n, n], cvxpy.diag(whole)[:n]
    rows = []
    for low, high in _pairs(shifted, offset, control.options["relaxation"] == "box"):
        # Infinite levels stand for rows that a variable does not have.
        some = np.isfinite(low + high)
        if np.any(some):
            a, b = low[some], high[some]
            rows.append((some, square[some] >= cvxpy.multiply(a + b, x[some]) - a * b))
    constraints = [whole[n, n] == 1.0, *(row for _, row in rows)]
    if control.options["relaxation"] == "box":
        a, b = shifted[:, 0], shifted[:, -1]
        hull = square <= cvxpy.multiply(a + b, x) - a * b
        constraints.append(hull)
    corner = -gram @ offset
    cost = np.block([[gram, corner[:, None]], [corner[None, :], np.array([[offset @ gram @ offset]])]])
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.trace(cost @ whole)), constraints)
    solver = control.options["solver"]
    if solver == "auto":
        solver = "clarabel" if n <= CLARABEL_INPUTS else "scs"
    options: dict[str, Any] = {"solver": solver.upper()}
    options["time_limit" if solver == "clarabel" else "time_limit_secs"] = control.remaining()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem.solve(**options)
        except cvxpy.SolverError:
            return None
    if problem.status not in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE, cvxpy.USER_LIMIT) or whole.value is None:
        return None
    matrix = np.asarray(whole.value)
    d = np.zeros(n)
    for some, row in rows:
        d[some] += np.asarray(row.dual_value).reshape(-1)
    if control.options["relaxation"] == "box":
        d -= np.asarray(hull.dual_value).reshape(-1)
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(d))):
        return None
    point = matrix[:n, n]
    spread = matrix[:n, :n] - np.outer(point, point)
    # Stopped early, SCS calls its point inaccurate: the value is then no relaxation's.
    finished = problem.status == cvxpy.OPTIMAL or (
        problem.status == cvxpy.OPTIMAL_INACCURATE and control.remaining() > 0
    )
    value = float(problem.value) if finished else None
    return Relaxed(value, point + base, 0.5 * (spread + spread.T), d)


def _pairs(levels: Float, centre: Float, all_pairs: bool) -> list[tuple[Float, Float]]:
    """Neighbouring levels that bound X_ii from below: all, or the two around the centre, on an unbounded grid."""
    if all_pairs:
        return [(levels[:, k], levels[:, k + 1]) for k in range(levels.shape[1] - 1)]
    inside = np.array([np.searchsorted(row, c, side="right") - 1 for row, c in zip(levels, centre, strict=True)])
    place = np.clip(inside, 0, levels.shape[1] - 2)
    rows = np.arange(len(levels))
    low, high = levels[rows, place], levels[rows, place + 1]
    return [(low, high)]


def _dual_point(task: Task[Levels], part: Relaxed, unit: float) -> DualPoint:
    """The solver's multipliers and x, or their nonnegative part with the best point for it, whichever gives more."""
    gram, centre, levels = _scaled(task, np.arange(len(task.target)), unit)
    table = np.ascontiguousarray(levels.T)
    count = task.allowed.count
    signed, positive = proven_minorant(gram, part.d), proven_minorant(gram, np.maximum(part.d, 0.0))
    z, d, best = part.x, np.zeros_like(centre), -np.inf
    if signed is not None:
        z, d = part.x, signed[0]
        best = evaluate_relaxation(gram, centre, table, z, d).value
    if positive is not None:
        matrix = np.ascontiguousarray(gram + np.diag(positive[1]))
        found = maximize_relaxation(matrix, centre, table, count, positive[0], part.x, lambda: False)
        if found.value > best:
            z, d = found.z, found.d
    return DualPoint(z * task.allowed.scale, d * unit / task.allowed.scale**2)


def _round(task: Task[Levels], block: Int, part: Relaxed, samples: int, rng: np.random.Generator) -> Float:
    """Randomized rounding: points of N(x, X − xxᵀ) to their nearest levels, then the best single moves."""
    gram, centre, levels = _scaled(task, block, 1.0)
    n = len(block)
    values, vectors = np.linalg.eigh(part.spread)
    half = vectors * np.sqrt(np.maximum(values, 0.0))
    points = part.x + rng.normal(size=(samples, n)) @ half.T
    points[0] = part.x
    best, found = np.inf, nearest_levels(levels, part.x)
    rows = np.arange(n)
    for point in points:
        choice = np.argmin(np.abs(levels - point[:, None]), axis=1)
        gradient = gram @ (levels[rows, choice] - centre)
        while True:
            step = levels - levels[rows, choice][:, None]
            change = 2.0 * gradient[:, None] * step + np.diag(gram)[:, None] * step**2
            i, k = np.unravel_index(int(np.argmin(change)), change.shape)
            if change[i, k] >= -1e-12 * float(np.max(np.abs(change), initial=0.0)):
                break
            gradient = gradient + gram[:, i] * step[i, k]
            choice[i] = k
        deviation = levels[rows, choice] - centre
        value = float(deviation @ gram @ deviation)
        if value < best:
            best, found = value, levels[rows, choice]
    nearest = np.argmin(np.abs(levels - found[:, None]), axis=1)
    return np.asarray(task.allowed.values[block, nearest])
