"""The numbers of a row as the kernels want them, near 1 in size, with the rounding of each."""

from __future__ import annotations

import math

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import UNIT, gamma
from layerbounds.problems.tasks import Task
from layerbounds.search.tiles.preparation import GramData


class RowData:
    """H w, wᵀHw and their rounding, in units in which the energy is near 1 (docs/pruning-bounds.md, *Rounding*).

    Attributes
    ----------
    factor : float
        A power of two: weights of the search are weights of the task times this.
    target, b : ndarray of shape (n,)
        w and H w.
    energy, low_energy : float
        wᵀHw, and what it is at least.
    reach : float
        The Σ √h_jj |u_j| that accounts for the error of b.
    """

    def __init__(self, task: Task, data: GramData) -> None:  # type: ignore[type-arg]
        target = task.target.astype(np.longdouble)
        product = task.gram.astype(np.longdouble) @ target
        energy = max(float(target @ product), 0.0)
        exponent = -math.frexp(energy)[1] // 2 if energy > 0 else 0
        self.data, self.size = data, len(target)
        self.factor = math.ldexp(1.0, exponent)
        self.target = task.target * self.factor
        self.b = product.astype(np.float64) * self.factor
        self.energy = energy * self.factor**2
        extended = float(np.finfo(np.longdouble).eps)
        size = float(data.norm @ np.abs(self.target))
        self.reach = 2.0 * extended / UNIT * size
        self.low_energy = self.energy - 2.0 * (self.size + 8) * extended * size**2

    @property
    def layer(self) -> tuple[Float, Float, Float, float, float]:
        """What the kernels call so."""
        return self.data.gram, self.data.norm, self.b, self.low_energy, self.reach

    def saving_error(self, size: int) -> float:
        """How far the computed saving of a set of so many inputs can lie below the exact one (docs/numerics.md)."""
        smallest = self.data.smallest
        if smallest <= 0.0:
            return math.inf
        loss = 5.0 * (size + 1) * gamma(3 * size + 16) * float(np.max(np.diag(self.data.gram))) / smallest
        error = 4.0 * (self.size + 16) * UNIT * (self.data.norm * self.reach + np.abs(self.b))
        eta = math.sqrt(float(error @ error) / smallest)
        return 2.0 * loss * self.energy + 2.0 * math.sqrt(self.energy) * eta + eta * eta if loss < 1e-3 else math.inf
