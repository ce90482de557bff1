"""Branch and bound with the diagonal dual whose nodes are compiled: what `kernels.subset_tree.run` needs around it."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels import subset_tree
from layerbounds.search.frontier import Frontier
from layerbounds.search.pruning import EXACT, Node, SubsetSearch, set_bound
from layerbounds.solution import Status

#: Work between two looks at the clock, in nodes of 64 inputs: their work grows with the cube.
BUDGET = 400
#: Nodes with about so many sets within the gap are enumerated.
MOST_SETS = 30000.0
#: Nodes for which there is room at first.
NODES = 1024


class CompiledTree(Frontier[Node]):
    """The open nodes as arrays.

    Parameters
    ----------
    search : SubsetSearch
        Its Gram matrix is proven positive definite; see `applies`.
    root : Node
        With a proven diagonal.
    """

    def __init__(self, search: SubsetSearch, root: Node) -> None:
        self.search = search
        n, groups = search.size, len(search.capacity)
        self.status, self.state = np.zeros((NODES, n), np.int8), np.zeros((NODES, n), np.int8)
        self.room, self.bound = np.zeros((NODES, groups), np.int64), np.zeros(NODES)
        self.turn, self.row = np.zeros(NODES, np.int64), np.zeros(NODES, np.int64)
        self.spare, self.open = np.arange(NODES), np.zeros(NODES, np.int64)
        self.d, self.uses, self.spare_rows = np.zeros((NODES, n)), np.zeros(NODES, np.int64), np.arange(NODES)
        #: Open nodes, spare nodes, spare rows, turns, nodes expanded, sets found.
        self.counts = np.array([1, NODES - 1, NODES - 1, 1, 0, 0])
        self.nearest = np.array([np.inf])
        self.found = np.zeros((EXACT, n), dtype=bool)
        self.margin = 2.0 * search.saving_error(n)
        first = NODES - 1
        assert root.d is not None
        self.status[first], self.state[first], self.room[first] = root.status, root.state, root.free
        self.bound[first], self.d[first], self.row[first], self.uses[first] = search.root_bound, root.d, first, 1
        self.open[0] = first
        super().__init__(
            search, search.control, search.energy, root, search.root_bound, search.factor**-2, search.task.constant
        )

    @staticmethod
    def applies(search: SubsetSearch, root: Node) -> bool:
        """Whether sets can be compared by their computed errors; otherwise each one has to be evaluated exactly."""
        return root.d is not None and 2.0 * search.saving_error(search.size) < 0.1 * search.incumbent.value

    @property
    def lower(self) -> float:
        """The proven bound: the smallest of all open and closed nodes."""
        opened = float(self.bound[self.open[0]]) if self.counts[0] else float("inf")
        return min(opened, float(self.nearest[0]), self.expander.incumbent.value)

    def run(self) -> Status:
        """Work until the interval is closed or a limit is reached."""
        search, control = self.search, self.control
        shown, known = control.elapsed(), search.incumbent.value
        budget = max(int(BUDGET * min((64 / search.size) ** 3, 1.0)), 1)
        last = np.iinfo(np.int64).max if control.node_limit is None else control.node_limit
        while True:
            if control.remaining() <= 0 and self.lower < self.cut:
                return self._stop(Status.INTERRUPTED if control.cancel.is_set() else Status.TIME_LIMIT)
            event = subset_tree.run(
                search.gram, search.norm, search.b, search.low_energy, search.reach, search.group,
                search.incumbent.value, self.cut, self.margin, MOST_SETS, budget, last,
                self.status, self.state, self.room, self.bound, self.turn, self.row, self.spare,
                self.d, self.uses, self.spare_rows, self.open, self.counts, self.nearest, self.found,
            )  # fmt: skip
            self.nodes = int(self.counts[4])
            if event == subset_tree.DONE:
                return self._stop(Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL)
            if event == subset_tree.FULL:
                self._grow()
            elif event == subset_tree.ROUNDED:
                search.polish(self.found[0].copy(), 0)
            elif event == subset_tree.FOUND:
                for chosen in self.found[: self.counts[5]]:
                    search.offer(chosen)
                    self.nearest[0] = min(self.nearest[0], set_bound(search.task.gram, search.target, chosen))
            elif self.nodes >= last:
                return self._stop(Status.NODE_LIMIT)
            self.counts[5] = 0
            elapsed = control.elapsed()
            if search.incumbent.value < known or elapsed > 1.2 * shown + 0.01:
                known, shown = search.incumbent.value, elapsed
                self.record()

    def _grow(self) -> None:
        """Twice the room for nodes or for diagonals, whichever is used up."""
        if self.counts[1] < 1:
            size = len(self.bound)
            for name in ("status", "state", "room", "bound", "turn", "row", "open"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
            self.spare = np.concatenate([np.arange(size, 2 * size), np.zeros(size, np.int64)])
            self.counts[1] = size
        if self.counts[2] < 1:
            size = len(self.d)
            self.d = np.concatenate([self.d, np.zeros_like(self.d)])
            self.uses = np.concatenate([self.uses, np.zeros_like(self.uses)])
            self.spare_rows = np.concatenate([np.arange(size, 2 * size), np.zeros(size, np.int64)])
            self.counts[2] = size
