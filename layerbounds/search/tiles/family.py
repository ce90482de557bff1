"""Tiled pruning: rows whose masks limit one another, by prices on what they keep."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import PruningProblem, pruning_problem
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.tiles.preparation import GramData, prepare_gram
from layerbounds.search.tiles.search import search_tiles


class TiledFamily:
    """The nonzero weights of each row fit N:M, and those of bands of rows fit limits."""

    allowed = TiledSupport
    requirements = frozenset({"tiled pruning with refit", "tiled pruning masks"})

    def prepare(self, problem: PruningProblem, group: int, jobs: int) -> GramData | None:
        """A diagonal below the Gram matrix, for all bands."""
        if not problem.refit:
            return None
        live = problem.layer.live(group)
        first = problem.layer.group_rows()[group].start
        return prepare_gram(problem.gram(first)[np.ix_(live, live)])

    def solve(self, task: Task[TiledSupport], control: Control) -> RawSolve:
        """The interval of one band."""
        return search_tiles(task, control)

    def root_dual(self, task: Task[TiledSupport], weights: Float | None, seconds: float) -> Dual | None:
        """The dual point of a search without nodes."""
        control = Control(seconds, 0.0, 0, 0, 1, threading.Event())
        return search_tiles(replace(task, warm_start=weights), control).dual

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Transposable and V:N:M, with refit and without."""
        for refit in (True, False):
            word = "refit" if refit else "mask"
            yield f"transposable 1:2, {word}", pruning_problem(layer, pattern="transposable:1:2", refit=refit)
            yield f"2:1:5, {word}", pruning_problem(layer, pattern="venom:2:1:5", refit=refit)


FAMILY: Family = TiledFamily()
