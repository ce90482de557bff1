"""Gurobi: mixed-integer quadratic programming (needs gurobipy, whose wheel brings a size-limited licence)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.solvers.base import Availability, Option
from layerbounds.solvers.foreign import (
    QUADRATIC_ROWS,
    SOLVER_GAP,
    Record,
    begin,
    check_packages,
    formulation_option,
    warm_up,
)
from layerbounds.solvers.formulation import Formulation, dense_hessian
from layerbounds.solvers.scaled import check_scaled

#: Tightest tolerances that Gurobi takes.
TOLERANCE = 1e-9
_TOO_LARGE = 10010


class GurobiBackend:
    """Convex quadratic objective in the integers themselves, or in z = R(x − w)."""

    name = "gurobi"
    capabilities = QUADRATIC_ROWS
    options: Mapping[str, Option] = MappingProxyType(
        {
            "formulation": formulation_option("dense"),
            "threads": Option(1, "threads of a channel", least=1),
        }
    )
    concurrent = True

    def availability(self) -> Availability:
        """Whether gurobipy can be imported; the licence is looked at when a channel is solved."""
        return check_packages(["gurobipy"], "gurobi")

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        """Nothing is shared; imports and compilation happen here."""
        check_scaled(problem, self.name)
        warm_up(problem, "gurobipy")

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Branch and bound of one channel."""
        import gurobipy

        begun = begin(task, control)
        if isinstance(begun, RawSolve):
            return begun
        form, record = begun
        try:
            with (
                gurobipy.Env(params={"OutputFlag": 0}) as environment,
                gurobipy.Model(env=environment) as model,
            ):
                u = _build(model, form, control.options["formulation"] == "cholesky")
                _limit(model, control)
                model.optimize(_watch(record, form, u))
                return _read(model, form, u, record)
        except gurobipy.GurobiError as error:
            if error.errno == _TOO_LARGE:
                raise UnsupportedProblemError(
                    f"channel {task.channel}: with {form.size} variables the problem is too large for Gurobi's "
                    "size-limited licence; use a full licence or another backend."
                ) from error
            raise


def _build(model: Any, form: Formulation, cholesky: bool) -> Any:
    import gurobipy

    grb = gurobipy.GRB
    kinds = np.where(form.integer, grb.INTEGER, grb.CONTINUOUS)
    u = model.addMVar(form.size, lb=form.low, ub=form.high, vtype=kinds)
    u.Start = form.start
    if cholesky:
        z = model.addMVar(len(form.offset), lb=-grb.INFINITY)
        model.addConstr(form.factor @ u - z == form.offset)
        model.setObjective(z @ z + form.cost @ u + form.constant)
    else:
        q, p, r = dense_hessian(form)
        model.setObjective(u @ q @ u + p @ u + r)
    for row in form.rows:
        total = row.coefficients @ u[row.index]
        if np.isfinite(row.high):
            model.addConstr(total <= row.high)
        if np.isfinite(row.low):
            model.addConstr(total >= row.low)
    for s, x, y in form.cones:
        model.addConstr(u[x] * u[x] <= u[s] * u[y])
    for y, x in form.indicators:
        model.addGenConstrIndicator(u[y].item(), False, u[x].item(), grb.EQUAL, 0.0)
    for product, s, x in form.products:
        model.addConstr(u[s] * u[x] == u[product])
    return u


def _limit(model: Any, control: Control) -> None:
    parameters: dict[str, Any] = {
        "TimeLimit": control.remaining(),
        "Threads": control.options["threads"],
        "Seed": control.seed % 2**31,
        "MIPGap": control.gap if control.gap > 0 else SOLVER_GAP,
        "MIPGapAbs": 0.0,
        "FeasibilityTol": TOLERANCE,
        "OptimalityTol": TOLERANCE,
        "IntFeasTol": TOLERANCE,
    }
    if control.node_limit is not None:
        parameters["NodeLimit"] = control.node_limit
    for name, value in parameters.items():
        model.setParam(name, value)


def _watch(record: Record, form: Formulation, u: Any) -> Any:
    """A callback that records better points and bounds, and stops Gurobi when the run is interrupted."""
    import gurobipy

    where_is, what = gurobipy.GRB.Callback, gurobipy.GRB.Callback

    def watch(model: Any, where: int) -> None:
        if where == where_is.MIPSOL:
            record.nodes = int(model.cbGet(what.MIPSOL_NODCNT))
            record.solution(form, model.cbGetSolution(u))
            record.bound(model.cbGet(what.MIPSOL_OBJBND))
        elif where == where_is.MIP:
            record.nodes = int(model.cbGet(what.MIP_NODCNT))
            record.bound(model.cbGet(what.MIP_OBJBND))
        if record.control.cancel.is_set():
            model.terminate()

    return watch


def _read(model: Any, form: Formulation, u: Any, record: Record) -> RawSolve:
    import gurobipy

    grb = gurobipy.GRB
    if model.SolCount > 0:
        point: Float = np.array(u.X)
        record.solution(form, point)
    known = {
        grb.OPTIMAL: Status.OPTIMAL if record.control.gap == 0 else Status.GAP_REACHED,
        grb.TIME_LIMIT: Status.TIME_LIMIT,
        grb.NODE_LIMIT: Status.NODE_LIMIT,
        grb.INTERRUPTED: Status.INTERRUPTED,
        grb.SUBOPTIMAL: Status.TIME_LIMIT,
    }
    if model.Status == grb.INTERRUPTED:
        # Gurobi takes Ctrl-C for itself; the other channels have to end, too.
        record.control.cancel.set()
    if model.Status in known:
        record.nodes = int(model.NodeCount)
        record.bound(model.ObjBound)
        return record.finish(known[model.Status])
    # The incumbent is feasible: "infeasible" would be an error of the solver, and its bound worth nothing.
    record.claim = None
    return record.finish(Status.FAILED, [f"Gurobi ended with the status {model.Status}"])
