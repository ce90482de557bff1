"""HiGHS: outer approximation by mixed-integer linear problems (needs the `highs` extra).

HiGHS has no mixed-integer quadratic solver (given integers and a Hessian it returns the objective 0.0), so that it
never sees a square: e ≥ z² becomes tangents e ≥ 2az − a², and e·y ≥ x² perspective tangents e ≥ 2ax − a²y, at the
points a of the linear relaxation first, then of the integer solutions, until the bound meets the best error (Duran &
Grossmann, Math. Programming 36, 1986). Every problem solved on the way is a relaxation, so that its bound is one of the
channel, up to the solver's tolerances.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.sparse

from layerbounds.arrays import Float
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.solvers.base import Availability, Capability, Option
from layerbounds.solvers.foreign import SOLVER_GAP, Record, begin, check_packages, warm_up
from layerbounds.solvers.formulation import Formulation
from layerbounds.solvers.sublevel import is_singular

#: z is multiplied by this, and the objective by its square: HiGHS takes rows as satisfied within 1e-6.
SCALE = 30.0
#: First tangents, in units of the range that the sublevel set leaves.
POINTS = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)
#: Rounds of tangents on the linear relaxation, and the relative gain at which they end.
LINEAR_ROUNDS, LINEAR_GAIN = 40, 1e-3
#: A square that is missed by less than this needs no tangent.
VIOLATION = 1e-9
#: A problem is solved to this share of the gap between its relaxation and the incumbent.
LOOSENESS = 0.1
#: Below this gap, a round without progress is the last one.
STALLED = 1e-5


class HighsBackend:
    """Tangents of Σ z_i², z = R(x − w), added until the bound meets the best error."""

    name = "highs"
    capabilities = frozenset(
        {
            Capability.UNIFORM,
            Capability.CODEBOOK,
            Capability.PRUNING,
            Capability.MASK,
            Capability.SHARED,
            Capability.SHARED_MASK,
            Capability.JOINT,
            Capability.WARM_START,
            Capability.TRACE,
            Capability.OPTIMALITY,
        }
    )
    options: Mapping[str, Option] = MappingProxyType(
        {"formulation": Option("bigm", "for pruning with refit, or with integers", ("bigm", "perspective"))}
    )
    # Its threads are shared by the whole process.
    concurrent = False

    def availability(self) -> Availability:
        """Whether highspy can be imported."""
        return check_packages(["highspy"], "highs")

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        """Refuse early what has no finite bounds on the weights."""
        if problem.requirement in (Capability.PRUNING, Capability.SHARED):
            live = problem.layer.live(group)
            if live.any() and is_singular(problem.layer.gram[group][np.ix_(live, live)]):
                raise UnsupportedProblemError(
                    "backend 'highs' needs finite bounds on the weights, and the Gram matrix of layer "
                    f"{problem.layer.name!r} is singular; use the native backend or scip."
                )
        warm_up(problem, "highspy")

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Outer approximation of one channel."""
        begun = begin(task, control)
        if isinstance(begun, RawSolve):
            return begun
        return OuterApproximation(*begun).run()


class OuterApproximation:
    """Columns: the form's variables u, then z, then e ≥ z².

    Parameters
    ----------
    form : Formulation
    record : Record
    """

    def __init__(self, form: Formulation, record: Record) -> None:
        import highspy

        self.highspy, self.form, self.record = highspy, form, record
        rank, m = form.factor.shape
        self.z, self.e = m + np.arange(rank), m + rank + np.arange(rank)
        # A square: its epigraph, its argument, and the binary that scales it (−1: none).
        squares = [(e, z, -1) for e, z in zip(self.e, self.z, strict=True)] + list(form.cones)
        self.square = np.array(squares, dtype=np.int64).reshape(-1, 3)
        self.solver = highspy.Highs()
        self.solver.silent()
        self.solver.setOptionValue("threads", 1)
        self.solver.setOptionValue("random_seed", record.control.seed % 2**31)
        self._pass_model()
        self._tangents(self._first_points(), np.ones(len(POINTS) * len(self.square), dtype=bool))

    def _pass_model(self) -> None:
        form, (rank, m) = self.form, self.form.factor.shape
        infinity = self.highspy.kHighsInf
        # Points as good as the incumbent have |z_i| ≤ 1; a perspective form moves a part of the error out of z.
        most = np.full(rank, SCALE * (1.0 + 1e-6) if not form.cones else infinity)
        lp = self.highspy.HighsLp()
        lp.num_col_, lp.num_row_ = m + 2 * rank, rank + len(form.rows)
        lp.col_cost_ = np.concatenate([SCALE**2 * form.cost, np.zeros(rank), np.ones(rank)])
        lp.col_lower_ = np.concatenate([form.low, -most, np.zeros(rank)])
        lp.col_upper_ = np.concatenate([form.high, most, np.minimum(most**2, infinity)])
        lp.offset_ = SCALE**2 * form.constant
        rows = scipy.sparse.lil_matrix((lp.num_row_, lp.num_col_))
        rows[:rank, :m], rows[:rank, self.z] = SCALE * form.factor, -np.eye(rank)
        for i, row in enumerate(form.rows):
            rows[rank + i, row.index] = row.coefficients
        matrix = rows.tocsc()
        lp.row_lower_ = np.concatenate([SCALE * form.offset, [max(r.low, -infinity) for r in form.rows]])
        lp.row_upper_ = np.concatenate([SCALE * form.offset, [min(r.high, infinity) for r in form.rows]])
        lp.a_matrix_.format_ = self.highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        if self.solver.passModel(lp) == self.highspy.HighsStatus.kError:
            raise RuntimeError("HiGHS refused the model")

    def _first_points(self) -> Float:
        """Where squares get their first tangents, one row for each of `POINTS`."""
        _, x, _ = self.square.T
        low = np.concatenate([self.form.low, np.full(2 * len(self.z), -SCALE)])[x]
        high = np.concatenate([self.form.high, np.full(2 * len(self.z), SCALE)])[x]
        return np.array([np.where(p < 0, -p * low, p * high) for p in POINTS])

    def _tangents(self, points: Float, needed: Any) -> None:
        """Add e ≥ 2ax − a² (or a²y) for the points a that are needed."""
        e, x, y = np.tile(self.square, (len(points), 1))[needed].T
        a = np.ravel(points)[needed]
        plain = y < 0
        low = np.where(plain, -(a**2), 0.0)
        index = np.stack([e, x, np.maximum(y, 0)], axis=1)
        value = np.stack([np.ones_like(a), -2.0 * a, a**2], axis=1)
        keep = np.ones_like(index, dtype=bool)
        keep[plain, 2] = False
        keep[a == 0.0, 1:] = False
        begin = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])[:-1]
        self.solver.addRows(
            len(a), low, np.full(len(a), self.highspy.kHighsInf), int(keep.sum()),
            begin.astype(np.int32), index[keep].astype(np.int32), value[keep],
        )  # fmt: skip

    def _cut(self, columns: Float) -> int:
        """Tangents at the squares that a point misses; returns their number."""
        a, scale = self._touch(columns)
        e, x, _ = self.square.T
        missed = 2 * a * columns[x] - a**2 * scale - columns[e] > VIOLATION
        if np.any(missed):
            self._tangents(a[None], missed)
        return int(np.count_nonzero(missed))

    def _touch_exactly(self, u: Float) -> None:
        """Tangents at the best point of some integers: then these integers are never too cheap again."""
        a, _ = self._touch(self._complete(u))
        self._tangents(a[None], np.ones(len(a), dtype=bool))

    def _touch(self, columns: Float) -> tuple[Float, Float]:
        """Where the tangents of a point touch, and the binaries that scale the squares."""
        _, x, y = self.square.T
        scale = np.where(y < 0, 1.0, columns[np.maximum(y, 0)])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(scale > 1e-6, columns[x] / scale, 0.0), scale

    def _complete(self, u: Float) -> Float:
        """All columns at a point of the form."""
        z = SCALE * (self.form.factor @ u - self.form.offset)
        return np.concatenate([u, z, z**2])

    def _solve(self) -> tuple[Float | None, bool]:
        """Run HiGHS: its point, if it has a valid one, and whether it finished."""
        control = self.record.control
        self.solver.setOptionValue("time_limit", self.solver.getRunTime() + max(control.remaining(), 0.0))
        # The values are looked at only under these statuses: after an error they are zeros.
        if self.solver.run() == self.highspy.HighsStatus.kError:
            raise RuntimeError("HiGHS ended with an error")
        status, names = self.solver.getModelStatus(), self.highspy.HighsModelStatus
        if status not in (names.kOptimal, names.kTimeLimit, names.kInterrupt):
            raise RuntimeError(f"HiGHS ended with the status {self.solver.modelStatusToString(status)}")
        solution = self.solver.getSolution()
        valid = solution.value_valid and self.solver.getInfo().primal_solution_status == int(
            self.highspy.SolutionStatus.kSolutionStatusFeasible
        )
        columns = np.array(solution.col_value) if valid else None
        return columns, status == names.kOptimal

    def _relax(self) -> None:
        """Tangents at the points of the linear relaxation."""
        last = -np.inf
        for _ in range(LINEAR_ROUNDS):
            columns, finished = self._solve()
            if columns is None or not finished:
                return
            value = self.solver.getInfo().objective_function_value / SCALE**2
            self.record.bound(value)
            if not self._cut(columns) or value - last < LINEAR_GAIN * self.record.upper:
                return
            last = value

    def _watch(self, event: Any) -> None:
        self.record.bound(event.data_out.mip_dual_bound / SCALE**2)
        if self.record.control.remaining() <= 0:
            event.interrupt()

    def _warm_start(self, u: Float) -> None:
        point = self.highspy.HighsSolution()
        point.col_value = list(self._complete(u))
        self.solver.setSolution(point)

    def run(self) -> RawSolve:
        """Relax, then alternate between integer solutions and tangents."""
        form, record, control = self.form, self.record, self.record.control
        self._relax()
        kinds = self.highspy.HighsVarType
        for j in np.flatnonzero(form.integer):
            self.solver.changeColIntegrality(int(j), kinds.kInteger)
        self.solver.cbMipInterrupt += self._watch
        self._touch_exactly(form.start)
        while control.remaining() > 0 and not record.closed:
            gap = max((record.upper - record.lower) / record.upper, 0.0) if np.isfinite(record.lower) else 1.0
            self.solver.setOptionValue("mip_rel_gap", max(LOOSENESS * min(gap, 1.0), 0.1 * SOLVER_GAP))
            self.solver.setOptionValue("mip_abs_gap", 0.0)
            self._warm_start(form.encode(record.weights))
            columns, finished = self._solve()
            info = self.solver.getInfo()
            record.nodes += max(int(info.mip_node_count), 0)
            before = record.lower
            record.bound(info.mip_dual_bound / SCALE**2)
            if columns is None:
                break
            record.solution(form, columns[: form.size])
            self._touch_exactly(form.encode(form.decode(columns[: form.size])))
            stalled = not self._cut(columns) or record.lower <= before + SOLVER_GAP * record.upper
            if stalled and finished and gap < STALLED:
                # What remains is within the solver's tolerances.
                return record.finish(Status.OPTIMAL)
        if record.closed:
            return record.finish(Status.OPTIMAL if control.gap == 0.0 else Status.GAP_REACHED)
        return record.finish(Status.TIME_LIMIT)
