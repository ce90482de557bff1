"""The compiled tree of the diagonal dual: what the kernel `subset_tree.run` needs around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.kernels.pruning import subset_tree
from layerbounds.kernels.pruning.subset_diagonal import CACHED
from layerbounds.proofs import Status
from layerbounds.search.frontier import Frontier
from layerbounds.search.node_arrays import NodeArrays
from layerbounds.search.pruning.subset_search import EXACT, Flags, Node, SubsetSearch, set_bound

Number = TypeVar("Number", np.int8, np.int64, np.float64)

#: Work between two looks at the clock, in nodes of 64 inputs: their work grows with the cube. Of several threads each
#: does a quarter of it before open nodes are shared anew.
BUDGET = 400
#: Nodes with about so many sets within the gap are enumerated.
MOST_SETS = 30000.0
#: Nodes for which there is room at first.
NODES = 1024
#: Open nodes of each thread from which on a tree is divided.
SHARED = 8


@dataclass(frozen=True, eq=False)
class OpenNodes:
    """Nodes, a row each: flags, what their groups may still keep, bounds, and diagonals."""

    status: Flags
    state: Flags
    room: Int
    bound: Float
    d: Float

    def __getitem__(self, index: Int | slice) -> OpenNodes:
        """Some of the nodes."""
        return OpenNodes(self.status[index], self.state[index], self.room[index], self.bound[index], self.d[index])

    @staticmethod
    def join(parts: Sequence[OpenNodes]) -> OpenNodes:
        """All nodes, those of smallest bound first."""
        names = ("status", "state", "room", "bound", "d")
        every = OpenNodes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        return every[np.argsort(every.bound, kind="stable")]


class Subtree(NodeArrays):
    """The open nodes of one thread as arrays.

    Parameters
    ----------
    search : SubsetSearch
        Of this thread.
    nodes : OpenNodes
        At least one, by ascending bounds.
    margin : float
        What rounding can hide of the computed error of a set; where it is infinite all are evaluated exactly.
    least : int, optional
        Nodes for which there is room at first.
    """

    per_node = ("status", "state", "room", "bound", "turn", "row", "open")

    def __init__(self, search: SubsetSearch, nodes: OpenNodes, margin: float, least: int | None = None) -> None:
        self.search, self.margin = search, margin
        self.least = NODES if least is None else least
        self.nearest = np.array([np.inf])
        self.found = np.zeros((EXACT, search.size), dtype=bool)
        self.wide = True if search.size > CACHED else None
        self.expanded = 0
        self.put(nodes)

    def put(self, nodes: OpenNodes) -> None:
        """Replace the open nodes."""
        many, size = len(nodes.bound), self.least
        while size < 2 * many:
            size *= 2

        def array(rows: npt.NDArray[Number]) -> npt.NDArray[Number]:
            return np.concatenate([rows, np.zeros((size - many, *rows.shape[1:]), rows.dtype)])

        self.status, self.state, self.room = array(nodes.status), array(nodes.state), array(nodes.room)
        self.bound, self.d = array(nodes.bound), array(nodes.d)
        self.number(many, size)
        #: The last one: sets found.
        self.counts = np.array([many, size - many, size - many, many, self.expanded, 0])

    def take(self) -> OpenNodes:
        """The open nodes; they stay."""
        index = self.open[: self.counts[0]]
        return OpenNodes(
            self.status[index], self.state[index], self.room[index], self.bound[index], self.d[self.row[index]]
        )

    @property
    def many(self) -> int:
        """Number of open nodes."""
        return int(self.counts[0])

    def work(self, cut: Callable[[], float], budget: int, last: int) -> None:
        """Expand nodes up to about a budget, or a number of them, and evaluate what the enumeration finds."""
        search, until = self.search, min(self.expanded + budget, last)
        while self.expanded < until and search.control.remaining() > 0:
            event = subset_tree.run(
                search.gram, search.norm, search.b, search.low_energy, search.reach, search.group,
                search.incumbent.value, cut(), self.margin, MOST_SETS, budget, last,
                self.status, self.state, self.room, self.bound, self.turn, self.row, self.spare,
                self.d, self.uses, self.spare_rows, self.open, self.counts, self.nearest, self.found, self.wide,
            )  # fmt: skip
            self.expanded = int(self.counts[4])
            if event == subset_tree.FULL:
                self.grow()
            elif event == subset_tree.ROUNDED:
                search.polish(self.found[0].copy(), 0)
            elif event == subset_tree.FOUND:
                for chosen in self.found[: self.counts[5]]:
                    search.offer(chosen)
                    self.nearest[0] = min(self.nearest[0], set_bound(search.task.gram, search.target, chosen))
            else:
                return
            self.counts[5] = 0


class CompiledTree(Frontier[Node]):
    """Open nodes of all threads. Threads work side by side for a while, then nodes are shared anew where they have to.

    Parameters
    ----------
    search : SubsetSearch
        Its Gram matrix is proven positive definite; see `applies`.
    root : Node
        With a proven diagonal.
    """

    most_threads: ClassVar[int] = 64

    def __init__(self, search: SubsetSearch, root: Node) -> None:
        assert root.d is not None
        node = OpenNodes(
            root.status[None], root.state[None], root.free[None], np.array([search.root_bound]), root.d[None]
        )
        self.margin = 2.0 * search.saving_error(search.size)
        self.trees = [Subtree(search, node, self.margin)]
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
        return min(self.expander.incumbent.value, *(min(tree.opened, float(tree.nearest[0])) for tree in self.trees))

    def run(self) -> Status:
        """Work until the interval is closed or a limit is reached."""
        control = self.control
        threads = self.threads
        budget = max(int(BUDGET * min((64 / len(self.root.status)) ** 3, 1.0)) // (4 if threads > 1 else 1), 1)
        last = np.iinfo(np.int64).max if control.node_limit is None else control.node_limit
        with ThreadPoolExecutor(max_workers=threads) as pool:
            while any(tree.opened < self.cut for tree in self.trees):
                status = self.limit()
                if status is not None:
                    return self._stop(status)
                if threads > 1:
                    self._share(threads)
                open_trees = [tree for tree in self.trees if tree.opened < self.cut]
                if len(open_trees) == 1:
                    open_trees[0].work(lambda: self.cut, budget, last)
                else:
                    list(pool.map(lambda tree: tree.work(lambda: self.cut, budget, last), open_trees))
                self.nodes = sum(tree.expanded for tree in self.trees)
                self.record_progress()
        return self._stop(self.finished)

    def _stop(self, status: Status) -> Status:
        self.record()
        return status

    def _share(self, threads: int) -> None:
        """Divide the open nodes evenly, best ones to all, where a thread has few of them."""
        many = [tree.many for tree in self.trees]
        if sum(many) < SHARED * threads or (len(many) == threads and min(many) > 0.25 * max(many)):
            return
        nodes = OpenNodes.join([tree.take() for tree in self.trees])
        for k, tree in enumerate(self.trees):
            tree.put(nodes[k::threads])
        for k in range(len(self.trees), threads):
            self.trees.append(Subtree(self.trees[0].search.fork(k), nodes[k::threads], self.margin))
