"""Filter pruning: whole output channels, with a metric of the outputs or without."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.filters import FilterProblem
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import pruning_problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.filters.channel_choice import search_filters


class FilterFamily:
    """At most so many rows are other than zero."""

    allowed = KeptRows
    requirements = frozenset({"filter pruning with refit", "filter pruning masks"})

    def prepare(self, problem: FilterProblem, group: int, jobs: int) -> Any:
        """Nothing: a group is one task."""
        return None

    def solve(self, task: Task[KeptRows], control: Control) -> RawSolve:
        """Sorting, or branch and bound of one group."""
        return search_filters(task, control)

    def root_dual(self, task: Task[KeptRows], weights: Float | None, seconds: float) -> Dual | None:
        """The dual point of a search without nodes."""
        control = Control(seconds, 0.0, 0, 0, 1, threading.Event())
        return search_filters(replace(task, warm_start=weights), control).dual

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Half of the output channels, with refit and without, with a metric and without."""
        rows = layer.out_features
        metric = np.eye(rows) + 0.5 / rows
        for refit in (True, False):
            word = "refit" if refit else "mask"
            yield (
                f"{(rows + 1) // 2} filters, {word}",
                pruning_problem(layer, k=(rows + 1) // 2, pattern="filter", refit=refit),
            )
            if not np.any(layer.constant > 0.0) and layer.groups == 1:
                yield (
                    f"{rows // 2} filters, {word}, metric",
                    pruning_problem(layer, k=rows // 2, pattern="filter", refit=refit, output_metric=metric),
                )


FAMILY: Family = FilterFamily()
