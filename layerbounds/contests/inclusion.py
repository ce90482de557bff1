"""Bounds carried over between contenders of which one allows all that the other does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.certify.kept_inputs import error_interval
from layerbounds.contests.match import Contender
from layerbounds.contests.verdict import grouped, summed
from layerbounds.problems.rows import common_sets, sets_within


class Inclusion:
    """Two contenders of one layer: all weights that ``inner`` allows are allowed by ``outer``.

    Parameters
    ----------
    inner, outer : Contender
    channels : sequence of int
        Those that are compared.
    """

    def __init__(self, inner: Contender[Any], outer: Contender[Any], channels: Sequence[int]) -> None:
        self._inner, self._outer, self._channels = inner, outer, channels
        self._units = common_sets(inner.sets, outer.sets)
        self._within = [sets_within(contender.sets, self._units) for contender in (inner, outer)]
        self._seen = np.full(len(inner.sets), np.inf)

    def carry(self) -> None:
        """Upper bounds go from the inner to the outer contender, lower bounds the other way."""
        inner, outer = self._inner, self._outer
        high, low = grouped(inner.bounds, self._within[0])[:, 1], grouped(outer.bounds, self._within[1])[:, 0]
        for unit, (its, others) in enumerate(zip(*self._within, strict=True)):
            if len(others) == 1:
                held = inner.has_weights[its].all()
                weights = self._matrix(others[0]) if held else None
                outer.merge(others[0], -np.inf, float(high[unit]), weights)
            else:
                self._apart(its)
            if len(its) == 1:
                inner.merge(its[0], float(low[unit]), np.inf, None)

    def _matrix(self, index: int) -> Float:
        """The inner weights of a set of the outer contender."""
        return self._inner.weights[self._outer.sets[index]]

    def _apart(self, indices: Sequence[int]) -> None:
        """Give the weights of sets that the outer contender divides to each of its own sets, where they are new."""
        inner, outer = self._inner, self._outer
        changed = {row for i in indices if inner.bounds[i, 1] < self._seen[i] for row in inner.sets[i]}
        has = {row for i in indices if inner.has_weights[i] for row in inner.sets[i]}
        for index, rows in enumerate(outer.sets):
            if not changed.isdisjoint(rows) and has.issuperset(rows):
                layer = outer.problem.layer
                ends = [error_interval(layer, self._channels[row], inner.weights[row]) for row in rows]
                upper = ends[0][1] if len(ends) == 1 else summed(np.array(ends))[1]
                outer.merge(index, -np.inf, upper, self._matrix(index))
        self._seen[list(indices)] = inner.bounds[list(indices), 1]
