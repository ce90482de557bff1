"""Best-first branch and bound with the tangent relaxation and split cuts at every node.

For layers that depth-first enumeration cannot enter: a node costs n² operations and raises the bound where it is lowest
(docs/bounds.md, best-first tree).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, csr_array

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.alternating import RELAXATION, penalized_inverse
from layerbounds.bounds.quantization.cuts import fractional_product
from layerbounds.bounds.quantization.split_relaxation import SplitRelaxation
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.quantization.box_tree import bound, iterate
from layerbounds.search.quantization.grid_units import UnitProblem

#: Iterations at the root, at a node, and more of them where a child is no better than its parent.
ROOT_ITERATIONS, ITERATIONS, MORE_ITERATIONS = 400, 20, 40
#: κ of alternating directions, the same for all columns.
PENALTY = 6.0
#: Memory that open nodes may take.
BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class Node:
    """A box, the last smooth step of the method there, its state, and a bound."""

    value: float
    low: Float
    high: Float
    state: Float
    z: Float


class BoxTree:
    """Open nodes of one channel's best-first search: boxes that together hold every point below the cut.

    Parameters
    ----------
    unit : UnitProblem
        With one scale: its Gram matrix is then not rounded again.
    root : SplitRelaxation
    """

    def __init__(self, unit: UnitProblem, root: SplitRelaxation) -> None:
        self.unit = unit
        self.nodes = 0
        split = root.split
        forms = csc_array(split.forms)
        self._split = split
        self._columns = forms.indptr.astype(np.int64), forms.indices.astype(np.int64), forms.data.astype(np.float64)
        inverse = penalized_inverse(unit.gram, split.units, csr_array(split.forms), split.weights, PENALTY, PENALTY)
        self._heap: list[tuple[float, int, Node]] = []
        self._most = 0
        if inverse is None:
            return
        self._inverse = np.ascontiguousarray(inverse)
        self._pull = unit.gram @ unit.origin
        # Expected gain of a branching on variable i: the squared distance over (H⁻¹)_ii.
        self._pivots = 1.0 / np.diag(unit.covariance)
        self._most = BYTES // (8 * (5 * unit.size + 2 * len(split.weights)))
        z = np.clip(root.z, unit.low, unit.high)
        still = np.zeros(unit.size), z @ split.forms, np.zeros(len(split.weights))
        state = np.concatenate([z, *still])
        self._push(root.value, unit.low.copy(), unit.high.copy(), state, np.inf, ROOT_ITERATIONS)

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
                self._push(lowest, low, high, node.state.copy(), cut, ITERATIONS)
            if not self._heap:
                return cut
        return min(self.value if self._heap else lowest, cut)

    def branch(self, low: Float, high: Float, z: Float) -> tuple[int, float]:
        """The variable to divide a box at that is no point, and the last level of the lower half."""
        z = np.clip(z, low, high)
        i = int(np.argmax(np.where(low < high, (fractional_product(z) + 1e-9) * self._pivots, -1.0)))
        return i, min(float(np.floor(z[i])), float(high[i]) - 1.0)

    def _push(self, inherited: float, low: Float, high: Float, state: Float, cut: float, iterations: int) -> None:
        """Bound a box, and keep it if it may hold a point below the cut."""
        z = np.empty(self.unit.size)
        value = inherited
        for count in (iterations, MORE_ITERATIONS):
            if np.array_equal(low, high):
                break
            self.iterate(low, high, state, z, count)
            found = self.bound(low, high, state, z, cut)
            value = max(value, found)
            if found > inherited:
                break
        if np.array_equal(low, high):
            # The bound of a point at itself is the objective, whatever the multipliers.
            z[:] = low
            value = max(value, self.bound(low, high, state, z, cut))
        self.nodes += 1
        if value < cut:
            heapq.heappush(self._heap, (value, self.nodes, Node(value, low, high, state, z)))

    def multipliers(self, state: Float, z: Float) -> Float:
        """Of the forms, at a state and a point."""
        of_forms = state[2 * self.unit.size + len(self._split.weights) :]
        return np.asarray(self._split.weights * (z @ self._split.forms - PENALTY * of_forms))

    def set_multipliers(self, state: Float, z: Float, multipliers: Float) -> None:
        """Make a state one with these multipliers at a point."""
        forms, weights = self._split.forms, self._split.weights
        at = np.divide(multipliers, weights, out=np.zeros(len(weights)), where=weights > 0)
        state[2 * self.unit.size + len(weights) :] = (z @ forms - at) / PENALTY

    def iterate(self, low: Float, high: Float, state: Float, z: Float, count: int) -> None:
        """So many steps on a box; state and z change."""
        split = self._split
        iterate(
            self._inverse, self._pull, split.units, split.weights, *self._columns, low, high, PENALTY, RELAXATION,
            state, z, count,
        )  # fmt: skip

    def bound(self, low: Float, high: Float, state: Float, z: Float, cut: float) -> float:
        """The bound of a box; end levels at which it reaches the cut are dropped from the box."""
        unit, split = self.unit, self._split
        return float(
            bound(
                unit.gram, unit.origin, split.units, split.weights, *self._columns, low, high, PENALTY, UNIT, state, z,
                cut,
            )
        )  # fmt: skip
