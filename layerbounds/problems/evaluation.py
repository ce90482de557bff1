"""The error of anybody's weights, and whether they are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arrays import Bool, Float, Int
from layerbounds.problems.problem import Problem, as_problem, check_channels


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Error and feasibility of given weights.

    Attributes
    ----------
    error : ndarray of shape (channels,)
        f, the mean squared output error per calibration position.
    relative_error : ndarray of shape (channels,)
        f / f(0); NaN where f(0) = 0.
    feasible : ndarray of bool, shape (channels,)
        Whether every weight is allowed exactly.
    violation : ndarray of shape (channels,)
        How far the weights are from being allowed; see the problem's ``violation``.
    off_grid : ndarray of int64, shape (channels,)
        Quantization: how many weights are not exactly a level.
    steps : ndarray of shape (channels,)
        Quantization: the largest distance to a level in units of the gap between the levels around.
    """

    error: Float
    relative_error: Float
    feasible: Bool
    violation: Float
    off_grid: Int
    steps: Float

    def describe(self) -> str:
        """One line that says whether the weights are allowed and, if not, by how much they are off."""
        if self.feasible.all():
            return "all weights are allowed"
        if self.off_grid.any():
            many = int(self.off_grid.sum())
            return (
                f"{many} weight{'' if many == 1 else 's'} off the grid, by at most {self.violation.max():.2g} "
                f"({self.steps.max():.2g} of a step)"
            )
        many = int(np.count_nonzero(~self.feasible))
        return f"{many} channel{'' if many == 1 else 's'} not allowed (violation up to {self.violation.max():.2g})"


def squared_error(gram: Float, deviation: Float) -> float:
    """The quadratic form δᵀHδ, at least 0, in float64."""
    return max(float(deviation @ (gram @ deviation)), 0.0)


def evaluate(problem: Problem, weights: ArrayLike, channels: Sequence[int] | None = None) -> Evaluation:
    """Score anybody's weights on the layer's own, undamped Gram matrix (`Problem.gram`).

    Parameters
    ----------
    problem : QuantizationProblem or PruningProblem
    weights : array_like of shape (rows, *weight.shape[1:]) or (rows, n)
        Of the chosen channels, in their order, or of all output channels.
    channels : sequence of int, optional
        The output channels to score; default: all.

    Raises
    ------
    InputError
        On weights of another shape, even if they have the right number of entries.
    """
    layer = as_problem(problem).layer
    rows = check_channels(problem, channels)
    matrix = layer.channel_weights(weights, rows, "weights")
    sets = problem.sets(rows)
    position = {channel: i for i, channel in enumerate(rows)}
    error = np.zeros(len(sets))
    for index, s in enumerate(sets):
        gram = problem.gram(s[0])
        for c in s:
            error[index] += squared_error(gram, matrix[position[c]] - layer.target[c]) + layer.constant[c]
    energy = layer.energy()
    energies = np.array([energy[s].sum() for s in sets])
    relative = np.divide(error, energies, out=np.full(len(sets), np.nan), where=energies > 0)
    violation = problem.violation(matrix, rows)
    off_grid, steps = problem.off_grid(matrix, rows)
    return Evaluation(error, relative, violation == 0.0, violation, off_grid, steps)
