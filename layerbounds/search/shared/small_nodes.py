"""Nodes of which every set that counts can be tried: few units to drop, or few sets within the gap."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.kernels.factorization import UNIT, smallest_eigenvalues
from layerbounds.kernels.pruning.subset_sets import near_count
from layerbounds.kernels.shared import near_sets
from layerbounds.search.shared.drops import DropBasis, DropSearch
from layerbounds.search.shared.reduction import Flags, Reduced, part_of
from layerbounds.search.shared.selection import Selection

#: Units to be dropped up to which nodes are searched by their errors alone, at first, and the multiplications for that.
FIRST_FEW, FEW_WORK = 8, 10**7
#: Nodes are enumerated if that is estimated to take no longer than so many nodes, unless more sets than this come near
#: the cut; the multiplications that it may take, and the inputs up to which it is done.
WORTH, EXACT, MOST_WORK, MOST_INPUTS = 5.0, 64, 10**9, 1000
#: Microseconds of a node: constant, and per squared number of free inputs; of a set: constant, and per cubed size of a
#: unit.
NODE_TIME, SET_TIME = (1000.0, 0.07), (0.05, 0.0035)

#: A proven bound of one choice, flags of the units.
SetBound = Callable[[Bool], float]


class SmallNodes:
    """What is known of the whole problem.

    Parameters
    ----------
    selection : Selection
    gram : ndarray of shape (n, n)
        Inputs by units.
    size : ndarray of int64
        Inputs of each unit.
    basis : DropBasis or None
    """

    def __init__(self, selection: Selection, gram: Float, size: Int, basis: DropBasis | None) -> None:
        self.selection, self.size, self.basis = selection, size, basis
        #: Nodes with more units to drop are not tried.
        self.few = FIRST_FEW
        #: A proven share of the diagonal that lies below the Gram matrix, 0 for none.
        self.smallest = _least_share(gram)

    def exhaust(self, status: Flags, room: Int, cut: float, set_bound: SetBound) -> float | None:
        """Proven bound of a node by the errors of its sets alone; None where that takes too long."""
        drops = int(np.count_nonzero(status == 0) - room.sum())
        if self.basis is None or drops > self.few:
            return None
        dropped, free = np.flatnonzero(status == -1), np.flatnonzero(status == 0)
        search = DropSearch(self.basis, cut, self.selection.rounding, dropped, free)
        finished = search.run(FEW_WORK)
        self.few = max(drops + 1 if finished else drops - 1, 1)
        kept, _ = search.found()
        if not finished or len(kept) > EXACT:
            return None
        return self._bound(kept, search.cut, set_bound)

    def enumerate(
        self, status: Flags, room: int, left: Reduced, saving: Float, gap: float, floor: float, cut: float,
        set_bound: SetBound,
    ) -> float | None:  # fmt: skip
        """Proven bound of a node of one group by trying the sets within the gap; None for too many or too close ones.

        Parameters
        ----------
        status : ndarray of int8
        room : int
            Units that may still be kept.
        left : Reduced
        saving : ndarray
            Of the free units, less the price between the last one chosen and the first one left out.
        gap : float
            What a set's choices may cost.
        floor : float
            The energy less what kept units save.
        cut : float
        set_bound : callable
        """
        free = left.free
        margin = self.set_error(left.many + int(np.sort(self.size[free])[-room:].sum()))
        size = len(left.gram)
        worth = WORTH * (NODE_TIME[0] + NODE_TIME[1] * size**2) / (SET_TIME[0] + SET_TIME[1] * (size / len(free)) ** 3)
        if not margin < 0.1 * cut or not near_count(saving, room, gap, worth) <= worth:
            return None
        order = np.argsort(-np.abs(saving), kind="stable")
        index = np.concatenate([np.arange(left.place[k], left.place[k + 1]) for k in order])
        edge = np.concatenate([[0], np.cumsum(self.size[free[order]])]).astype(np.int64)
        b = left.b[index]
        found = np.zeros((EXACT, room), dtype=np.int64)
        count = near_sets.near_sets(
            part_of(left.gram, index, index), b @ b.T, edge, room, saving[order], gap, floor - cut - margin, MOST_WORK,
            found,
        )  # fmt: skip
        if count < 0:
            return None
        kept = np.repeat((status == 1)[None], count, axis=0)
        for row, units in zip(kept, found[:count], strict=True):
            row[free[order[units]]] = True
        return self._bound(kept, cut, set_bound)

    def _bound(self, kept: Bool, cut: float, set_bound: SetBound) -> float:
        """The smaller one of a cut and the bounds of the choices that may lie below it."""
        for row in kept:
            self.selection.offer(row)
            cut = min(cut, set_bound(row))
        return cut

    def set_error(self, inputs: int) -> float:
        """How far the computed saving of a set of so many inputs can lie below the exact one: docs/shared-engine.md."""
        if self.smallest <= 0.0:
            return math.inf
        loss = 64.0 * UNIT * max(inputs, self.selection.b.shape[1] // 64, 1) ** 2 / self.smallest
        return 2.0 * loss * self.selection.energy if loss < 1e-3 else math.inf


def _least_share(gram: Float) -> float:
    if len(gram) > MOST_INPUTS:
        return 0.0
    norm = np.sqrt(np.diag(gram))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 0.5 * float(smallest_eigenvalues(gram / np.outer(norm, norm)))
    return value if value > 0.0 and is_positive_semidefinite(gram - np.diag(value * norm**2)) else 0.0
