"""Quantization of a few inputs in exact arithmetic, for what rounding leaves open; see docs/numerics.md."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels import exact
from layerbounds.layers.gram import raise_diagonal, semidefinite_share
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import OPTIMAL_RELATIVE, Control, RawSolve, SearchProof, Status, TracePoint

#: Inputs, and levels that are tried for single inputs, at most.
MOST_INPUTS, MOST_TRIED = 8, 2_000_000
#: Inputs that move the output this much less than others make levels tie.
UNEVEN = 1e-7
#: The bound that is aimed at lies below the upper one by this part of what `optimal` allows.
SHORT = 0.4


class ExactLevels:
    """Depth-first search over the levels.

    A begun choice is bounded by minimising the other inputs over the reals, and, where they matter little, by how far
    they can move the output within their levels.

    Parameters
    ----------
    task : Task
    control : Control
    weights : ndarray of shape (n,)
        On the grid.
    """

    def __init__(self, task: Task[Levels], control: Control, weights: Float) -> None:
        self.task, self.control, self.weights = task, control, weights
        self.upper = exact.quadratic_form(task.gram, task.target, weights)
        self.tried = 0
        share = semidefinite_share(task.gram)
        gram = raise_diagonal(task.gram, share)
        #: Whether partial choices have a bound at all.
        self.bounded = exact.is_positive_semidefinite(gram)
        farthest = np.abs(task.allowed.values - task.target[:, None]).max(axis=1)
        # What the raised diagonal adds at most. It is rounded, by about as much as it is raised: the difference counts.
        added = np.diag(gram) - np.diag(task.gram)
        self.charge = Fraction(float(added @ farthest**2) * (1.0 + 1e-9))
        if not self.bounded:
            return
        powers = exact.balance(gram)
        spread = np.ldexp(np.ptp(task.allowed.values, axis=1), -powers)
        # Inputs that change the error most come first.
        order = np.argsort(-spread, kind="stable")
        self.order = order
        rows, scale = exact.balanced_integers(gram[np.ix_(order, order)], powers[order])
        self.rows = rows
        self._reduce(rows)
        reach = np.sqrt(np.diag(gram)[order]) * farthest[order] * (1.0 + 1e-9)
        #: How far the inputs from each one on can move the output.
        self.reach = [*np.cumsum(reach[::-1])[::-1].tolist(), 0.0]
        #: Whether some inputs matter so little that all their levels tie in floating point.
        self.uneven = bool(reach.min() < UNEVEN * reach.max())
        count = task.allowed.values.shape[1]
        both = np.concatenate([task.allowed.values, task.target[:, None]], axis=1)[order]
        entries, power = exact.dyadic(both, np.repeat(-powers[order], count + 1))
        self.unit = scale + 2 * power
        #: Deviations from the target, by input and level.
        self.steps = [
            [v - entries[i * (count + 1) + count] for v in entries[i * (count + 1) : i * (count + 1) + own]]
            for i, own in enumerate(task.allowed.count[order].tolist())
        ]

    def _reduce(self, rows: list[list[int]]) -> None:
        """For each number of decided inputs the matrix of their least error, times a divisor."""
        previous = 1
        self.matrices: list[tuple[list[list[int]], int]] = []
        while rows:
            self.matrices.insert(0, (rows, previous))
            last = len(rows) - 1
            pivot = rows[last][last]
            following = exact.eliminate(rows, last, previous)
            if following is None:
                # A dependent input: its row is zero.
                rows = [row[:-1] for row in rows[:-1]]
            else:
                rows, previous = following, pivot

    @property
    def cut(self) -> Fraction:
        """The bound that is aimed at."""
        return self.upper * (1 - Fraction(SHORT * OPTIMAL_RELATIVE))

    def run(self) -> bool:
        """Whether nothing below the cut is left."""
        return self.bounded and self._extend([], [])

    def _extend(self, chosen: list[int], steps: list[int]) -> bool:
        depth = len(chosen)
        if depth == len(self.order):
            self._offer(chosen)
            return True
        matrix, divisor = self.matrices[depth]
        values = self._values(matrix, steps)
        alone = self._values(self.rows, steps)
        self.tried += len(values)
        if self.tried > MOST_TRIED or self.control.remaining() <= 0:
            return False
        for value, level in sorted((value, level) for level, value in enumerate(values)):
            if exact.times_power(Fraction(value, divisor), self.unit) - self.charge >= self.cut:
                return True
            if self._far(alone[level], depth + 1):
                continue
            if not self._extend([*chosen, level], [*steps, self.steps[depth][level]]):
                return False
        return True

    def _values(self, matrix: list[list[int]], steps: list[int]) -> list[int]:
        """The quadratic form of some steps followed by each step of the next input."""
        row, depth = matrix[len(steps)], len(steps)
        rest = sum(a * sum(h * b for h, b in zip(matrix[i], steps, strict=False)) for i, a in enumerate(steps))
        slope = 2 * sum(h * b for h, b in zip(row, steps, strict=False))
        return [rest + (slope + row[depth] * d) * d for d in self.steps[depth]]

    def _far(self, alone: int, decided: int) -> bool:
        """Whether what is decided reaches the cut wherever the other inputs move the output."""
        left = math.sqrt(float(exact.times_power(Fraction(alone), self.unit))) * (1.0 - 1e-12) - self.reach[decided]
        return left > 0.0 and Fraction(left * left * (1.0 - 1e-12)) - self.charge >= self.cut

    def _offer(self, chosen: list[int]) -> None:
        weights = np.empty(len(chosen))
        weights[self.order] = self.task.allowed.values[self.order, chosen]
        value = exact.quadratic_form(self.task.gram, self.task.target, weights)
        if value < self.upper:
            self.upper, self.weights = value, weights


def close_exactly(
    task: Task[Levels], control: Control, raw: RawSolve, weights: Float, uneven: bool = False
) -> RawSolve | None:
    """Finish a search that rounding left open.

    Parameters
    ----------
    task : Task
    control : Control
    raw : RawSolve
        What the search found.
    weights : ndarray of shape (n,)
        Its best weights.
    uneven : bool
        Only for inputs of very different size.

    Returns
    -------
    RawSolve or None
        None where there are too many levels to try.
    """
    search = ExactLevels(task, control, weights)
    if not search.bounded or (uneven and not search.uneven) or not search.run():
        return None
    # Exactly 0 is the least that a mean of squares can be.
    cut = max(exact.float_below(search.cut), 0.0)
    upper = float(search.upper) + task.constant
    point = TracePoint(control.elapsed(), raw.nodes + search.tried, min(cut + task.constant, upper), upper)
    return RawSolve(
        weights=search.weights,
        termination=Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL,
        proof=SearchProof(cut, 0.0) if cut > 0 else None,
        dual=raw.dual,
        nodes=raw.nodes + search.tried,
        trace=(*raw.trace, point),
        notes=raw.notes,
    )
