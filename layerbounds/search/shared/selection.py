"""The choice of units that several rows share, as the search sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.objective import entry_sizes
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.patterns import Structure
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.search.frontier import Incumbent
from layerbounds.search.pruning.refit import refit

#: HWᵀ is computed in extended precision up to so many multiplications.
EXTENDED_WORK = 2e8


@dataclass(eq=False)
class Selection:
    """Choose units S for the least Σ_r f_r(0) − tr(B_SᵀH_SS⁻¹B_S), B = HWᵀ: what depends on W does so through WᵀW.

    Rows are replaced by fewer ones with nearly the same WᵀW where they are more than the inputs, and multiplied with a
    power of two that brings their energy near 1.

    Attributes
    ----------
    task : Task
    gram : ndarray of shape (n, n)
    rows : ndarray of shape (rows, n)
        W of the search.
    b : ndarray of shape (n, rows)
        H Wᵀ, from extended precision, or from double precision where that would take seconds.
    energy : float
        Σ f_r(0) of the task's own rows, in the units of the search.
    rounding : float
        How far the savings of any S that are computed exactly from ``gram`` and ``b`` can be from those of the task,
        and ``energy`` from its own (docs/shared-bounds.md).
    factor : float
        Weights of the search are weights of the task times this.
    structure : Structure
    members : list of ndarray of int64
        The inputs of each unit.
    incumbent : Incumbent
        Value in the units of the search; weights, shape (rows of the task, n), in those of the task.
    precision : float
        Unit of the arithmetic that ``b`` and ``energy`` come from.
    """

    task: Task[SharedSupport]
    gram: Float
    rows: Float
    b: Float
    energy: float
    rounding: float
    factor: float
    structure: Structure
    members: list[Int]
    incumbent: Incumbent
    precision: float

    @property
    def unit(self) -> float:
        """What a value of the search is in those of the task: a power of two."""
        return 1.0 / self.factor**2

    def offer(self, kept: Bool) -> float:
        """Refit a choice of units, shape (units,), and keep it where it is the best so far; returns its error."""
        task = self.task
        inputs = np.flatnonzero(kept[self.structure.unit])
        weights = np.zeros(task.targets.shape)
        if len(inputs) == len(self.gram):
            weights = task.targets.copy()
        elif len(inputs):
            weights[:, inputs] = refit(task.gram, task.gram @ task.targets.T, inputs).T
        deviation = (weights - task.targets) * self.factor
        value = max(float(np.sum((deviation @ task.gram) * deviation)), 0.0)
        self.incumbent.offer(value, weights)
        return value

    @property
    def best(self) -> Float:
        """The best weights so far in the shape of the task's target."""
        return self.incumbent.weights.reshape(self.task.target.shape)


def make_selection(task: Task[SharedSupport]) -> Selection:
    """What a task is for the search."""
    gram, targets = np.ascontiguousarray(task.gram), task.targets
    n, many = len(gram), len(targets)
    real = np.longdouble if gram.size * many <= EXTENDED_WORK else np.float64
    wide: Any = gram.astype(real)
    product = wide @ targets.T.astype(real)
    energy = max(float(np.sum(targets.T * product)), 0.0)
    exponent = -math.frexp(energy)[1] // 2 if energy > 0 else 0
    factor = math.ldexp(1.0, exponent)
    rows = targets * factor
    norm = entry_sizes(gram)
    size = float(np.sum((np.abs(rows) @ norm) ** 2))
    precision = float(np.finfo(real).eps)
    rounding = 4.0 * (n + many + 16) * precision * size
    if many > n:
        original: Any = rows.astype(real)
        (rows,) = scipy.linalg.qr(rows, mode="r", check_finite=False)
        rows = np.ascontiguousarray(rows[:n])
        product = wide @ rows.T.astype(real)
        # The savings of S are tr(P_S(WᵀW)) with 0 ⪯ P_S ⪯ H, so that |(P_S)_ij| ≤ ν_i ν_j: what RᵀR − WᵀW and its own
        # rounding can change of them.
        off = np.abs(rows.T.astype(real) @ rows.astype(real) - original.T @ original).astype(np.float64)
        column = float(norm @ np.sqrt(np.sum(rows**2, axis=0)))
        rounding += 1.01 * float(norm @ off @ norm) + 8.0 * (n + many + 16) * precision * column**2
        rounding += 4.0 * n * UNIT * size
    else:
        product = product * factor
    structure = task.allowed.structure
    members = [np.flatnonzero(structure.unit == g) for g in range(len(structure.group))]
    incumbent = Incumbent(energy * factor**2, np.zeros(targets.shape))
    return Selection(
        task,
        gram,
        rows,
        product.astype(np.float64),
        energy * factor**2,
        rounding,
        factor,
        structure,
        members,
        incumbent,
        precision,
    )
