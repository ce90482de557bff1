"""Pruning of a few inputs by trying every choice in exact arithmetic; for Gram matrices that rounding makes ambiguous.

The stored float64 numbers are integers times a power of two, so errors are fractions of integers: what follows holds
for singular matrices as well as for others. See docs/pruning-bounds.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels import exact
from layerbounds.kernels.factorization import cholesky
from layerbounds.problems.patterns import Structure
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Control, RawSolve, SearchProof, Status, TracePoint

#: Choices times squared inputs that are tried exactly: a few seconds at most.
MOST_WORK = 600_000
#: Below this share of its diagonal a Gram matrix counts as nearly singular.
SINGULAR = 1e-7
#: Inputs that add no more than such a share of their energy to the span of the others: the best choice is refitted
#: without them, too, as rounding large weights may cost more than they save.
PIVOTS = (0.0, 2.0**-50, 2.0**-44, 2.0**-36)


def number_of_choices(structure: Structure, refit: bool) -> int:
    """How many choices of units there are to try; with refit only those that keep as many units as they may."""
    count = 1
    for group, capacity in enumerate(structure.capacity.tolist()):
        size = int(np.count_nonzero(structure.group == group))
        count *= math.comb(size, capacity) if refit else sum(math.comb(size, j) for j in range(capacity + 1))
    return count


def nearly_singular(gram: Float) -> bool:
    """Whether a small part of the diagonal is enough to make a Gram matrix indefinite."""
    norm = np.sqrt(np.diag(gram))
    with np.errstate(all="ignore"):
        scaled = gram / norm[:, None] / norm[None, :]
    if not np.all(np.isfinite(scaled)):
        return True
    np.fill_diagonal(scaled, 1.0 - SINGULAR)
    return cholesky(scaled) is None


@dataclass(frozen=True)
class _State:
    """After some units were decided: what is left of each group, and the inputs kept."""

    unit: int
    room: tuple[int, ...]
    kept: tuple[int, ...]


class ExactSets:
    """All choices of units of one channel, in integers.

    Parameters
    ----------
    task : Task
    control : Control
    """

    def __init__(self, task: Task[Support], control: Control) -> None:
        self.task, self.control = task, control
        self.size = len(task.target)
        structure = task.allowed.structure
        self.members = [np.flatnonzero(structure.unit == g).tolist() for g in range(len(structure.group))]
        self.group: list[int] = structure.group.tolist()
        #: Units of each group from a given unit on.
        self.ahead = [[self.group[g:].count(x) for x in range(len(structure.capacity))] for g in range(len(self.group))]
        self.ahead.append([0] * len(structure.capacity))
        self.powers = exact.balance(task.gram)
        rows, scale = exact.balanced_integers(task.gram, self.powers)
        target, power = exact.dyadic(task.target, -self.powers)
        right = [sum(h * w for h, w in zip(row, target, strict=True)) for row in rows]
        energy = sum(b * w for b, w in zip(right, target, strict=True))
        self.rows, self.right, self.scale, self.power = rows, right, scale, power
        #: Values of the objective are fractions of integers times this power of two.
        self.unit = scale + 2 * power
        self.energy = energy
        self.best: tuple[Fraction, tuple[int, ...]] | None = None
        self.visited = 0

    def refitted(self) -> bool:
        """Try all fullest choices; False where the time is out."""
        matrix = [[*row, b] for row, b in zip(self.rows, self.right, strict=True)]
        matrix.append([*self.right, self.energy])
        start = _State(0, tuple(self.task.allowed.structure.capacity.tolist()), ())
        stack = [(start, matrix, list(range(self.size)), 1)]
        while stack:
            state, rows, inputs, previous = stack.pop()
            if not any(state.room):
                self._leaf(rows[-1][-1], previous, state.kept)
                if self.control.remaining() <= 0:
                    return False
                continue
            unit = state.unit
            group = self.group[unit]
            room = state.room[group]
            members = self.members[unit]
            out = [inputs.index(i) for i in members]
            if self.ahead[unit + 1][group] >= room:
                left = [x for x in range(len(rows)) if x not in out]
                stack.append(
                    (
                        _State(unit + 1, state.room, state.kept),
                        [[rows[x][y] for y in left] for x in left],
                        [inputs[x] for x in left[:-1]],
                        previous,
                    )
                )
            if room:
                less = tuple(r - (g == group) for g, r in enumerate(state.room))
                stack.append(self._with(_State(unit + 1, less, state.kept), members, rows, inputs, previous))
        return True

    def _with(
        self, state: _State, members: list[int], rows: list[list[int]], inputs: list[int], previous: int
    ) -> tuple[_State, list[list[int]], list[int], int]:
        kept, inputs = list(state.kept), list(inputs)
        for i in members:
            at = inputs.index(i)
            del inputs[at]
            pivot = rows[at][at]
            following = exact.eliminate(rows, at, previous)
            if following is not None:
                kept.append(i)
                rows, previous = following, pivot
                continue
            # A dependent input saves nothing more: in a positive semidefinite matrix its whole row is zero.
            if pivot < 0 or any(rows[at]):
                # No least error exists: a mean of squares is at least 0.
                rows = [[0] * len(row) for row in rows]
            rows = [row[:at] + row[at + 1 :] for x, row in enumerate(rows) if x != at]
        return _State(state.unit, state.room, tuple(kept)), rows, inputs, previous

    def _leaf(self, value: int, divisor: int, kept: tuple[int, ...]) -> None:
        self.visited += 1
        least = max(Fraction(value, divisor), Fraction(0))
        if self.best is None or least < self.best[0]:
            self.best = least, kept

    def error_on(self, kept: list[int]) -> Fraction:
        """The least error of weights on some inputs, in units of the objective."""
        rows = [[*(self.rows[i][j] for j in kept), self.right[i]] for i in kept]
        rows.append([*(self.right[i] for i in kept), self.energy])
        state = _State(0, (), ())
        _, rows, _, previous = self._with(state, list(kept), rows, list(kept), 1)
        value = max(Fraction(rows[-1][-1], previous), Fraction(0))
        if self.best is None or value < self.best[0]:
            self.best = value, tuple(kept)
        return exact.times_power(value, self.unit)

    def masked(self) -> bool:
        """Try all choices of units whose weights stay as they are; False where the time is out."""
        original, power = exact.dyadic(self.task.allowed.original, -self.powers)
        units = range(len(self.members))
        # One power of two for the target and the kept weights.
        shift = min(self.power, power)
        target_shift, shift_of = self.power - shift, power - shift
        weights = [w << shift_of for w in original]
        right = [b << target_shift for b in self.right]
        self.unit, energy = self.scale + 2 * shift, self.energy << 2 * target_shift
        linear = [sum(weights[i] * right[i] for i in self.members[g]) for g in units]
        quadratic = [
            [
                sum(weights[i] * self.rows[i][j] * weights[j] for i in self.members[g] for j in self.members[h])
                for h in units
            ]
            for g in units
        ]
        stack = [(_State(0, tuple(self.task.allowed.structure.capacity.tolist()), ()), energy)]
        while stack:
            state, value = stack.pop()
            g = state.unit
            if g == len(self.members):
                self._leaf(value, 1, state.kept)
                if self.control.remaining() <= 0:
                    return False
                continue
            stack.append((_State(g + 1, state.room, state.kept), value))
            if state.room[self.group[g]]:
                less = tuple(r - (x == self.group[g]) for x, r in enumerate(state.room))
                change = quadratic[g][g] - 2 * linear[g] + 2 * sum(quadratic[g][h] for h in state.kept)
                stack.append((_State(g + 1, less, (*state.kept, g)), value + change))
        return True

    def weights(self) -> Float:
        """Weights of the best choice."""
        assert self.best is not None
        kept = self.best[1]
        if not self.task.allowed.refit:
            result = np.zeros(self.size)
            for g in kept:
                result[self.members[g]] = self.task.allowed.original[self.members[g]]
            return result
        candidates = [self._solve(self._independent(kept, least)) for least in PIVOTS]
        finite = [v for v in candidates if np.all(np.isfinite(v))]
        return min(finite, key=lambda v: exact.quadratic_form(self.task.gram, self.task.target, v))

    def _independent(self, kept: tuple[int, ...], least: float) -> list[int]:
        """Those of the inputs whose pivots are more than a share of their diagonal entries, the largest ones first."""
        left, chosen = list(kept), []
        rows = [[self.rows[i][j] for j in left] for i in left]
        previous = 1
        while left:
            ratio = [Fraction(rows[x][x], previous * self.rows[i][i]) for x, i in enumerate(left)]
            at = max(range(len(left)), key=lambda x: ratio[x])
            if ratio[at] <= least:
                break
            pivot = rows[at][at]
            following = exact.eliminate(rows, at, previous)
            assert following is not None
            chosen.append(left.pop(at))
            rows, previous = following, pivot
        return sorted(chosen)

    def _solve(self, kept: list[int]) -> Float:
        """The refitted weights on independent inputs, each rounded to the nearest float64."""
        result = np.zeros(self.size)
        matrix = [[*(Fraction(self.rows[i][j]) for j in kept), Fraction(self.right[i])] for i in kept]
        m = len(kept)
        for k in range(m):
            for x in range(k + 1, m):
                factor = matrix[x][k] / matrix[k][k]
                if factor:
                    matrix[x] = [a - factor * b for a, b in zip(matrix[x], matrix[k], strict=True)]
        solution = [Fraction(0)] * m
        for x in range(m - 1, -1, -1):
            rest = matrix[x][m] - sum(matrix[x][y] * solution[y] for y in range(x + 1, m))
            solution[x] = rest / matrix[x][x]
        for i, value in zip(kept, solution, strict=True):
            try:
                result[i] = float(exact.times_power(value, self.power + int(self.powers[i])))
            except OverflowError:
                result[i] = np.inf
        return result


def search_exactly(task: Task[Support], control: Control) -> RawSolve:
    """Solve one channel of few inputs, whatever its Gram matrix; see `number_of_choices`."""
    search = ExactSets(task, control)
    done = search.refitted() if task.allowed.refit else search.masked()
    if search.best is None:
        return RawSolve(task.warm_start, Status.INTERRUPTED if control.cancel.is_set() else Status.TIME_LIMIT)
    weights = search.weights()
    upper = exact.float_above(exact.quadratic_form(task.gram, task.target, weights)) + task.constant
    if not done:
        status = Status.INTERRUPTED if control.cancel.is_set() else Status.TIME_LIMIT
        trace = TracePoint(control.elapsed(), search.visited, task.constant, upper)
        return RawSolve(weights, status, nodes=search.visited, trace=(trace,))
    lower = exact.float_below(exact.times_power(search.best[0], search.unit))
    # Where nobody can see it, the bound stays below the error that these weights have without the raised diagonal.
    hidden = 0.0
    if task.raised:
        hidden = 4.0 * task.raised * float(np.diag(task.gram) @ (weights - task.target) ** 2)
    lower -= min(hidden, 0.25 * max(OPTIMAL_RELATIVE * upper, OPTIMAL_ABSOLUTE * task.energy))
    trace = TracePoint(control.elapsed(), search.visited, min(lower + task.constant, upper), upper)
    return RawSolve(
        weights=weights,
        termination=Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL,
        proof=SearchProof(lower, 0.0) if lower > 0 else None,
        nodes=search.visited,
        trace=(trace,),
    )
