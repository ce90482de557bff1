"""One channel of a joint problem as the search sees it: levels with zero among them, and an energy near 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.objective import objective_interval
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.tasks import Task


@dataclass(frozen=True, eq=False)
class JointUnits:
    """Minimise (v − w)ᵀH(v − w), v_i in its list, at most ``capacity`` units of each group other than zero.

    Attributes
    ----------
    gram : ndarray of shape (n, n)
        The task's own.
    target : ndarray of shape (n,)
        w, times ``factor``.
    b : ndarray of shape (n,)
        Hw, rounded once.
    energy : float
        wᵀHw, near 1.
    values : ndarray of shape (n, longest)
        Sorted levels with zero among them, each once, padded with the last one; times ``factor``.
    count, zero : ndarray of int64, shape (n,)
        How many there are, and the position of zero.
    unit : ndarray of int64, shape (n,)
        The unit of each input.
    group : ndarray of int64, shape (units,)
    capacity : ndarray of int64, shape (groups,)
    factor : float
        A power of two: weights here / weights of the task. Errors here are ``factor²`` times the task's.
    single : bool
        Whether every unit is one input (then unit i is input i).
    """

    gram: Float
    target: Float
    b: Float
    energy: float
    values: Float
    count: Int
    zero: Int
    unit: Int
    group: Int
    capacity: Int
    factor: float
    single: bool

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.b)

    def original(self, weights: Float) -> Float:
        """Weights of the task from weights here: exact, as the factor is a power of two."""
        return weights / self.factor

    def error(self, weights: Float) -> float:
        """(v − w)ᵀH(v − w) of weights here, in float64."""
        deviation = weights - self.target
        return max(float(deviation @ (self.gram @ deviation)), 0.0)

    def reached(self, weights: Float) -> float:
        """The same, rounded up as certification does: what a gap is relative to, where much of a sum cancels, too."""
        return objective_interval(self.gram, self.target, weights)[1]


def joint_units(task: Task[LevelsOnSupport]) -> JointUnits:
    """A task of at least one input in the units of the search."""
    allowed = task.allowed
    wide, target = task.gram.astype(np.longdouble), task.target.astype(np.longdouble)
    product = wide @ target
    energy = max(float(target @ product), 0.0)
    # A power of 4 brings the energy near 1 and rounds nothing.
    factor = math.ldexp(1.0, -math.frexp(energy)[1] // 2 if energy > 0 else 0)
    rows = [np.unique(row) for row in allowed.values]
    count = np.array([len(row) for row in rows], dtype=np.int64)
    longest = int(count.max())
    values = np.stack([np.concatenate([row, np.full(longest - len(row), row[-1])]) for row in rows])
    zero = np.array([int(np.flatnonzero(row == 0.0)[0]) for row in rows], dtype=np.int64)
    structure = allowed.structure
    return JointUnits(
        gram=np.ascontiguousarray(task.gram),
        target=task.target * factor,
        b=product.astype(np.float64) * factor,
        energy=energy * factor**2,
        values=np.ascontiguousarray(values * factor),
        count=count,
        zero=zero,
        unit=structure.unit,
        group=structure.group,
        capacity=structure.capacity.copy(),
        factor=factor,
        single=len(structure.group) == len(structure.unit),
    )
