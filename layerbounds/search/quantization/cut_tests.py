"""Split cuts in the tree: prepared once for a layer, adapted to a channel, tested at the upper depths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import reciprocals
from layerbounds.bounds.quantization.cuts import GENERIC, CutSet, fold, make_cuts, weight_schedule
from layerbounds.search.quantization.preparation import Preparation
from layerbounds.search.quantization.split_forms import prepare_split
from layerbounds.search.shared_results import once

#: Sizes at which cuts pay: smaller problems are closed without, for larger ones nothing was gained in 10 s.
SMALLEST, LARGEST = 72, 320
#: Nodes of a depth from which its weights are learned.
ENOUGH = 200


@dataclass(frozen=True)
class Effort:
    """How much is spent on the cuts of a layer.

    Attributes
    ----------
    stride : int
        Depths between two solves of the weights.
    deepest : float
        Share of the variables that are free at the last depth tested.
    learned : int
        Depths whose weights are adapted to a channel.
    """

    stride: int
    deepest: float
    learned: int


def effort(n: int) -> Effort:
    """The effort for a number of variables."""
    if n <= 160:
        return Effort(10, 0.5, 4)
    return Effort(30, 0.6, 3)


@dataclass(frozen=True, eq=False)
class CutPreparation:
    """Cuts of a Gram matrix whose variables have one scale, with weights for every depth.

    Attributes
    ----------
    cuts : CutSet
    units : ndarray of shape (n + 1, n)
    weights : ndarray of shape (n + 1, cuts)
    deepest : int
        Fewest free variables at which to test.
    """

    cuts: CutSet
    units: Float
    weights: Float
    deepest: int


@once
def prepare_cuts(prep: Preparation) -> CutPreparation | None:
    """Cuts for a preparation, computed once; None where they do not pay or none are found."""
    n = prep.size
    # The shift of a singular Gram matrix is charged for the single variables alone.
    if not SMALLEST <= n <= LARGEST or np.any(prep.shift):
        return None
    split = prepare_split(prep)
    if split is None:
        return None
    work = effort(n)
    cuts, order = make_cuts(split.forms)
    units, weights = split.units, split.weights[order]
    deepest = max(int(work.deepest * n), 2)
    depths = list(range(n, deepest - 1, -work.stride))
    expected = np.full((n + 1, n), GENERIC), np.full((n + 1, cuts.size), GENERIC)
    schedule = weight_schedule(prep.gram, cuts, depths, expected, (units, weights))
    return CutPreparation(cuts, *schedule, depths[-1])


class CutTests:
    """State of the tests in one tree; empty without cuts.

    Parameters
    ----------
    n : int
    shifts : ndarray of shape (n, n)
        As in `Preparation`.
    prepared : CutPreparation or None
    """

    def __init__(self, n: int, shifts: Float, prepared: CutPreparation | None) -> None:
        self.active = np.zeros(n + 1, dtype=np.int64)
        self.seen = np.zeros(n + 1, dtype=np.int64)
        self.cuts: CutSet | None = None
        if prepared is None:
            nothing = np.zeros((0, 0))
            self.forms = self.moves = self.units = self.inverses = nothing
            self.weights = self.values = self.distance = nothing
            return
        self.cuts = prepared.cuts
        self.deepest = prepared.deepest
        self.forms = prepared.cuts.forms
        self.moves = np.ascontiguousarray(shifts @ self.forms)
        self.units, self.weights = prepared.units.copy(), prepared.weights.copy()
        self.inverses = reciprocals(self.units)
        self.values = np.zeros((n + 1, prepared.cuts.size))
        self.distance = np.zeros((n + 1, prepared.cuts.size))
        self.active[self.deepest :] = [prepared.cuts.active(k) for k in range(self.deepest, n + 1)]

    @property
    def size(self) -> int:
        """Number of forms."""
        return 0 if self.cuts is None else self.cuts.size

    def start(self, z: Float) -> None:
        """Set the forms' values at the root's centre."""
        if self.cuts is not None:
            self.values[-1] = z @ self.forms

    def schedule(self) -> tuple[Int, Float, Float] | None:
        """From how many free variables down to how many the same weights serve, and these; None without cuts."""
        if self.cuts is None:
            return None
        depths: list[list[int]] = []
        for k in range(len(self.active) - 1, self.deepest - 1, -1):
            if depths and self._restricts(k, depths[-1][0]):
                depths[-1][1] = k
            else:
                depths.append([k, k])
        rows = [k for k, _ in depths]
        return np.array(depths), self.units[rows], self.weights[rows]

    def _restricts(self, k: int, above: int) -> bool:
        """Whether the weights of a depth are those of one above it, up to rounding."""
        m = int(self.active[k])
        units, weights = fold(self.units[above], self.weights[above], self.forms, k, m)
        pairs = (units, self.units[k, :k]), (weights, self.weights[k, :m])
        return all(np.allclose(first, second, rtol=1e-9, atol=0.0) for first, second in pairs)

    def learn(self, gram: Float, distance: Float, seen: Int) -> None:
        """Adapt the weights of the depths with most nodes to the distances seen there."""
        if self.cuts is None:
            return
        n = len(gram)
        known = np.flatnonzero((self.seen >= ENOUGH) & (seen >= ENOUGH) & (self.active > 0))
        if len(known):
            depths = _spread(known, self.seen, effort(n).learned)
            objectives = np.zeros((n + 1, n)), np.zeros((n + 1, self.cuts.size))
            for k in depths:
                objectives[0][k, :k] = distance[k, :k] / seen[k]
                objectives[1][k] = self.distance[k] / self.seen[k]
            start = fold(self.units[depths[0]], self.weights[depths[0]], self.forms, n, self.cuts.size)
            units, weights = weight_schedule(gram, self.cuts, depths, objectives, start)
            span = slice(max(depths[-1] - effort(n).stride, self.deepest), depths[0] + 1)
            self.units[span], self.weights[span] = units[span], weights[span]
            self.inverses = reciprocals(self.units)
        self.seen[:] = 0
        self.distance[:] = 0.0


def _spread(known: Int, seen: Int, most: int) -> list[int]:
    """Depths that divide the nodes into equal parts, the largest of each part, falling."""
    share = np.cumsum(seen[known][::-1].astype(np.float64))
    share = share / float(share[-1])
    ends = [int(k) for k in known[::-1]]
    picks = {ends[0]} | {ends[min(int(np.searchsorted(share, i / most)), len(ends) - 1)] for i in range(most)}
    return sorted(picks, reverse=True)
