"""Whether a stage that is proven optimal has other weights of nearly the same error.

What comes after a stage depends on its weights, so an order has one error only if no others are as good. All weights
but those found fall into a few smaller problems, and each is solved until its lower bound says that it holds nothing
near:

* pruning: one of the kept units of inputs is dropped, or, where capacity is left, others join them;
* quantization: in some order of the inputs, the first weight that differs is above or below its level, and those before
  it are as they were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.factorization import cholesky
from layerbounds.layers.layer import Layer
from layerbounds.orders.kept import kept_inputs, rows_of
from layerbounds.problems.levels import Levels
from layerbounds.problems.patterns import Structure
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.quantization import QuantizationProblem
from layerbounds.problems.support import Support
from layerbounds.proofs import OPTIMAL_RELATIVE
from layerbounds.solution import Solution
from layerbounds.solve import solve

NONE, FOUND, UNKNOWN, NOT_ASKED = "none", "found", "unknown", "not asked"

#: Live inputs beyond which nobody looks: the problems are many, and a stage so wide is hardly ever proven.
MOST_INPUTS = 64
#: Share of the time limit of a channel that each of its smaller problems gets, and the fewest seconds.
SHARE, LEAST_SECONDS = 0.3, 0.1
#: Solves of what is left: each aims at a gap that follows from the errors of the one before it.
ROUNDS = 4


def other_supports(problem: PruningProblem, solution: Solution, limits: Mapping[str, Any]) -> list[str]:
    """For each row of a solved pruning problem whether another support lies within 1e-6 of the least error.

    Parameters
    ----------
    problem : PruningProblem
    solution : Solution
        Of all its rows.
    limits : mapping
        Arguments for `solve`.
    """
    layer, count = problem.layer, problem.layer.out_features
    weights, unit = solution.weights.reshape(count, -1), problem.structure.unit
    result, search = [UNKNOWN] * count, _Search(solution, limits)
    for rows in _searched(layer, solution):
        live = layer.live(layer.group_of(rows[0]))
        wanted: list[tuple[int, int]] = []
        for row in rows:
            room = _room(problem, row, weights[row])
            if room.any() and problem.refit:
                # More could be kept, which is never worse: other supports are as good.
                result[row] = FOUND
                continue
            result[row] = NONE
            wanted += [(row, u) for u in np.unique(unit[live & (weights[row] != 0.0)]).tolist()]
            if room.any():
                search.add(*_larger(problem, row, weights[row], room))
                result = search.merge(result, [row])
        if not wanted:
            continue
        if problem.refit:
            units = sorted({u for _, u in wanted})
            masks = unit[None, :] != np.array(units)[:, None]
            several = [row for _ in units for row in rows]
            smaller = PruningProblem(kept_inputs(layer, several, masks), problem.pattern, problem.kept, True)
            place = {(row, u): k * len(rows) + i for k, u in enumerate(units) for i, row in enumerate(rows)}
            search.add(smaller, [(row, place[row, u]) for row, u in wanted])
        else:
            repeated = [row for row, _ in wanted]
            original = np.where(unit == np.array([u for _, u in wanted])[:, None], 0.0, layer.matrix[repeated])
            masked = rows_of(layer, repeated, original)
            smaller = PruningProblem(masked, problem.pattern, problem.kept, False)
            search.add(smaller, [(row, k) for k, row in enumerate(repeated)])
        result = search.merge(result, [row for row, _ in wanted])
    return result


def _larger(problem: PruningProblem, row: int, weights: Float, room: Bool) -> tuple[_Joining, list[tuple[int, int]]]:
    """Masks that keep more than the one found: a problem for each unit that may be the first to join, and its cases."""
    layer, structure = problem.layer, problem.structure
    unit = structure.unit
    units = np.unique(unit[room])
    later = room[None] & (unit[None] > units[:, None])
    fixed = np.where(unit[None] == units[:, None], layer.matrix[row], weights)
    original = np.tile(layer.matrix[row], (len(units), 1))
    smaller = kept_inputs(layer, [row] * len(units), later, fixed=np.where(later, 0.0, fixed), dense=original)
    kept = structure.kept_units(weights[None])[0]
    left = structure.capacity - np.bincount(structure.group[kept], minlength=len(structure.capacity))
    capacity = np.tile(left, (len(units), 1))
    capacity[np.arange(len(units)), structure.group[units]] -= 1
    return _Joining(smaller, problem.pattern, problem.kept, False, left=capacity), [(row, k) for k in range(len(units))]


@dataclass(frozen=True, eq=False)
class _Joining(PruningProblem):
    """Masks beside weights that are kept already: what is left of each group's capacity, in each row."""

    left: Int = field(kw_only=True)

    def allowed(self, channel: int) -> Support:
        """The support of a row."""
        support = self.support(channel)
        structure = Structure(support.structure.unit, support.structure.group, self.left[channel])
        return Support(structure, support.original, False, support.idle)


def other_levels(problem: QuantizationProblem, solution: Solution, limits: Mapping[str, Any]) -> list[str]:
    """For each row of a solved quantization problem whether other levels lie within 1e-6 of the least error.

    Parameters
    ----------
    problem : QuantizationProblem
    solution : Solution
        Of all its rows.
    limits : mapping
        Arguments for `solve`.
    """
    layer, count = problem.layer, problem.layer.out_features
    n = layer.in_features
    weights = solution.weights.reshape(count, -1)
    result, search = [UNKNOWN] * count, _Search(solution, limits)
    for rows in _searched(layer, solution):
        order = _order(layer.channel_gram(rows[0]), layer.live(layer.group_of(rows[0])))
        if not len(order):
            result = [NONE if row in rows else other for row, other in enumerate(result)]
            continue
        masks = np.zeros((len(order), n), dtype=bool)
        for k in range(len(order)):
            masks[k, order[k:]] = True
        several = [row for _ in order for row in rows for _ in (0, 1)]
        choices = [problem.allowed(row) for row in rows]
        codes = {row: _codes(levels, weights[row]) for row, levels in zip(rows, choices, strict=True)}
        changes = [Change(row, int(i), int(codes[row][i]), up) for i in order for row in rows for up in (False, True)]
        smaller = _OtherSide(
            kept_inputs(layer, several, masks, fixed=weights[several]),
            problem.grid.rows(several),
            tuple(changes),
        )
        last = {row: levels.count - 1 for row, levels in zip(rows, choices, strict=True)}
        exist = [k for k, c in enumerate(changes) if (c.code < last[c.row][c.input] if c.above else c.code > 0)]
        search.add(smaller, [(changes[k].row, k) for k in exist])
        result = search.merge(result, rows)
    return result


@dataclass(frozen=True)
class Change:
    """One weight leaves its level: upwards or downwards."""

    row: int
    input: int
    code: int
    above: bool


@dataclass(frozen=True, eq=False)
class _OtherSide(QuantizationProblem):
    """A quantization problem in each row of which one weight may take only the levels above, or below, a given one.

    Rows of a uniform grid get as many levels as before, some of them beyond the grid: a lower bound holds all the more.
    """

    changes: tuple[Change, ...]

    def allowed(self, channel: int) -> Levels:
        """The levels of a row."""
        levels, change = super().allowed(channel), self.changes[channel]
        i, last = change.input, levels.values.shape[1] - 1
        values, codes, zero = levels.values.copy(), levels.codes.copy(), levels.zero_point.copy()
        if levels.uniform:
            zero[i] += -change.code - 1 if change.above else last - change.code + 1
            values[i] = levels.scale[i] * (codes[i] - zero[i])
        else:
            some = np.arange(change.code + 1, last + 1) if change.above else np.arange(change.code)
            padded = np.minimum(np.arange(last + 1), len(some) - 1) if len(some) else np.arange(last + 1)
            chosen = some[padded] if len(some) else padded
            values[i], codes[i] = values[i, chosen], codes[i, chosen]
        return Levels(values, codes, levels.scale, zero, levels.uniform)


class _Search:
    """Solves smaller problems until none can hold weights near the least error of their row."""

    def __init__(self, solution: Solution, limits: Mapping[str, Any]) -> None:
        # Twice the distance: the smaller problems are equal to parts of the whole one up to rounding.
        self._cut = solution.upper_bound * (1.0 + 2.0 * OPTIMAL_RELATIVE)
        limit = limits.get("time_limit")
        seconds = max(SHARE * (10.0 if limit is None else limit), LEAST_SECONDS)
        self._limits = {**limits, "time_limit": seconds, "backend": "native"}
        self._open: dict[int, str] = {}

    def add(self, problem: Problem, cases: Sequence[tuple[int, int]]) -> None:
        """Look through problems, given as (row of the solution, row of ``problem``)."""
        rows = np.array([row for row, _ in cases], dtype=np.int64)
        place = np.array([k for _, k in cases], dtype=np.int64)
        cut = self._cut[rows]
        gap, start = np.full(len(cases), 0.99), None
        for _ in range(ROUNDS):
            if not len(place):
                return
            found = solve(problem, channels=place.tolist(), gap=gap, warm_start=start, **self._limits)
            if found.interrupted:
                raise KeyboardInterrupt
            for row in rows[(found.upper_bound <= cut) & self._within(problem, found)].tolist():
                self._open[row] = FOUND
            left = (found.lower_bound <= cut) & np.array([self._open.get(r) != FOUND for r in rows.tolist()])
            # What stopped at the limit, or on levels beyond the grid, would do so again.
            stuck = left & ((np.array(found.status) == "time_limit") | (found.upper_bound <= cut))
            for row in rows[stuck].tolist():
                self._open.setdefault(row, UNKNOWN)
            again = left & ~stuck
            # With the least error at `upper`, this gap is reached only by a lower bound beyond the cut.
            gap = np.clip(1.0 - cut[again] * (1.0 + 1e-9) / found.upper_bound[again], 0.0, 0.99)
            start = found.weights[again]
            rows, place, cut = rows[again], place[again], cut[again]
        for row in rows.tolist():
            self._open.setdefault(row, UNKNOWN)

    def _within(self, problem: Problem, found: Solution) -> Bool:
        """Whether weights are on the grid itself."""
        if not isinstance(problem, _OtherSide):
            return np.ones(len(found.channels), dtype=bool)
        matrix = found.weights.reshape(len(found.channels), -1)
        own = [QuantizationProblem.allowed(problem, channel) for channel in found.channels]
        moved = [problem.changes[channel].input for channel in found.channels]
        return np.array(
            [np.any(levels.values[i] == row[i]) for levels, i, row in zip(own, moved, matrix, strict=True)], dtype=bool
        )

    def merge(self, result: list[str], rows: Sequence[int]) -> list[str]:
        """What was found out about some rows, in place of what was known."""
        wanted = set(rows)
        return [self._open.get(row, NONE) if row in wanted else known for row, known in enumerate(result)]


def _searched(layer: Layer, solution: Solution) -> list[list[int]]:
    """The rows that are proven optimal and not too wide, by group."""
    groups: dict[int, list[int]] = {}
    for row, status in enumerate(solution.status):
        group = layer.group_of(row)
        if status == "optimal" and int(np.count_nonzero(layer.live(group))) <= MOST_INPUTS:
            groups.setdefault(group, []).append(row)
    return list(groups.values())


def _room(problem: PruningProblem, row: int, weights: Float) -> Bool:
    """Live inputs that could be kept beside the others, and would make a difference."""
    structure = problem.structure
    kept = structure.kept_units(weights[None])[0]
    used = np.bincount(structure.group[kept], minlength=len(structure.capacity))
    live = problem.layer.live(problem.layer.group_of(row))
    units = np.bincount(structure.unit, weights=live, minlength=len(structure.group)) > 0
    free = ~kept & units & (used < structure.capacity)[structure.group]
    different = live if problem.refit else live & (problem.layer.matrix[row] != 0.0)
    return np.asarray(free[structure.unit] & different)


def _codes(levels: Levels, weights: Float) -> Int:
    return np.asarray(np.argmin(np.abs(levels.values - weights[:, None]), axis=1))


def _order(gram: Float, live: Bool) -> Int:
    """The live inputs, next the one whose weight is best determined while the later ones are free."""
    left = np.flatnonzero(live)
    if not len(left):
        return left
    own = gram[np.ix_(left, left)]
    factor = cholesky(np.ascontiguousarray(own + 1e-9 * np.diag(np.diag(own))))
    if factor is None:
        return left
    inverse = scipy.linalg.cho_solve((factor, True), np.eye(len(left)), check_finite=False)
    order = []
    while len(left):
        j = int(np.argmin(np.diag(inverse)))
        order.append(left[j])
        left = np.delete(left, j)
        rest = np.delete(np.arange(len(inverse)), j)
        inverse = inverse[np.ix_(rest, rest)] - np.outer(inverse[rest, j], inverse[j, rest]) / inverse[j, j]
    return np.array(order, dtype=np.int64)
