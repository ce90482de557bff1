"""One channel in grid units: weight i is ``scale_i · (x_i − zero_i)``, and x_i takes the values of a code table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.search.quantization.cut_tests import CutPreparation, prepare_cuts
from layerbounds.search.quantization.preparation import Preparation


@dataclass(frozen=True, eq=False)
class UnitProblem:
    """A channel and its preparation, both in grid units and in the order of the search.

    Where all scales are equal the arrays of the preparation are used as they are and the objective is measured in
    units of scale²; otherwise they are rescaled by the ratio of each scale to the geometric mean.

    Attributes
    ----------
    multiplier : float
        Objective in the units of the Gram matrix / objective here.
    origin : ndarray of shape (n,)
        Target x₀.
    levels : ndarray of shape (levels, n)
    count : ndarray of int64, shape (n,)
        How many levels a variable has; the table repeats the last one.
    low, high : ndarray of shape (n,)
    uniform : bool
        Levels are 0, 1, …, high.
    rounding : ndarray of shape (n,)
        How far levels are from ``scale · (x − zero_point)``, in units of x.
    cuts : CutPreparation or None
        For uniform grids with one scale.
    shared_forms : bool
        Whether the integer forms of the layer serve this channel.
    """

    prep: Preparation
    multiplier: float
    gram: Float
    pivots: Float
    shifts: Float
    minorants: Float
    covariance: Float
    covariances: Float
    origin: Float
    levels: Float
    count: Int
    low: Float
    high: Float
    uniform: bool
    code_offset: float
    scale: Float
    zero_point: Float
    rounding: Float
    cuts: CutPreparation | None
    shared_forms: bool

    @property
    def size(self) -> int:
        """Number of variables."""
        return len(self.origin)

    def weights_of(self, points: Float) -> Float:
        """Real weights, in the layer's order, of a point in grid units."""
        result = np.empty(self.size)
        result[self.prep.order] = self.scale * (points + self.code_offset - self.zero_point)
        return result

    def point_of(self, weights: Float) -> Float:
        """The point in grid units of real weights in the layer's order."""
        return np.asarray(weights[self.prep.order] / self.scale + self.zero_point - self.code_offset)

    def diagonal_of(self, d: Float) -> Float:
        """A diagonal in the units and the order of the layer, in those used here."""
        return np.asarray(d[self.prep.order] * self.scale**2 / self.multiplier)


def has_shared_forms(uniform: bool, levels: int, scale: Float) -> bool:
    """Whether split cuts of the Gram matrix serve a channel as they are: one scale, more than two levels.

    Scales of zero, where there is but one code, do not count. Two levels are the ends of the box: their multipliers do
    more than any form.
    """
    size = np.abs(scale[scale != 0.0])
    return uniform and levels > 2 and bool(len(size) and np.all(size == size[0]))


def make_units(task: Task[Levels], prep: Preparation) -> UnitProblem:
    """Translate a channel into grid units."""
    order = prep.order
    scale, zero = task.allowed.scale[order], task.allowed.zero_point[order]
    offset = float(task.allowed.codes[0, 0]) if task.allowed.uniform else 0.0
    levels = np.ascontiguousarray((task.allowed.codes[order] - offset).T)
    shared_forms = has_shared_forms(task.allowed.uniform, len(levels), scale)
    if np.all(scale == scale[0]):
        multiplier = float(scale[0] ** 2)
        cuts = prepare_cuts(prep) if shared_forms else None
        matrices = (prep.gram, prep.pivots, prep.shifts, prep.minorants, prep.covariance, prep.covariances)
    else:
        cuts = None
        mean = float(np.exp(np.mean(np.log(scale))))
        multiplier = mean**2
        r = scale / mean
        outer = np.outer(r, r)
        matrices = (
            prep.gram * outer,
            prep.pivots * r**2,
            prep.shifts * np.outer(r, 1.0 / r),
            # Rounding must not lift the diagonal above the Gram matrix.
            prep.minorants * r**2 * (1.0 - 64 * UNIT),
            prep.covariance / outer,
            prep.covariances / outer,
        )
    return UnitProblem(
        prep=prep,
        multiplier=multiplier,
        gram=matrices[0],
        pivots=matrices[1],
        shifts=matrices[2],
        minorants=matrices[3],
        covariance=matrices[4],
        covariances=matrices[5],
        origin=task.target[order] / scale + zero - offset,
        levels=levels,
        count=task.allowed.count[order],
        low=levels[0].copy(),
        high=levels[-1].copy(),
        uniform=task.allowed.uniform,
        code_offset=offset,
        scale=scale,
        zero_point=zero,
        rounding=task.allowed.rounding[order],
        cuts=cuts,
        shared_forms=shared_forms,
    )
