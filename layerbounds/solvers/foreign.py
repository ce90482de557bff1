"""What the foreign solvers share: how they begin, the record of what they found and claim, optional packages."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np

# They register how problems of their kind are written down.
import layerbounds.solvers.joint
import layerbounds.solvers.shared  # noqa: F401
from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.evaluation import squared_error
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import OPTIMAL_RELATIVE, Control, RawSolve, Status, TracePoint
from layerbounds.search.families import root_dual
from layerbounds.solvers.base import Availability, Capability, Option
from layerbounds.solvers.formulation import Formulation, choose_tie, formulate, incumbent

#: Solvers are asked for this relative gap: tighter than what counts as optimal.
SOLVER_GAP = 0.1 * OPTIMAL_RELATIVE
#: What solvers of mixed-integer problems can treat and honour that take quadratic rows, convex or not.
QUADRATIC_ROWS = frozenset(
    {
        Capability.UNIFORM,
        Capability.CODEBOOK,
        Capability.PRUNING,
        Capability.MASK,
        Capability.SHARED,
        Capability.SHARED_MASK,
        Capability.JOINT,
        Capability.FREE_SCALE,
        Capability.WARM_START,
        Capability.NODE_LIMIT,
        Capability.TRACE,
        Capability.OPTIMALITY,
        Capability.SINGULAR,
    }
)


def formulation_option(usual: str) -> Option:
    """The option ``formulation`` of these solvers; ``usual`` is what ``auto`` is where there is a choice."""
    return Option(
        "auto",
        f"auto is {usual} for quantization and masks, bigm where kept weights are integers; for pruning with refit "
        "bigm, or indicator where the Gram matrix is singular",
        ("auto", "cholesky", "dense", "bigm", "perspective", "indicator"),
    )


def check_packages(names: Sequence[str], extra: str) -> Availability:
    """Whether packages can be imported, and the version of the first."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            return Availability(False, None, f"{name} is not installed; run: pip install 'layerbounds[{extra}]'")
    return Availability(True, importlib.metadata.version(names[0]))


class Record:
    """Best weights, best claim and trace of a foreign solver; errors and bounds in the units of the task.

    Parameters
    ----------
    task : Task
    control : Control
    start : ndarray of shape (n,)
        Feasible weights.
    unit : float
        Objective of the task, without its constant, / objective of the solver.
    """

    def __init__(self, task: Task[Any], control: Control, start: Float, unit: float) -> None:
        self.task, self.control, self.unit = task, control, unit
        self.weights = start
        self.error = squared_error(task.gram, start - task.target)
        self.claim: float | None = None
        self.nodes = 0
        self.trace: list[TracePoint] = []
        self.note()

    @property
    def upper(self) -> float:
        """The best error found, in the solver's units."""
        return self.error / self.unit

    @property
    def lower(self) -> float:
        """The best claim, in the solver's units, −inf before the first."""
        return -np.inf if self.claim is None else (self.claim - self.task.constant) / self.unit

    @property
    def closed(self) -> bool:
        """Whether the claim reaches the gap that was asked for."""
        return self.upper - self.lower <= max(self.control.gap, SOLVER_GAP) * self.upper

    def note(self) -> None:
        """Add a point to the trace."""
        lower = self.task.constant if self.claim is None else self.claim
        upper = self.error + self.task.constant
        self.trace.append(TracePoint(self.control.elapsed(), self.nodes, lower, upper))

    def point(self, weights: Float) -> None:
        """Take feasible weights where they are the best so far; their error is computed, not believed."""
        error = squared_error(self.task.gram, weights - self.task.target)
        if error < self.error:
            self.weights, self.error = weights, error
            self.note()

    def solution(self, form: Formulation, values: Sequence[float] | Float) -> None:
        """Take a point of the solver."""
        u = np.asarray(values, dtype=np.float64)
        if u.shape == (form.size,) and np.all(np.isfinite(u)):
            self.point(form.decode(u))

    def bound(self, value: float, significant: float = 1e-4) -> None:
        """Take the solver's bound, in its units; steps that are not significant do not enter the trace."""
        if not np.isfinite(value) or abs(value) >= 1e19:
            return
        claim = value * self.unit + self.task.constant
        if self.claim is None or claim > self.claim:
            step = np.inf if self.claim is None else claim - self.claim
            self.claim = claim
            if step > significant * self.error:
                self.note()

    def finish(self, status: Status, notes: Sequence[str] = ()) -> RawSolve:
        """What the backend returns."""
        self.note()
        if self.control.cancel.is_set():
            status = Status.INTERRUPTED
        return RawSolve(
            weights=self.weights,
            termination=status,
            claimed_lower_bound=self.claim,
            nodes=self.nodes,
            trace=tuple(self.trace),
            notes=tuple(notes),
        )


def warm_up(problem: Problem, package: str) -> None:
    """Import the solver and compile what gives the incumbent: neither is part of a channel's time."""
    importlib.import_module(package)
    tiny = Layer(np.linspace(-0.9, 1.0, 5)[None], np.eye(5) + 0.5)
    task = make_task(problem.like(tiny), 0, None, None)
    root_dual(task, incumbent(task, 0), 1.0)


def begin(task: Task[Any], control: Control) -> RawSolve | tuple[Formulation, Record]:
    """The answer where nothing is to be solved; else the problem, with an incumbent, and the record of the work."""
    start = incumbent(task, control.seed) if len(task.target) else task.target.copy()
    done = nothing_to_solve(task, control, start)
    if done is not None:
        return done
    form = formulate(task, start, choose_tie(task, control.options["formulation"]))
    return form, Record(task, control, start, form.unit)


def nothing_to_solve(task: Task[Any], control: Control, start: Float) -> RawSolve | None:
    """The answer where the start is already perfect or the time is out; else None."""
    error = squared_error(task.gram, start - task.target)
    if error > 0.0 and control.remaining() > 0:
        return None
    record = Record(task, control, start, max(error, 1.0))
    if error == 0.0:
        record.bound(0.0)
    return record.finish(Status.OPTIMAL if error == 0.0 else Status.TIME_LIMIT)
