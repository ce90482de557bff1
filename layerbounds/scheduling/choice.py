"""The choice behind ``backend="auto"``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerbounds.names import match_name
from layerbounds.problems.problem import Problem
from layerbounds.solvers.registry import get_backend, names

AUTO, NATIVE, BATCHED = "auto", "native", "batched"
#: Up to so many live inputs a search of one channel after the other is worth its preparation.
NATIVE_INPUTS = 1024


def choose(backend: str, problem: Problem, sets: Sequence[list[int]], node_limit: int | None) -> str:
    """The backend that a name stands for: ``auto`` is one or another, any other name itself.

    Raises
    ------
    UnknownNameError
        If there is no such backend.
    """
    name = match_name(backend, [AUTO, *names()], "backend")
    if name != AUTO:
        return name
    return BATCHED if node_limit is None and _is_batched(problem, sets) else NATIVE


def _is_batched(problem: Problem, sets: Sequence[list[int]]) -> bool:
    """Whether a problem is too large for the searches, and one that the batched backend treats."""
    layer = problem.layer
    if layer.in_features <= NATIVE_INPUTS or any(len(s) > 1 for s in sets):
        return False
    groups = sorted({layer.group_of(s[0]) for s in sets})
    live = max(int(np.count_nonzero(layer.live(group))) for group in groups)
    return live > NATIVE_INPUTS and problem.requirement in get_backend(BATCHED).capabilities
