"""Best-first branch and bound with the tangent relaxation and integer forms, perhaps blocks, at every node.

For layers that depth-first enumeration cannot enter: a node costs n² operations and raises the bound where it is lowest
(docs/bounds.md, best-first tree).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.block_boxes import BlockBoxes
from layerbounds.bounds.quantization.block_dual import search_order
from layerbounds.bounds.quantization.block_relaxation import BlockRelaxation
from layerbounds.bounds.quantization.cuts import fractional_product
from layerbounds.bounds.quantization.split_boxes import SplitBoxes
from layerbounds.bounds.quantization.split_relaxation import SplitRelaxation
from layerbounds.search.quantization.grid_units import UnitProblem

#: Memory that open nodes may take.
BYTES = 512 * 2**20


class Boxes(Protocol):
    """What bounds boxes, by steps of a method whose state goes from a box to its halves."""

    usable: bool
    first: int
    each: int
    more: int

    def start(self, z: Float) -> Any:
        """A state at a point."""

    def iterate(self, low: Float, high: Float, state: Any, z: Float, count: int) -> None:
        """So many steps on a box; state and z change."""

    def bound(self, low: Float, high: Float, state: Any, z: Float, cut: float) -> float:
        """The bound of a box at a state; end levels at which it reaches the cut may be dropped from the box."""

    def multipliers(self, state: Any, z: Float) -> Float:
        """Of the forms, at a state and a point."""

    def set_multipliers(self, state: Any, z: Float, multipliers: Float) -> None:
        """Make a state one with these multipliers at a point."""


@dataclass(frozen=True, eq=False)
class Node:
    """A box, the last smooth step of the method there, its state, and a bound."""

    value: float
    low: Float
    high: Float
    state: Any
    z: Float


class BoxTree:
    """Open nodes of one channel's best-first search: boxes that together hold every point below the cut.

    Parameters
    ----------
    unit : UnitProblem
        With one scale: its Gram matrix is then not rounded again.
    root : SplitRelaxation or BlockRelaxation
        With integer forms.
    """

    def __init__(self, unit: UnitProblem, root: SplitRelaxation | BlockRelaxation) -> None:
        self.unit = unit
        self.nodes = 0
        self.boxes = _boxes(unit, root)
        self._heap: list[tuple[float, int, Node]] = []
        self._most = 0
        if not self.boxes.usable:
            return
        # Expected gain of a branching on variable i: the squared distance over (H⁻¹)_ii.
        self._pivots = 1.0 / np.diag(unit.covariance)
        z = np.clip(root.z, unit.low, unit.high)
        state = self.boxes.start(z)
        self._most = BYTES // (8 * 3 * unit.size + state.nbytes)
        self._push(root.value, unit.low.copy(), unit.high.copy(), state, np.inf, self.boxes.first)

    @property
    def value(self) -> float:
        """What all points that are not in a closed node cost at least; −inf without a tree."""
        return self._heap[0][0] if self._heap else -np.inf

    @property
    def point(self) -> Float | None:
        """The one point of the lowest node, in grid units, where it holds no more."""
        if not self._heap or np.any(self._heap[0][2].low < self._heap[0][2].high):
            return None
        return self._heap[0][2].low

    @property
    def lowest(self) -> Node | None:
        """The lowest node."""
        return self._heap[0][2] if self._heap else None

    @property
    def full(self) -> bool:
        """Whether there is nothing to branch on or no memory for more nodes."""
        return not 0 < len(self._heap) < self._most or self.point is not None

    def grow(self, cut: float, stop: Callable[[], bool]) -> float:
        """Branch on the lowest node until told to stop, or until all nodes reach the cut.

        Returns
        -------
        float
            Every point costs at least this, or the cut.
        """
        lowest = self.value
        while not self.full and not stop():
            _, _, node = heapq.heappop(self._heap)
            lowest = node.value
            if lowest >= cut:
                heapq.heappush(self._heap, (lowest, self.nodes, node))
                break
            if not np.any(node.low < node.high):
                heapq.heappush(self._heap, (lowest, self.nodes, node))
                break
            i, below = self.branch(node.low, node.high, node.z)
            for upper in (True, False):
                low, high = node.low.copy(), node.high.copy()
                if upper:
                    low[i] = below + 1.0
                else:
                    high[i] = below
                self._push(lowest, low, high, node.state.copy(), cut, self.boxes.each)
            if not self._heap:
                return cut
        return min(self.value if self._heap else lowest, cut)

    def branch(self, low: Float, high: Float, z: Float) -> tuple[int, float]:
        """The variable to divide a box at that is no point, and the last level of the lower half."""
        z = np.clip(z, low, high)
        i = int(np.argmax(np.where(low < high, (fractional_product(z) + 1e-9) * self._pivots, -1.0)))
        return i, min(float(np.floor(z[i])), float(high[i]) - 1.0)

    def _push(self, inherited: float, low: Float, high: Float, state: Any, cut: float, iterations: int) -> None:
        """Bound a box, and keep it if it may hold a point below the cut."""
        z = np.empty(self.unit.size)
        value = inherited
        for count in (iterations, self.boxes.more):
            if np.array_equal(low, high):
                break
            self.boxes.iterate(low, high, state, z, count)
            found = self.boxes.bound(low, high, state, z, cut)
            value = max(value, found)
            if found > inherited:
                break
        if np.array_equal(low, high):
            # The bound of a point at itself is the objective, whatever the multipliers.
            z[:] = low
            value = max(value, self.boxes.bound(low, high, state, z, cut))
        self.nodes += 1
        if value < cut:
            heapq.heappush(self._heap, (value, self.nodes, Node(value, low, high, state, z)))


def _boxes(unit: UnitProblem, root: SplitRelaxation | BlockRelaxation) -> Boxes:
    """What bounds the nodes: the root's weights."""
    if isinstance(root, SplitRelaxation):
        return SplitBoxes(unit.gram, unit.origin, root.split)
    split = root.split
    assert split is not None
    members = [np.flatnonzero(root.block == g) for g in np.unique(root.block)]
    members = [m[search_order(root.matrix[np.ix_(m, m)])] for m in members]
    return BlockBoxes(unit.gram, unit.origin, members, root.matrix, split.forms, split.weights)
