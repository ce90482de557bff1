"""Best-first branch and bound: a heap of open nodes that threads share, the incumbent, limits and the trace."""

from __future__ import annotations

import copy
import heapq
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from layerbounds.arrays import Float
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Control, Status, TracePoint

NodeT = TypeVar("NodeT")


class Incumbent:
    """The best feasible weights so far, of all threads of a search.

    Parameters
    ----------
    value : float
        Their objective in the units of the search.
    weights : ndarray of shape (n,)
    """

    def __init__(self, value: float, weights: Float) -> None:
        self._best = (value, weights)
        self._lock = threading.Lock()

    @property
    def value(self) -> float:
        """Objective of the best weights."""
        return self._best[0]

    @property
    def weights(self) -> Float:
        """The best weights."""
        return self._best[1]

    def offer(self, value: float, weights: Float) -> None:
        """Keep weights where they are better."""
        with self._lock:
            if value < self._best[0]:
                self._best = (value, weights)


class Forkable:
    """A search that another thread can take part in."""

    #: Arrays that the work on a node only reads.
    read_only: ClassVar[frozenset[str]] = frozenset({"gram"})
    #: The smallest bound of what was cut off a node.
    excluded: float

    def fork(self, number: int) -> Self:
        """The same search with work space of its own; the incumbent is shared.

        Parameters
        ----------
        number : int
            Of the thread, from 1 on.
        """
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and name not in self.read_only:
                setattr(other, name, value.copy())
        other.excluded = float("inf")
        return other


class Expander(Protocol[NodeT]):
    """What a kind of problem brings to the search."""

    @property
    def incumbent(self) -> Incumbent:
        """The best weights so far."""

    @property
    def excluded(self) -> float:
        """The smallest proven bound of what was cut off a node before it was branched on; infinite if nothing was."""

    def expand(self, node: NodeT, bound: float, cut: float) -> tuple[float, list[NodeT]]:
        """Bound a node, look for incumbents in it, and branch.

        Returns a proven bound of the node, at least ``bound``, and its children (none where it reaches ``cut``, or
        where the node was solved: then the bound is the one of its best weights).
        """

    def fork(self, number: int) -> Self:
        """The same search for another thread; see `Forkable`."""


@dataclass
class Frontier(Generic[NodeT]):
    """Open nodes by their proven bound.

    Attributes
    ----------
    expander : Expander
    control : Control
    energy : float
        f(0) in the units of the search, which is where an absolute tolerance comes from.
    root : NodeT
    root_bound : float
    unit, constant : float
        Reported values are ``unit · value + constant``.
    charge : float
        What certification deducts from a bound.
    """

    expander: Expander[NodeT]
    control: Control
    energy: float
    root: NodeT
    root_bound: float
    unit: float
    constant: float
    #: Nodes that are expanded in Python are worked on one at a time outside of kernels: more threads are of no use.
    most_threads: ClassVar[int] = 4
    nodes: int = 0
    closed: float = float("inf")
    charge: float = 0.0
    trace: list[TracePoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count = 0
        self.heap: list[tuple[float, int, NodeT]] = [(self.root_bound, 0, self.root)]
        #: One for each thread, as soon as there are several.
        self.expanders = [self.expander]
        #: Bounds of the nodes that threads are working on.
        self.busy: dict[int, float] = {}
        self.changed = threading.Condition()
        self.status: Status | None = None
        self.shown, self.known = self.control.elapsed(), self.expander.incumbent.value
        self.record()

    @property
    def threads(self) -> int:
        """How many threads may share the tree; a node limit asks for the same result whatever they do."""
        return min(self.control.threads, self.most_threads) if self.control.node_limit is None else 1

    @property
    def visited(self) -> int:
        """Nodes, with those that expanding a node has visited below it."""
        return self.nodes

    @property
    def finished(self) -> Status:
        """What it means that all nodes are closed."""
        return Status.GAP_REACHED if self.control.gap > 0 else Status.OPTIMAL

    @property
    def cut(self) -> float:
        """A bound that ends the work on a node: the gap asked for, or half the tolerance of ``optimal``."""
        upper = self.expander.incumbent.value
        # The certificate charges its own rounding: the gap asked for has to hold after that.
        gap = (self.control.gap - 1e-12) * upper - 1e-14 * self.energy - self.charge
        width = max(gap, 0.5 * OPTIMAL_RELATIVE * upper, 0.3 * OPTIMAL_ABSOLUTE * self.energy)
        return upper - width

    @property
    def lower(self) -> float:
        """The proven bound: the smallest of all open and closed nodes, and of what was cut off them."""
        opened = self.heap[0][0] if self.heap else float("inf")
        excluded = min(expander.excluded for expander in self.expanders)
        worked = min(self.busy.values(), default=float("inf"))
        return min(opened, worked, self.closed, excluded, self.expander.incumbent.value)

    def record(self) -> None:
        """Add a point to the trace."""
        lower, upper = self.lower, self.expander.incumbent.value
        self.trace.append(
            TracePoint(
                self.control.elapsed(),
                self.nodes,
                min(max(lower, 0.0), upper) * self.unit + self.constant,
                upper * self.unit + self.constant,
            )
        )

    def record_progress(self) -> None:
        """The same where there is a new incumbent, or where time has passed since the last point."""
        elapsed = self.control.elapsed()
        if self.expander.incumbent.value < self.known or elapsed > 1.2 * self.shown + 0.01:
            self.known, self.shown = self.expander.incumbent.value, elapsed
            self.record()

    def run(self) -> Status:
        """Work until the interval is closed or a limit is reached."""
        if self.threads == 1 or not self.heap[0][0] < self.cut:
            self._work(0)
        else:
            others = range(1, self.threads)
            self.expanders += [self.expander.fork(k) for k in others]
            with ThreadPoolExecutor(max_workers=len(others)) as pool:
                pending = [pool.submit(self._work, k) for k in others]
                self._work(0)
                for future in pending:
                    future.result()
        self.record()
        assert self.status is not None
        return self.status

    def limit(self) -> Status | None:
        """Which limit is reached."""
        control = self.control
        if control.node_limit is not None and self.visited >= control.node_limit:
            return Status.NODE_LIMIT
        if control.remaining() <= 0:
            return Status.INTERRUPTED if control.cancel.is_set() else Status.TIME_LIMIT
        return None

    def _work(self, number: int) -> None:
        """Expand nodes until there are none for any thread."""
        expander = self.expanders[number]
        try:
            while (task := self._take(number)) is not None:
                bound, node = task
                value, children = expander.expand(node, bound, self.cut)
                with self.changed:
                    del self.busy[number]
                    self.nodes += 1
                    if not children:
                        self.closed = min(self.closed, value)
                    for child in children:
                        self.count += 1
                        heapq.heappush(self.heap, (value, self.count, child))
                    self.record_progress()
                    self.changed.notify_all()
        except BaseException:
            # The others must not wait for this thread's node.
            with self.changed:
                self.status = Status.INTERRUPTED
                self.changed.notify_all()
            raise

    def _take(self, number: int) -> tuple[float, NodeT] | None:
        """The open node of smallest bound; None at the end of the search."""
        with self.changed:
            while self.status is None:
                if self.heap and self.heap[0][0] < self.cut:
                    self.status = self.limit()
                    if self.status is None:
                        bound, _, node = heapq.heappop(self.heap)
                        self.busy[number] = bound
                        return bound, node
                elif self.busy:
                    # Their children are still to come.
                    self.changed.wait()
                else:
                    self.status = self.finished
            self.changed.notify_all()
            return None
