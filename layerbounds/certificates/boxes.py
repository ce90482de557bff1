"""The tree of boxes that proves a lower end of quantization, found anew below a known cut."""

from __future__ import annotations

import math
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.block_relaxation import BlockRelaxation
from layerbounds.bounds.quantization.split_relaxation import SplitRelaxation, SplitWeights
from layerbounds.certificates.dual import MINORANTS, Parts, of_entries
from layerbounds.certificates.log import LeafLog, TooLargeError
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, DualPoint, FormTerms
from layerbounds.search.quantization.box_tree import BoxTree
from layerbounds.search.quantization.grid_units import UnitProblem, make_units
from layerbounds.search.quantization.preparation import order_exponent, prepare

#: Nodes of one tree, with single inputs and with blocks, which take several times as long; rounds of steps at one of
#: them, and how many times the gain of the last one must reach the cut.
MOST_NODES, MOST_BLOCK_NODES, ROUNDS, GAIN = 20_000, 5_000, 8, 4.0
#: Multipliers are stored in units of this share of the forms' weights, in two bytes.
GRAIN, MOST = 2.0**-14, 2**15 - 1
#: What numbers of fewer digits may take off a bound, relative, and float64 off that of a point.
MARGIN, POINT_MARGIN = 1e-7, 1e-12
#: Which bounds are tried: shares of the way from the root's to that asked for.
SHARES = (1.0, 0.9, 0.75, 0.5)


def box_leaves(task: Task[Levels], root: DualPoint | BlockDual, lower: float) -> Parts:
    """The leaves of a depth-first tree of boxes with integer forms, all of which reach a bound.

    Where the tree grows large, that of a smaller bound is stored, between the root's and the one asked for.

    Parameters
    ----------
    task : Task
    root : DualPoint or BlockDual
        With integer forms: where a best-first search began.
    lower : float
        The claimed lower end without the constant.
    """
    minorant = MINORANTS[Levels, type(root)](task.gram, task.allowed, root)
    if not minorant or lower <= 0.0:
        return {}
    tree = _Tree(task, minorant, root)
    for share in SHARES:
        try:
            return tree.run(lower, share)
        except TooLargeError:
            continue
    return {}


@singledispatch
def _start(
    root: DualPoint | BlockDual, unit: UnitProblem, minorant: Parts
) -> tuple[SplitRelaxation | BlockRelaxation, int]:
    """A relaxation with a proven minorant, in grid units, and the nodes that its tree may have."""
    raise NotImplementedError


@_start.register
def _(root: DualPoint, unit: UnitProblem, minorant: Parts) -> tuple[SplitRelaxation | BlockRelaxation, int]:
    forms = _forms(root, unit, minorant)
    d = unit.diagonal_of(minorant["d"] - minorant.get("shift", 0.0))
    split = SplitWeights(forms.forms, d, forms.weights)
    return SplitRelaxation(-math.inf, unit.point_of(root.z), split, forms.multipliers, np.zeros((0, 0))), MOST_NODES


@_start.register
def _(root: BlockDual, unit: UnitProblem, minorant: Parts) -> tuple[SplitRelaxation | BlockRelaxation, int]:
    order, block = unit.prep.order, minorant["block"]
    matrix = of_entries(minorant["values"], block)
    matrix[np.diag_indices(len(matrix))] -= minorant.get("shift", 0.0)
    matrix = matrix[np.ix_(order, order)] * (np.outer(unit.scale, unit.scale) / unit.multiplier)
    forms, z = _forms(root, unit, minorant), unit.point_of(root.z)
    return BlockRelaxation(-math.inf, z, block[order], matrix, np.zeros((0, 0)), forms), MOST_BLOCK_NODES


def _forms(root: DualPoint | BlockDual, unit: UnitProblem, minorant: Parts) -> FormTerms:
    assert root.split is not None
    forms = minorant["forms"][unit.prep.order].astype(np.float64)
    return FormTerms(forms, minorant["weights"] / unit.multiplier, root.split.multipliers / unit.multiplier)


class _Tree:
    def __init__(self, task: Task[Levels], minorant: Parts, root: DualPoint | BlockDual) -> None:
        self.unit: UnitProblem = make_units(task, prepare(task.gram, order_exponent(len(task.gram))))
        #: As certification proves them, in the units of the layer.
        self.weights = minorant["weights"]
        start, self.most = _start(root, self.unit, minorant)
        self.tree = BoxTree(self.unit, start)
        self.boxes = self.tree.boxes
        self.least = self.cut = 0.0
        self.log = LeafLog()
        self.rho: list[NDArray[np.int16]] = []

    def run(self, lower: float, share: float) -> Parts:
        """The proof of a bound, or of what lies that share of the way from the root's to it."""
        root = self.tree.lowest
        if root is None:
            return {}
        asked = lower / self.unit.multiplier
        target = asked if asked <= root.value else root.value + share * (asked - root.value)
        self.least, self.cut = (target * (1.0 + margin) for margin in (POINT_MARGIN, MARGIN))
        self.log, self.rho = LeafLog(), []
        work = [(0, root.low, root.high, root.state, -math.inf)]
        for _ in range(self.most):
            if not work:
                found = self.log.tensors()
                return {
                    **{name: found[name] for name in ("axis", "at", "child")},
                    "z": found["z"].astype(np.float32),
                    "multipliers": np.array(self.rho),
                }
            k, low, high, state, inherited = work.pop()
            low, high, state = low.copy(), high.copy(), state.copy()
            z, value, before = np.empty(len(low)), inherited, (low.copy(), high.copy())
            for _ in range(ROUNDS):
                self.boxes.iterate(low, high, state, z, self.boxes.each)
                ends = (low, high) if k == 0 else (low.copy(), high.copy())
                last, value = value, self._bound(*ends, state, z)
                # Not on the way to the cut.
                if value >= self.cut or (self.cut - value) > GAIN * (value - last) or np.array_equal(low, high):
                    break
            if value < self.cut and np.array_equal(low, high):
                # The bound of a point at itself is its error.
                z[:] = low
                value = self._bound(low, high, state, z)
                if value < self.least:
                    return {}
                self.log.close(k, self._evidence())
                continue
            fixed = np.flatnonzero((low != before[0]) | (high != before[1]))
            if value >= self.cut or len(fixed):
                e = self._evidence()
            if value >= self.cut:
                self.log.close(k, e)
                continue
            for i in fixed:
                j = int(self.unit.prep.order[i])
                if low[i] > before[0][i]:
                    other, k = self.log.split(k, j, int(low[i]))
                    self.log.close(other, e)
                if high[i] < before[1][i]:
                    k, other = self.log.split(k, j, int(high[i]) + 1)
                    self.log.close(other, e)
            if np.array_equal(low, high):
                work.append((k, low, high, state, value))
                continue
            place, below = self.tree.branch(low, high, z)
            first, second = self.log.split(k, int(self.unit.prep.order[place]), int(below) + 1)
            raised, lowered = low.copy(), high.copy()
            raised[place], lowered[place] = below + 1.0, below
            work.append((second, raised, high, state, value))
            work.append((first, low, lowered, state, value))
        raise TooLargeError

    def _evidence(self) -> int:
        """The numbers that were bounded with last."""
        self.rho.append(self.multipliers)
        return self.log.evidence(self.point, 0)

    def _bound(self, low: Float, high: Float, state: Float, z: Float) -> float:
        """With the numbers that are stored; ends of the box that reach the cut are dropped."""
        unit = self.unit
        rho = self.boxes.multipliers(state, z)
        grains = np.divide(rho * unit.multiplier, self.weights * GRAIN, out=np.zeros(len(rho)), where=self.weights > 0)
        self.multipliers = np.clip(np.rint(grains), -MOST, MOST).astype(np.int16)
        self.point = unit.weights_of(z).astype(np.float32).astype(np.float64)
        if not np.all(np.isfinite(self.point)):
            raise TooLargeError
        z = unit.point_of(self.point)
        stored = state.copy()
        self.boxes.set_multipliers(stored, z, self.multipliers * (self.weights * (GRAIN / unit.multiplier)))
        return self.boxes.bound(low, high, stored, z, self.cut)
