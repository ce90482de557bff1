"""Free codebooks: a dual point from one-dimensional k-means, local search, and every division of few inputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.free_codebook import FreeCodebookProblem, FreeLevels
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.free_codebook.channel_search import codebook_dual, search_codebook
from layerbounds.search.free_codebook.preparation import Preparation, prepare_group


class FreeCodebookFamily:
    """At most so many different values in each channel."""

    allowed = FreeLevels
    requirements = frozenset({"free codebooks"})

    def prepare(self, problem: FreeCodebookProblem, group: int, jobs: int) -> Preparation | None:
        """A minorant and a factorization."""
        live = problem.layer.live(group)
        if not live.any():
            return None
        return prepare_group(problem.gram(problem.layer.group_rows()[group].start)[np.ix_(live, live)])

    def solve(self, task: Task[FreeLevels], control: Control) -> RawSolve:
        """The interval of one channel."""
        return search_codebook(task, control)

    def root_dual(self, task: Task[FreeLevels], weights: Float | None, seconds: float) -> Dual | None:
        """A point and a diagonal."""
        control = Control(seconds, 0.0, None, 0, 1, threading.Event())
        start = task.shared if isinstance(task.shared, Preparation) else prepare_group(task.gram)
        return codebook_dual(task, start, control)

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Fewer levels than inputs, and more."""
        for bits in (1, 2, 3):
            yield f"{bits}-bit free codebook", FreeCodebookProblem(layer, 2**bits)


FAMILY: Family = FreeCodebookFamily()
