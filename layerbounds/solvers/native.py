"""The package's own branch and bound."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numba
import numpy as np

from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.search.families import families, family_of
from layerbounds.solvers.base import Availability, Capability, Option


class NativeBackend:
    """The searches of `layerbounds.search`, one for each family of allowed sets."""

    name = "native"
    options: Mapping[str, Option] = MappingProxyType({})
    concurrent = True

    @property
    def capabilities(self) -> frozenset[str]:
        """What the families require, and everything that a backend can honour."""
        honoured = {
            Capability.WARM_START,
            Capability.NODE_LIMIT,
            Capability.TRACE,
            Capability.OPTIMALITY,
            Capability.SINGULAR,
        }
        return frozenset(honoured).union(*(family.requirements for family in families().values()))

    def availability(self) -> Availability:
        """Always there."""
        return Availability(True, f"numba {numba.__version__}")

    def prepare(self, problem: Problem, group: int, jobs: int) -> Any:
        """What the family of the problem prepares."""
        first = problem.layer.group_rows()[group].start
        return family_of(problem.allowed(first)).prepare(problem, group, jobs)

    def solve(self, task: Task[AllowedSet], control: Control) -> RawSolve:
        """Branch and bound of one task."""
        if len(task.gram) == 0:
            return RawSolve(weights=task.target.copy(), termination=Status.OPTIMAL)
        try:
            return family_of(task.allowed).solve(task, control)
        except (np.linalg.LinAlgError, ArithmeticError) as error:
            # What a search cannot compute is no reason to lose the other channels.
            note = f"the search ended early: its arithmetic broke down ({error})"
            return RawSolve(task.warm_start, Status.UNRESOLVED, notes=(note,))
