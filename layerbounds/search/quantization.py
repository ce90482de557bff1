"""Branch and bound of one channel: incumbents, tilted root, learned weights, then searches below rising targets."""

from __future__ import annotations

import math

import numpy as np

from layerbounds.arrays import Float
from layerbounds.backends.base import ChannelTask, Control, DualPoint, RawSolve, SearchProof
from layerbounds.search.allowance import rounding_allowance, shift_charge
from layerbounds.search.incumbents import first_incumbents
from layerbounds.search.preparation import Preparation
from layerbounds.search.tree import Tree
from layerbounds.search.units import UnitProblem, make_units
from layerbounds.solution import OPTIMAL_RELATIVE, Status, TracePoint

#: Nodes between two looks at the clock.
CHUNK = 1 << 18
#: Nodes of the pilot search from which weights are learned.
PILOT = 30_000
#: Nodes that one attempt to close a channel at once may cost before targets rise step by step.
ATTEMPT = 1 << 23
#: More points than this within the rounding allowance of the optimum are not collected.
MANY_LEAVES = 20_000


class ChannelSearch:
    """State of the work on one channel; all values in grid units until the end.

    Parameters
    ----------
    task : ChannelTask
    prep : Preparation
    control : Control
    """

    def __init__(self, task: ChannelTask, prep: Preparation, control: Control) -> None:
        self.task = task
        self.control = control
        self.unit: UnitProblem = make_units(task, prep)
        self.upper, self.choice = first_incumbents(self.unit, task.warm_start)
        self.proven = 0.0
        self.trace: list[TracePoint] = []
        self.tree = Tree(self.unit)
        n = self.unit.size
        # A cut that nothing reaches drops no level: the bound holds for the whole grid.
        self.root = self.tree.restart(np.inf)
        if len(self.tree.sparse) > 0.15 * n and prep.covariance_error < 1e-9:
            # Where the box is active nearly everywhere, tilts are worth improving in the upper part of the tree.
            self.tree.steps[max(3 * n // 4, self.unit.prep.first_covariance) :] = 2
        self.record()

    def record(self) -> None:
        """Add a point to the trace, in the units of the Gram matrix."""
        m, c = self.unit.multiplier, self.task.constant
        lower = max(self.proven, self.root, 0.0) * m + c
        upper = self.upper * m + c
        self.trace.append(TracePoint(self.control.elapsed(), self.nodes, min(lower, upper), upper))

    @property
    def nodes(self) -> int:
        """Nodes so far."""
        return int(self.tree.nodes[0])

    @property
    def goal(self) -> float:
        """A proven bound that ends the work."""
        return self.upper * (1.0 - self.control.gap)

    def nodes_left(self) -> float:
        """Nodes that may still be spent."""
        limit = self.control.node_limit
        return math.inf if limit is None else limit - self.nodes

    def attempt(self, target: float, budget: float, learn: bool = False) -> bool:
        """Search everything below a target with a budget of nodes; True when that is exhausted."""
        self.tree.restart(target)
        end = self.nodes + min(budget, self.nodes_left())
        done = False
        while not done and self.nodes < end and self.control.remaining() > 0:
            done = self.tree.run(int(min(CHUNK, end - self.nodes)), learn)
        found = self.tree.found
        if found is not None:
            self.upper, self.choice = self.tree.cut, found
        if done:
            self.proven = max(self.proven, self.tree.cut)
        if done or found is not None:
            self.record()
        return done

    def rise(self) -> None:
        """Prove rising targets until the goal, or until a limit ends the work.

        The number of nodes grows about exponentially with the target, so each step is chosen for a given growth from
        the last two searches.
        """
        ratio = max(self.root / self.upper, 0.0)
        step = max((1.0 - ratio) / 32.0, 1e-3)
        last_nodes = 0.0
        last_ratio = ratio
        while self.proven < self.goal and self.nodes_left() > 0 and self.control.remaining() > 0:
            current = max(self.proven, self.root, 0.0) / self.upper
            target = min(self.upper * (current + step), self.goal)
            begin = self.nodes
            if not self.attempt(target, math.inf):
                return
            spent = max(self.nodes - begin, 1)
            if spent < 200_000:
                step *= 2.0
            elif last_nodes > 0 and spent > last_nodes and target / self.upper > last_ratio:
                slope = math.log(spent / last_nodes) / (target / self.upper - last_ratio)
                step = min(max(math.log(3.0) / slope, 0.25 * step), 2.0 * step)
            last_nodes, last_ratio = float(spent), target / self.upper

    def run(self) -> RawSolve:
        """Work until the interval is closed or a limit is reached."""
        n = self.unit.size
        if self.root < self.goal and self.control.remaining() > 0:
            if not self.attempt(self.goal, PILOT, learn=True):
                self.tree.learn(1 if n <= 80 else 4 if n <= 160 else 24)
                if n > 100 or not self.attempt(self.goal, ATTEMPT):
                    self.rise()
        else:
            self.proven = 0.0
        return self.result()

    def collect_leaves(self, slack: float) -> tuple[float, Float] | None:
        """All points up to a little above the incumbent, so that exact evaluation replaces the rounding allowance.

        Ill-conditioned Gram matrices need it: there the allowance alone leaves a visible gap. Gives up where too many
        points tie (duplicated inputs).
        """
        tree = self.tree
        cut = self.upper + slack
        tree.restart(cut)
        leaves: list[Float] = []
        end = self.nodes + min(ATTEMPT, self.nodes_left())
        while self.nodes < end and self.control.remaining() > 0:
            done = tree.run(CHUNK, collect=True)
            leaf = tree.take()
            if leaf is not None:
                leaves.append(self.unit.weights_of(self.unit.levels[leaf, np.arange(self.unit.size)]))
                if len(leaves) > MANY_LEAVES:
                    return None
            if done:
                return cut, np.array(leaves).reshape(-1, self.unit.size)
        return None

    def result(self) -> RawSolve:
        """What was found and what it proves, in the units of the Gram matrix."""
        unit, tree = self.unit, self.tree
        n = unit.size
        m = unit.multiplier
        proof = None
        if self.proven > 0:
            proof = SearchProof(self.proven * m, self.allowance(self.proven) * m)
            slack = 4.0 * self.allowance(self.upper)
            if self.proven >= self.upper and 0.1 * OPTIMAL_RELATIVE * self.upper < slack < self.upper:
                collected = self.collect_leaves(slack)
                if collected is not None:
                    cut, leaves = collected
                    proof = SearchProof(cut * m, self.allowance(cut) * m, leaves)
        points = unit.levels[self.choice, np.arange(n)]
        dual = DualPoint(unit.weights_of(tree.z[n]), self._in_layer_order(tree.minorants[n] * m / unit.scale**2))
        return RawSolve(
            weights=unit.weights_of(points),
            termination=self._termination(),
            proof=proof,
            dual=dual,
            nodes=self.nodes,
            trace=tuple(self.trace),
        )

    def allowance(self, cut: float) -> float:
        """What rounding and the shift of a singular Gram matrix can have hidden below a cut, in grid units."""
        tree = self.tree
        rounding = rounding_allowance(self.unit, cut, tree.extreme, tree.reach, tree.root_error)
        return (rounding + shift_charge(self.unit)) * (1.0 + 1e-12)

    def _in_layer_order(self, values: Float) -> Float:
        result = np.empty_like(values)
        result[self.unit.prep.order] = values
        return result

    def _termination(self) -> Status:
        if max(self.proven, self.root) >= self.goal:
            return Status.GAP_REACHED if self.control.gap > 0 else Status.OPTIMAL
        if self.control.cancel.is_set():
            return Status.INTERRUPTED
        return Status.NODE_LIMIT if self.nodes_left() <= 0 else Status.TIME_LIMIT


def search_channel(task: ChannelTask, prep: Preparation, control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    return ChannelSearch(task, prep, control).run()

