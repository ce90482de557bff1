"""Best-first branch and bound: a heap of open nodes, the incumbent, limits and the trace."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from layerbounds.arrays import Float
from layerbounds.backends.base import Control
from layerbounds.solution import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Status, TracePoint

NodeT = TypeVar("NodeT")


@dataclass
class Incumbent:
    """The best feasible weights so far.

    Attributes
    ----------
    value : float
        Their objective in the units of the search.
    weights : ndarray of shape (n,)
    """

    value: float
    weights: Float


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
    """

    expander: Expander[NodeT]
    control: Control
    energy: float
    root: NodeT
    root_bound: float
    unit: float
    constant: float
    nodes: int = 0
    closed: float = float("inf")
    trace: list[TracePoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count = 0
        self.heap: list[tuple[float, int, NodeT]] = [(self.root_bound, 0, self.root)]
        self.record()

    @property
    def cut(self) -> float:
        """A bound that ends the work on a node: the gap asked for, or half the tolerance of ``optimal``."""
        upper = self.expander.incumbent.value
        # The certificate charges its own rounding: the gap asked for has to hold after that.
        gap = (self.control.gap - 1e-12) * upper - 1e-14 * self.energy
        width = max(gap, 0.5 * OPTIMAL_RELATIVE * upper, 0.3 * OPTIMAL_ABSOLUTE * self.energy)
        return upper - width

    @property
    def lower(self) -> float:
        """The proven bound: the smallest of all open and closed nodes, and of what was cut off them."""
        opened = self.heap[0][0] if self.heap else float("inf")
        return min(opened, self.closed, self.expander.excluded, self.expander.incumbent.value)

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

    def run(self) -> Status:
        """Work until the interval is closed or a limit is reached."""
        control = self.control
        shown = control.elapsed()
        known = self.expander.incumbent.value
        while self.heap and self.heap[0][0] < self.cut:
            if control.node_limit is not None and self.nodes >= control.node_limit:
                return self._stop(Status.NODE_LIMIT)
            if control.remaining() <= 0:
                return self._stop(Status.INTERRUPTED if control.cancel.is_set() else Status.TIME_LIMIT)
            bound, _, node = heapq.heappop(self.heap)
            value, children = self.expander.expand(node, bound, self.cut)
            self.nodes += 1
            if not children:
                self.closed = min(self.closed, value)
            for child in children:
                self.count += 1
                heapq.heappush(self.heap, (value, self.count, child))
            elapsed = control.elapsed()
            if self.expander.incumbent.value < known or elapsed > 1.2 * shown + 0.01:
                known, shown = self.expander.incumbent.value, elapsed
                self.record()
        return self._stop(Status.GAP_REACHED if control.gap > 0 else Status.OPTIMAL)

    def _stop(self, status: Status) -> Status:
        self.record()
        return status
