"""The error of anybody's weights, and whether they are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, shown
from layerbounds.arrays import Bool, Float, Int, type_name
from layerbounds.display import Bar, Displayed, Shape, Summary, Table, outward
from layerbounds.exceptions import InputError
from layerbounds.frames import Kind, data_frame
from layerbounds.problems.float_types import FLOAT_TYPES, rounded
from layerbounds.problems.problem import Problem, as_problem, check_channels
from layerbounds.problems.rows import noun, rows_text
from layerbounds.suggestions import did_you_mean


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Displayed):
    """Error and feasibility of given weights, with one entry for each set of channels that are bound to one another.

    Attributes
    ----------
    error : ndarray of shape (sets,)
        f, the mean squared output error per calibration position.
    relative_error : ndarray of shape (sets,)
        f / f(0); NaN where f(0) = 0.
    feasible : ndarray of bool, shape (sets,)
        Whether every weight is allowed exactly.
    violation : ndarray of shape (sets,)
        How far the weights are from being allowed; see the problem's ``violation``.
    off_grid : ndarray of int64, shape (sets,)
        Quantization: how many weights are not exactly a level.
    excess : ndarray of int64, shape (sets,)
        Patterns: how many inputs, or blocks of them, are kept beyond what each group may keep.
    steps : ndarray of shape (sets,)
        Quantization: the largest distance to a level in units of the gap between the levels around.
    snapped_error : ndarray of shape (sets,)
        f of the allowed weights that these stand for: exactly s·(q − z) with the codes q that explain them, or come
        closest, and the best scales s that do; the nearest levels of a grid; the weights themselves where they are
        allowed otherwise.
    scale, zero_point : ndarray of shape (rows, scale groups), or None
        Quantization: those of the grid, or the ones that explain the weights, or come closest.
    sets : list of list of int
        The output channels of each entry.
    moved : ndarray of int64, shape (sets,)
        With ``snap``: how many weights were moved to the level that they are the rounding of.
    moved_by : ndarray of shape (sets,)
        How far, at most.

    Examples
    --------
    >>> evaluation = lb.evaluate(problem, layer.weight, channels=[0, 1])
    >>> evaluation.feasible
    array([False, False])
    >>> evaluation.off_grid
    array([9, 9])
    """

    error: Float
    relative_error: Float
    feasible: Bool
    violation: Float
    off_grid: Int
    excess: Int
    steps: Float
    snapped_error: Float
    scale: Float | None = None
    zero_point: Float | None = None
    sets: Sequence[Sequence[int]] = ()
    moved: Int = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    moved_by: Float = field(default_factory=lambda: np.zeros(0))

    def describe(self) -> str:
        """One line that says whether the weights are allowed and, if not, by how much they are off.

        Examples
        --------
        >>> lb.evaluate(problem, layer.weight, channels=[0, 1]).describe()
        '18 weights off the grid, by at most 0.3 (0.68 of a step)'
        """
        if self.moved.any():
            many = int(self.moved.sum())
            return (
                f"{self._off()}, {many} of them moved to {'a level' if many == 1 else 'levels'} by at most "
                f"{self.moved_by.max():.2g}"
            )
        return self._off()

    def to_frame(self) -> Any:
        """A table with a row for each of ``sets``.

        Returns
        -------
        pandas.DataFrame
            ``channels`` (such as ``3`` or ``0:24``) and the fields that have one number for each set.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> table = lb.evaluate(problem, layer.weight).to_frame()
        >>> table["error"].sum(), table["feasible"].any()
        (np.float64(0.0), np.False_)
        """
        kinds: dict[str, Kind] = {
            "channels": "text",
            "error": "real",
            "relative_error": "real",
            "feasible": "truth",
            "violation": "real",
            "off_grid": "whole",
            "excess": "whole",
            "steps": "real",
            "snapped_error": "real",
        }
        columns = {name: getattr(self, name) for name in kinds if name != "channels"} | {"channels": self._names}
        return data_frame(kinds, [{name: columns[name][i] for name in kinds} for i in range(len(self.error))])

    @property
    def _names(self) -> list[str]:
        return [rows_text(rows) for rows in self.sets]

    def _summary(self) -> Summary:
        count = len(self.error)
        facts = [f"{count} {noun(self.sets, count)}", f"error {outward.rounded(float(self.error.sum()), True)}"]
        return Summary(self.describe(), facts)

    def _tables(self) -> list[Table]:
        rows: list[list[str | Bar | None]] = []
        for i, name in enumerate(self._names):
            relative = float(self.relative_error[i])
            error = outward.rounded(relative, True, 4, 2)
            allowed = "yes" if self.feasible[i] else "no"
            rows.append([name, error, Bar(relative, relative, f"{name}: {error} %"), allowed, str(self.off_grid[i])])
        kinds: dict[str, Shape] = {"channels": "text", "error, % of f(0)": "number", "error": "bar", "allowed": "text"}
        return [Table({**kinds, "off the grid": "number"}, rows, unit="%")]

    def _off(self) -> str:
        if self.feasible.all():
            return "all weights are allowed"
        if self.off_grid.any():
            many, kept = int(self.off_grid.sum()), int(self.excess.sum())
            return (
                f"{many} weight{'' if many == 1 else 's'} off the grid, by at most "
                f"{(self.violation - self.excess).max():.2g} ({self.steps.max():.2g} of a step)"
                + (f", and {kept} kept beyond the pattern" if kept else "")
            )
        many = int(np.count_nonzero(~self.feasible))
        return f"{many} {noun(self.sets, many)} not allowed (violation up to {self.violation.max():.2g})"


def squared_error(gram: Float, deviation: Float) -> float:
    """The quadratic form δᵀHδ, at least 0, in float64; summed over the rows of a deviation of shape (rows, n)."""
    return max(float(np.vdot(deviation, (gram @ deviation.T).T)), 0.0)


def evaluate(
    problem: Problem,
    weights: ArrayLike,
    channels: Sequence[int] | None = None,
    *,
    dtype: object = None,
    snap: bool = False,
) -> Evaluation:
    """Score anybody's weights on the layer's own, undamped Gram matrix (`Problem.gram`).

    Parameters
    ----------
    problem : Problem
    weights : array_like of shape (rows, *weight.shape[1:]) or (rows, n)
        Of the chosen channels, in their order, or of all output channels.
    channels : sequence of int, optional
        The output channels to score; default: all.
    dtype : {"float64", "float32", "bfloat16", "float16"}, optional
        The type to which levels were rounded once, for free scales and ``snap``; default: that of the array or tensor.
    snap : bool
        Whether weights that are the rounding of a level, to half a unit in the last place of their type, count as that
        level (docs/grids.md). All entries are then about the weights so moved; others are off the grid as without it.

    Raises
    ------
    InputError
        On weights of another shape, even if they have the right number of entries, or that are no numbers of the type.

    Examples
    --------
    >>> rounded = problem.grid.nearest(layer.matrix)
    >>> evaluation = lb.evaluate(problem, rounded)
    >>> bool(evaluation.feasible.all())
    True
    """
    layer = as_problem(problem).layer
    rows = check_channels(problem, channels)
    kind = float_type(weights, dtype)
    matrix = layer.channel_weights(weights, rows, "weights")
    if dtype is not None:
        _check_type(matrix, kind)
    sets = problem.sets(rows)
    given = matrix
    if flag(snap, "snap"):
        # What is moved is exact: nothing is left to be explained by rounding.
        matrix = problem.unrounded(matrix, rows, kind)
    moved = np.abs(matrix - given)
    problem = problem.rounded_to("float64" if np.any(moved) else kind)
    position = {channel: i for i, channel in enumerate(rows)}
    by_set = [moved[[position[c] for c in s]] for s in sets]
    error = _errors(problem, matrix, rows)
    energy = problem.energy()
    energies = np.array([energy[s].sum() for s in sets])
    relative = np.divide(error, energies, out=np.full(len(sets), np.nan), where=energies > 0)
    judged = problem.judged(matrix, rows)
    return Evaluation(
        error=error,
        relative_error=relative,
        feasible=judged.violation == 0.0,
        violation=judged.violation,
        off_grid=judged.off_grid,
        excess=problem.excess(matrix, rows),
        steps=judged.steps,
        snapped_error=_errors(problem, judged.snapped, rows),
        scale=judged.scale,
        zero_point=judged.zero_point,
        sets=sets,
        moved=np.array([np.count_nonzero(part) for part in by_set], dtype=np.int64),
        moved_by=np.array([part.max(initial=0.0) for part in by_set]),
    )


def _errors(problem: Problem, matrix: Float, rows: Sequence[int]) -> Float:
    """The error of each set of rows."""
    layer = problem.layer
    sets = problem.sets(rows)
    position = {channel: i for i, channel in enumerate(rows)}
    error = np.zeros(len(sets))
    for index, s in enumerate(sets):
        gram, metric = problem.gram(s[0]), problem.metric(s[0])
        if metric is not None:
            deviation = matrix[[position[c] for c in s]] - layer.target[s]
            error[index] = max(float(np.sum((metric @ deviation) * (deviation @ gram))), 0.0) + layer.constant[s].sum()
            continue
        for c in s:
            error[index] += squared_error(gram, matrix[position[c]] - layer.target[c]) + layer.constant[c]
    return error


def float_type(weights: ArrayLike, dtype: object = None) -> str:
    """The type to which weights were rounded: as said, or that of the array; float64 where it says none of these."""
    if dtype is None:
        name = type_name(weights)
        return name if name in FLOAT_TYPES else "float64"
    name = str(dtype).removeprefix("torch.")
    if isinstance(dtype, type) and issubclass(dtype, np.floating):
        name = np.dtype(dtype).name
    if name not in FLOAT_TYPES:
        hint = did_you_mean(name, FLOAT_TYPES)
        raise InputError(f"dtype is {shown(dtype)}; {hint}choose {', '.join(map(repr, FLOAT_TYPES))}.")
    return name


def _check_type(matrix: Float, dtype: str) -> None:
    many = int(np.count_nonzero(rounded(matrix, dtype) != matrix))
    if many:
        raise InputError(f"{many} of the weights {'is' if many == 1 else 'are'} no {dtype}; leave out dtype.")
