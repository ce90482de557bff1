"""Choices of units for several rows in exact arithmetic, for Gram matrices that rounding makes ambiguous."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control
from layerbounds.search.pruning.exact_sets import ExactSets


class ExactChoices:
    """The least errors of choices of units, as fractions in the units of the task.

    Parameters
    ----------
    task : Task
    control : Control
    """

    def __init__(self, task: Task[SharedSupport], control: Control) -> None:
        self.task = task
        self.rows = [ExactSets(_row_of(task, r), control) for r in range(len(task.rows))]

    def error(self, kept: Bool) -> Fraction:
        """Of a choice, flags of the units: the sum over the rows."""
        inputs = np.flatnonzero(kept[self.task.allowed.structure.unit]).tolist()
        return sum((row.error_on(inputs) for row in self.rows), Fraction(0))

    def weights(self, kept: Bool) -> Float:
        """Refitted weights on a choice, rounded as well as may be, shape (rows, n)."""
        inputs = tuple(np.flatnonzero(kept[self.task.allowed.structure.unit]).tolist())
        for row in self.rows:
            row.best = Fraction(0), inputs
        return np.array([row.weights() for row in self.rows])


def _row_of(task: Task[SharedSupport], r: int) -> Task[Support]:
    """One row of the task on its own."""
    return Task(
        rows=(task.rows[r],), gram=task.gram, targets=task.targets[r : r + 1], constants=task.constants[r : r + 1],
        energy=task.energy, live=task.live,
        allowed=Support(task.allowed.structure, task.allowed.original[r], True), raised=task.raised,
    )  # fmt: skip
