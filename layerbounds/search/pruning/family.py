"""Pruning: best-first search over sparsity masks, with diagonal, block and cluster duals."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.clusters import ClusterMinorant
from layerbounds.layers.layer import Layer
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import PruningProblem, pruning_problem
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.pruning.dispatch import WIDE, search_pruning
from layerbounds.search.pruning.preparation import prepare_pruning
from layerbounds.search.pruning.wide import WidePreparation, prepare_wide, search_wide


class PruningFamily:
    """The nonzero weights fit a sparsity structure."""

    allowed = Support
    requirements = frozenset({"pruning with refit", "pruning masks"})

    def prepare(self, problem: PruningProblem, group: int, jobs: int) -> ClusterMinorant | WidePreparation | None:
        """A minorant from which the searches of a group's channels start, where that pays."""
        return prepare_pruning(problem, group)

    def solve(self, task: Task[Support], control: Control) -> RawSolve:
        """Branch and bound of one channel."""
        return search_pruning(task, control)

    def root_dual(self, task: Task[Support], weights: Float | None, seconds: float) -> Dual | None:
        """The dual point of a search without nodes; allowed weights spare it a local search."""
        if len(task.target) > WIDE and task.allowed.refit:
            control = Control(seconds, 0.0, None, 0, 1, threading.Event())
            start = prepare_wide(task.gram, task.allowed.structure.unit)
            return None if start is None else search_wide(replace(task, warm_start=weights), control, start).dual
        control = Control(seconds, 0.0, 0, 0, 1, threading.Event())
        return search_pruning(replace(task, warm_start=weights), control).dual

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """All kinds of patterns, with refit and without."""
        k = layer.in_features // 2
        for refit in (True, False):
            word = "refit" if refit else "mask"
            yield f"{k} kept, {word}", pruning_problem(layer, k=k, refit=refit)
            yield f"1:2, {word}", pruning_problem(layer, pattern="1:2", refit=refit)
            yield f"blocks of 2, {word}", pruning_problem(layer, k=k, pattern="block:2", refit=refit)


FAMILY: Family = PruningFamily()
