"""A backend that returns the allowed weights nearest to the target, and a dual point without curvature."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, DualPoint, RawSolve, Status
from layerbounds.solvers.base import Availability, Capability, Option


class ToyBackend:
    """Rounding."""

    name = "toy"
    capabilities: frozenset[str] = frozenset({Capability.UNIFORM})
    options: Mapping[str, Option] = MappingProxyType({})
    concurrent = True

    def availability(self) -> Availability:
        """Always there."""
        return Availability(True, "1")

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        """Nothing is shared."""

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Round."""
        dual = DualPoint(task.target.copy(), np.zeros(len(task.gram)))
        return RawSolve(task.allowed.nearest(task.target), Status.RELAXED, dual=dual)
