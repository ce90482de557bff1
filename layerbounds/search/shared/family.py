"""Masks that several rows share: best-first search over units, with enumeration."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import joblib

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.centre import Centre
from layerbounds.layers.layer import Layer
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import PruningProblem, pruning_problem
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.shared.root import prepare_root
from layerbounds.search.shared.set_search import search_shared
from layerbounds.search.shared_results import Recent

_CACHE_SIZE = 8
_cache: Recent[Centre | None] = Recent(_CACHE_SIZE)


class SharedFamily:
    """The nonzero weights of several rows fit one mask."""

    allowed = SharedSupport
    requirements = frozenset({"shared pruning with refit", "shared pruning masks"})

    def prepare(self, problem: PruningProblem, group: int, jobs: int) -> Any:
        """A minorant from which the searches of all sets of rows start; they have one Gram matrix and pattern."""
        layer = problem.layer
        rows = [c for c in range(layer.out_features) if layer.group_of(c) == group]
        if not problem.refit or not rows or not layer.live(group).any():
            return None
        task: Task[SharedSupport] = make_task(problem, problem.sets(rows)[0], None, None)
        key = joblib.hash((task.gram, task.allowed.structure.unit, task.allowed.structure.group))
        # Small factorizations with several BLAS threads are many times slower than with one.
        return _cache.get(key, lambda: prepare_root(task.gram, task.allowed.structure))

    def solve(self, task: Task[SharedSupport], control: Control) -> RawSolve:
        """Branch and bound of one set of rows."""
        return search_shared(task, control)

    def root_dual(self, task: Task[SharedSupport], weights: Float | None, seconds: float) -> Dual | None:
        """The dual point of a search without nodes."""
        control = Control(seconds, 0.0, 0, 0, 1, threading.Event())
        return search_shared(replace(task, warm_start=weights), control).dual

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Units of one and of several inputs, and N:M, with refit and without."""
        k = layer.in_features // 2
        for refit in (True, False):
            word = "refit" if refit else "mask"
            yield f"{k} columns, {word}", pruning_problem(layer, k=k, pattern="column", refit=refit)
            yield f"heads of 2, {word}", pruning_problem(layer, density=0.5, pattern="head:2", refit=refit)
            yield f"1:2 in 2 rows, {word}", pruning_problem(layer, pattern="1:2", share=2, refit=refit)


FAMILY: Family = SharedFamily()
