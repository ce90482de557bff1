"""Native searches by family: one for each kind of allowed set.

A family's folder in `layerbounds.search` has a module ``family`` with its `Family` as ``FAMILY``; adding one touches no
other file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, Protocol

import layerbounds.search as folders
from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve


class Family(Protocol):
    """The package's own branch and bound for one kind of allowed set."""

    @property
    def allowed(self) -> type[AllowedSet]:
        """The allowed set that it treats."""

    @property
    def requirements(self) -> frozenset[str]:
        """What its problems require of a backend."""

    def prepare(self, problem: Any, group: int, jobs: int) -> Any:
        """Compile, and do the work that all channels of a group share; passed back as ``task.shared``."""

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Solve a task of at least one live input."""

    def root_dual(self, task: Task[Any], weights: Float | None, seconds: float) -> Dual | None:
        """A dual point of the root without any search, for what a foreign solver worked on.

        Parameters
        ----------
        task : Task
        weights : ndarray or None
            Allowed weights, where there are some.
        seconds : float
            Time for improving the dual point; the first one is always finished.
        """

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Small problems of all kinds of the family with their names: what every backend is tested with."""


@functools.cache
def families() -> dict[type[AllowedSet], Family]:
    """All families, by their allowed sets."""
    found: dict[type[AllowedSet], Family] = {}
    for folder in pkgutil.iter_modules(folders.__path__):
        if folder.ispkg:
            family: Family = importlib.import_module(f"{folders.__name__}.{folder.name}.family").FAMILY
            found[family.allowed] = family
    return found


def family_of(allowed: AllowedSet) -> Family:
    """The family of an allowed set."""
    return families()[type(allowed)]


def root_dual(task: Task[AllowedSet], weights: Float | None, seconds: float) -> Dual | None:
    """What `Family.root_dual` finds for a task; None where there is nothing to bound."""
    return family_of(task.allowed).root_dual(task, weights, seconds) if len(task.gram) else None
