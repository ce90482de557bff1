"""Branch and bound of one channel: incumbents, tilted root, learned weights, then searches below rising targets."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.quantization.block_forms import refine_block_forms
from layerbounds.bounds.quantization.block_relaxation import ROUNDS, BlockRelaxation, refine_blocks
from layerbounds.bounds.quantization.relaxation import refine
from layerbounds.bounds.quantization.split_relaxation import SplitRelaxation, SplitWeights, refine_split
from layerbounds.certify.interval import certify
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import (
    OPTIMAL_ABSOLUTE,
    OPTIMAL_RELATIVE,
    BlockDual,
    Control,
    DualPoint,
    Enumeration,
    FormTerms,
    FormTests,
    RawSolve,
    SearchProof,
    Status,
    TracePoint,
)
from layerbounds.search.quantization.allowance import rounding_allowance, shift_charge
from layerbounds.search.quantization.block_choice import block_members
from layerbounds.search.quantization.box_tree import BoxTree
from layerbounds.search.quantization.companion import Companion
from layerbounds.search.quantization.exact_levels import MOST_INPUTS, close_exactly
from layerbounds.search.quantization.given_start import given_relaxation
from layerbounds.search.quantization.grid_units import UnitProblem, make_units
from layerbounds.search.quantization.incumbents import first_incumbents
from layerbounds.search.quantization.neighbourhoods import Neighbourhoods
from layerbounds.search.quantization.preparation import Preparation, order_exponent, prepare
from layerbounds.search.quantization.split_forms import LARGEST, find_split, prepare_split
from layerbounds.search.quantization.team import Team
from layerbounds.search.quantization.tree import Root, Tree
from layerbounds.search.rising import Rising

#: Nodes between two looks at the clock, for up to 64 variables; fewer for larger problems.
CHUNK = 1 << 18
#: Chunks of a search before other threads join; and how many times shorter theirs are, as between two of them they take
#: work from one another.
ALONE, SHORTER = 2, 16
#: Nodes of the pilot search from which weights are learned.
PILOT = 30_000
#: Attempts to close a small channel at once, before targets rise step by step: calls of the large-neighbourhood search
#: before it, nodes that it may cost, and the largest number of variables for which it is worth that.
ATTEMPTS = ((2, 1 << 23, 96), (20, 1 << 27, 70))
#: Share of what is left of the limits that an attempt may take.
ATTEMPT_SHARE = 0.4
#: Share of the time limit for better points before the targets rise; small channels have had theirs in the attempts.
LNS_SHARE = 0.25
#: Largest number of variables for which trees close channels whatever the root is.
CLOSE_AT_ONCE = 70
#: Nodes that one call of the large-neighbourhood search counts for under a node limit.
NODES_PER_CALL = 100_000
#: Up to so many variables so many calls find what there is to find.
SMALL, SMALL_CALLS = 100, 80
#: Refits of the root's weights: of the diagonal or under a node limit, and of split cuts while there is time.
REFITS, MANY_REFITS = 5, 60
#: Seconds per cubed number of variables that the root's first factorization and inverse take.
RELAX_CUBIC = 1.5e-10
#: Share of the inputs that have to have a single level for an order of the channel's own; and the seconds of the time
#: limit, per cubed number of variables, that its preparation has to be a small part of.
FEWEST_SINGLE, PREPARE_CUBIC = 0.05, 4e-6
#: Fewest refits of a block-diagonal minorant that are worth having, and of one with integer forms; and the share of the
#: incumbent from which on the latter is the better one of large problems.
FEWEST_ROUNDS, FEWEST_BOTH_ROUNDS, FAR = 3, 10, 0.2
#: Up to so many variables the tree gets further than any root; shares of the time limit that the root may take.
TREE_DECIDES, SMALL_RELAX_SHARE, RELAX_SHARE = 160, 0.05, 0.5
#: Seconds between two points of its trace.
RECORD_EVERY = 0.5
#: A search of so many nodes teaches the minorants; the first searches may cost so many at most.
LEARN_FROM, FIRST_BUDGET = 3e5, 2e7
#: The same where the root may be out of the tree's reach.
SMALL_FIRST_BUDGET = 2e6
#: More points than this within the rounding allowance of the optimum are not collected.
MANY_LEAVES = 20_000
#: Nodes for the collection of points, and where the allowance exceeds the incumbent: only few points are worth it.
LEAF_NODES, WIDE_NODES = 1 << 23, 1 << 19


class ChannelSearch:
    """State of the work on one channel; all values in grid units until the end.

    Parameters
    ----------
    task : Task
    prep : Preparation
    control : Control
    """

    def __init__(self, task: Task[Levels], prep: Preparation, control: Control) -> None:
        self.task = task
        self.control = control
        self.unit: UnitProblem = make_units(task, prep)
        self.upper, self.choice = first_incumbents(self.unit, task.warm_start)
        self.neighbourhoods = self._make_neighbourhoods(control.seed, task.channel)
        self.companion: Companion | None = None
        self.proven = 0.0
        self.exhausted = False
        self._box_nodes = 0
        self.relaxation: Root | None = None
        #: A relaxation with integer forms, from which a best-first search can begin, and that from which one began.
        self.with_forms: SplitRelaxation | BlockRelaxation | None = None
        self.boxes: SplitRelaxation | BlockRelaxation | None = None
        self.trace: list[TracePoint] = []
        self.tree = Tree(self.unit)
        n = self.unit.size
        self.chunk = max(4096, CHUNK * 64 // max(n, 64))
        #: Depths between two learned minorants: each costs a barrier solve.
        self.stride = 1 if n <= 80 else 4 if n <= 160 else 24
        # A cut that nothing reaches drops no level: the bound holds for the whole grid.
        self.root = self.tree.restart(np.inf)
        if len(self.tree.sparse) > 0.15 * n and prep.covariance_error < 1e-9:
            # Where the box is active nearly everywhere, tilts are worth improving in the upper part of the tree.
            self.tree.steps[max(3 * n // 4, self.unit.prep.first_covariance) :] = 2
        self.record()

    def _make_neighbourhoods(self, *seed: int) -> Neighbourhoods:
        unit = self.unit
        return Neighbourhoods(
            unit.gram, unit.origin, unit.levels.T, unit.count, self.choice, self.upper, np.random.default_rng(seed),
            unit.covariance,
        )  # fmt: skip

    def record(self) -> None:
        """Add a point to the trace, in the units of the Gram matrix."""
        m, c = self.unit.multiplier, self.task.constant
        lower = max(self.proven, self.root, 0.0) * m + c
        upper = self.upper * m + c
        self.trace.append(TracePoint(self.control.elapsed(), self.nodes, min(lower, upper), upper))

    @property
    def nodes(self) -> int:
        """Nodes so far."""
        return int(self.tree.nodes[0]) + self._box_nodes

    @property
    def goal(self) -> float:
        """A proven bound that ends the work: with a margin, so that certification still finds the gap reached."""
        gap = self.control.gap
        if gap == 0.0:
            return self.upper
        return min(self.upper, self.upper * (1.0 - 0.999 * gap) + 2.0 * self.allowance(self.upper))

    @property
    def finished(self) -> bool:
        """Whether nothing below the incumbent is left, or the gap that was asked for is reached."""
        return self.exhausted or max(self.proven, self.root) >= self.goal

    @property
    def threads(self) -> int:
        """Threads that share a search; a node limit asks for the same result whatever their number."""
        if self.control.node_limit is not None:
            return 1
        return max(self.control.threads - (self.companion is not None and self.companion.busy), 1)

    @property
    def alone(self) -> float:
        """Nodes of a search before others join."""
        return ALONE * self.chunk if self.threads > 1 else math.inf

    def nodes_left(self) -> float:
        """Nodes that may still be spent."""
        limit = self.control.node_limit
        return math.inf if limit is None else limit - self.nodes

    def attempt(self, target: float, budget: float, learn: bool = False, share: float = 1.0) -> bool:
        """Search everything below a target with a budget of nodes and a share of what is left of the limits.

        True when that is exhausted.
        """
        self.tree.restart(target)
        timed = self.control.node_limit is None
        end = self.nodes + min(budget, self.nodes_left() * (1.0 if timed else share))
        spared = self.control.remaining() * (1.0 - share) if timed else 0.0
        alone = min(end, self.nodes + self.alone)
        done = False
        while not done and self.nodes < alone and self.control.remaining() > spared:
            done = self.tree.run(int(min(self.chunk, end - self.nodes)), learn)
        if not done and self.nodes < end and self.control.remaining() > spared:
            done = self._team(end, spared, learn).run()
        found = self.tree.found
        everything = target >= self.upper
        if found is not None and (value := self._objective(found)) < self.upper:
            self.upper, self.choice = value, found
        if done:
            self.proven = max(self.proven, self.tree.cut)
            self.exhausted = self.exhausted or everything
        if done or found is not None:
            self.record()
        return done

    def _team(self, end: float, spared: float, learn: bool = False, most_leaves: int | None = None) -> Team:
        """All threads, for the rest of a search: until so many nodes, and while more than so many seconds are left."""
        other = self._box_nodes

        def stop(nodes: int) -> bool:
            return nodes + other >= end or self.control.remaining() <= spared

        return Team(self.tree, self.threads, max(self.chunk // SHORTER, 1), stop, learn, most_leaves)

    def _objective(self, choice: Int) -> float:
        """Centred objective of a choice of levels, in grid units."""
        deviation = self.unit.levels[choice, np.arange(self.unit.size)] - self.unit.origin
        return float(deviation @ (self.unit.gram @ deviation))

    def weights(self, choice: Int) -> Float:
        """The levels that a choice stands for, in the layer's order."""
        order = self.unit.prep.order
        result = np.empty(self.unit.size)
        result[order] = self.task.allowed.values[order, choice]
        return result

    def improve(self, calls: float, share: float = 1.0) -> None:
        """Large-neighbourhood search: so many calls, a second thread's included, in a share of the time limit."""
        self._adopt()
        end = self.control.elapsed() + share * self.control.time_limit
        self.neighbourhoods.adopt(self.upper, self.choice)
        done = 0
        while done + self._companion_calls < calls and self.control.remaining() > 0:
            if self.control.node_limit is None and self.control.elapsed() >= end:
                break
            done += 1
            if self.neighbourhoods.improve():
                self.upper, self.choice = self.neighbourhoods.value, self.neighbourhoods.best.copy()
                self.record()

    @property
    def _companion_calls(self) -> int:
        return 0 if self.companion is None else self.companion.calls

    def _calls(self) -> float:
        """Calls of the large-neighbourhood search before the targets rise; time may end it earlier."""
        most = SMALL_CALLS if self.unit.size <= SMALL else math.inf
        limit = self.control.node_limit
        return most if limit is None else min(most, 0.25 * limit / NODES_PER_CALL)

    def relax(self) -> None:
        """The best bound at the root: the tangent relaxation with a diagonal, with blocks, and with split cuts."""
        unit, n = self.unit, self.unit.size
        timed = self.control.node_limit is None
        given = given_relaxation(self.task.start, unit)
        self._adopt_relaxation(given)
        if timed and self.control.remaining() < RELAX_CUBIC * n**3:
            return
        share = SMALL_RELAX_SHARE if n <= TREE_DECIDES else RELAX_SHARE
        deadline = self.control.elapsed() + share * self.control.time_limit

        def stop() -> bool:
            return (timed and self.control.elapsed() > deadline) or self.control.remaining() <= 0

        problem = unit.gram, unit.origin, unit.levels
        blocks = n > CLOSE_AT_ONCE
        forms = unit.uniform and len(unit.levels) > 2 and n <= LARGEST
        d, start = unit.minorants[n], self.tree.z[n]
        if given is not None and given.value >= self.root:
            # What bounded all channels together is where this one goes on.
            d, start = given.d, given.z
        plain = refine(*problem, unit.count, d, start, 0 if blocks or forms else REFITS, stop)
        self._adopt_relaxation(plain)
        members = block_members(unit.prep) if blocks else None
        # Forms with a few refits are worth less than blocks alone; far from the optimum both converge too slowly.
        enough = not timed or both_rounds(n, deadline - self.control.elapsed()) >= FEWEST_BOTH_ROUNDS
        both = members is not None and forms and enough and (n <= TREE_DECIDES or plain.value > FAR * self.upper)
        split = None
        if both or (forms and (not blocks or n > TREE_DECIDES)):
            split = prepare_split(unit.prep) if unit.shared_forms else find_split(unit.gram, unit.minorants[n], stop)
        if both and members is not None:
            self.with_forms = self._relax_with_both(split, plain.z, members, deadline if timed else math.inf)
            self._adopt_relaxation(self.with_forms)
        if self.with_forms is not None and self.with_forms.value > plain.value:
            return
        rounds = block_rounds(n, deadline - self.control.elapsed()) if timed else ROUNDS
        if members is not None and rounds:
            alone = refine_blocks(*problem, unit.count, d, start, members, rounds, stop)
            self._adopt_relaxation(alone)
            if alone is not None and unit.uniform:
                nothing = FormTerms(np.zeros((n, 0)), np.zeros(0), np.zeros(0))
                self.with_forms = replace(alone, split=nothing)
        if split is not None and (not blocks or n > TREE_DECIDES):
            rounds = MANY_REFITS if timed else REFITS
            self.with_forms = refine_split(unit.gram, unit.covariance, *problem[1:], split, plain.z, rounds, stop)
            self._adopt_relaxation(self.with_forms)

    def _relax_with_both(
        self, split: SplitWeights | None, start: Float, members: list[Int], deadline: float
    ) -> BlockRelaxation | None:
        """Blocks and integer forms in one relaxation."""
        unit, n, began = self.unit, self.unit.size, self.control.elapsed()
        if split is None:
            split = SplitWeights.without_forms(unit.minorants[n])

        def spent() -> float:
            if self.control.remaining() <= 0:
                return 1.0
            return (self.control.elapsed() - began) / max(deadline - began, 1e-9)

        return refine_block_forms(
            unit.gram, unit.covariance, unit.origin, unit.levels, unit.count, split, start, members, spent=spent
        )

    def _adopt_relaxation(self, found: Root | None) -> None:
        if found is None:
            return
        self.tree.relaxations.append(found)
        if found.value > self.root:
            self.root, self.relaxation = found.value, found
            self.record()

    def _branch_on_boxes(self) -> None:
        """Best-first search from the root's relaxation with integer forms, or blocks."""
        found = self.with_forms
        if self.control.node_limit is not None or found is None or not self.unit.shared_forms:
            return
        tree, self.boxes = BoxTree(self.unit, found), found
        record_at = 0.0

        def pause() -> bool:
            return self.control.remaining() <= 0 or self.control.elapsed() > record_at

        while self.control.remaining() > 0 and not self.finished and not tree.full:
            self._adopt()
            record_at = self.control.elapsed() + RECORD_EVERY
            self.proven = max(self.proven, tree.grow(self.goal, pause))
            self._box_nodes = tree.nodes
            if tree.point is not None:
                choice = tree.point.astype(np.int64)
                if (value := self._objective(choice)) < self.upper:
                    self.upper, self.choice = value, choice
            self.record()
        # A second tree would do the same again.
        self.with_forms = None

    def rise(self) -> None:
        """Prove rising targets until the goal, or until a limit ends the work.

        Each search is meant to take a given part of what is left; one that runs over is given up and aimed lower.
        """
        learned = False
        ratio = max(self.root / self.upper, 0.0)
        rising = Rising(max((1.0 - ratio) / 24.0, 1e-3), 2.0 * PILOT)
        while not self.finished and self.nodes_left() > 0 and self.control.remaining() > 0:
            self._adopt()
            current = max(self.proven, self.root, 0.0) / self.upper
            target = min(current + rising.step, self.goal / self.upper)
            begin, started = self.nodes, self.control.elapsed()
            # Near the targets that matter the distances differ from the pilot's: learn once more.
            learn = rising.measured and not learned
            first = FIRST_BUDGET if self.unit.size <= TREE_DECIDES else SMALL_FIRST_BUDGET
            done = self.attempt(self.upper * target, rising.budget(first), learn)
            spent = float(max(self.nodes - begin, 1))
            if not done:
                rising.missed()
                if not rising.measured and self.unit.size > TREE_DECIDES:
                    self._branch_on_boxes()
                continue
            if learn and spent > LEARN_FROM:
                self.tree.learn(self.stride)
                learned = True
            rising.reached(target, spent, self.available(spent, self.control.elapsed() - started))

    def _adopt(self) -> None:
        """Take over a better point of the other thread."""
        if self.companion is None:
            return
        value, choice = self.companion.best()
        if value < self.upper:
            self.upper, self.choice = value, choice
            self.record()

    def available(self, spent: float, seconds: float) -> float:
        """How many searches of some nodes or seconds fit into what is left of the limits."""
        if self.control.node_limit is not None:
            return self.nodes_left() / spent
        return self.control.remaining() / max(seconds, 1e-3)

    def run(self) -> RawSolve:
        """Work until the interval is closed or a limit is reached."""
        if not self.finished and self.control.remaining() > 0:
            self.attempt(self.goal, PILOT, learn=True)
            if not self.finished:
                self.tree.learn(self.stride)
            for calls, budget, largest in ATTEMPTS:
                if self.unit.size <= largest and not self.finished:
                    self.improve(calls)
                    self.attempt(self.goal, budget, share=ATTEMPT_SHARE)
            if not self.finished:
                self._close_in()
        if self.root >= self.goal:
            self.proven = max(self.proven, self.root)
        return self.result()

    def _close_in(self) -> None:
        """Relax the root, look for better points, prove rising targets; a second thread looks beside the first."""
        # A node limit asks for the same result whatever the threads do.
        if self.control.threads > 1 and self.control.node_limit is None:
            other = self._make_neighbourhoods(self.control.seed, self.task.channel, 1)
            self.companion = Companion(other, self.control, self._calls())
        try:
            self.relax()
            self.improve(self._calls(), LNS_SHARE if self.unit.size > CLOSE_AT_ONCE else 0.2 * LNS_SHARE)
            if self.companion is not None and self.unit.size <= SMALL:
                # There is hardly anything better to find: both threads search.
                self.companion.stop()
            self.rise()
        finally:
            if self.companion is not None:
                self.companion.stop()
                self._adopt()

    def collect_leaves(self, slack: float) -> tuple[float, Float] | None:
        """All weights up to a little above the incumbent, so that exact evaluation replaces the rounding allowance.

        Ill-conditioned Gram matrices need it: there the allowance alone leaves a visible gap. Gives up where too many
        points tie (duplicated inputs).
        """
        tree = self.tree
        cut = self.upper + slack
        tree.restart(cut)
        leaves: list[Float] = []
        most = LEAF_NODES if slack < self.upper else WIDE_NODES
        end = self.nodes + min(most, self.nodes_left())
        alone = min(end, self.nodes + self.alone)
        while self.nodes < alone and self.control.remaining() > 0:
            done = tree.run(int(min(self.chunk, end - self.nodes)), collect=True)
            leaf = tree.take()
            if leaf is not None:
                leaves.append(self.weights(leaf))
                if len(leaves) > MANY_LEAVES:
                    return None
            if done:
                return cut, np.array(leaves).reshape(-1, self.unit.size)
        if self.nodes < end and self.control.remaining() > 0:
            team = self._team(end, 0.0, most_leaves=MANY_LEAVES - len(leaves))
            if team.run():
                leaves += [self.weights(leaf) for leaf in team.leaves]
                return cut, np.array(leaves).reshape(-1, self.unit.size)
        return None

    def result(self) -> RawSolve:
        """What was found and what it proves, in the units of the Gram matrix."""
        task, m = self.task, self.unit.multiplier
        weights = self.weights(self.choice)
        proof = SearchProof(self.proven * m, self.allowance(self.proven) * m) if self.proven > 0 else None
        if self.exhausted or self.proven >= self.upper:
            slack = 4.0 * self.allowance(self.upper) + 2.0 * max(self.upper - self.proven, 0.0)
            if slack > max(0.1 * OPTIMAL_RELATIVE * self.upper, OPTIMAL_ABSOLUTE * task.energy / m):
                collected = self.collect_leaves(slack)
                if collected is not None:
                    cut, leaves = collected
                    proof = SearchProof(cut * m, self.allowance(cut) * m, leaves)
                    weights = _best_leaf(task, [weights, *leaves])
        if proof is not None:
            boxes = None if self.boxes is None else self._as_dual(self.boxes)
            proof = replace(proof, enumeration=self._enumeration(), boxes=boxes)
        return RawSolve(
            weights=weights,
            termination=self._termination(),
            proof=proof,
            dual=self._dual_point(),
            nodes=self.nodes,
            trace=tuple(self.trace),
        )

    def _enumeration(self) -> Enumeration:
        """The last search, in the layer's units."""
        unit = self.unit
        per_weight, forms = unit.multiplier / unit.scale**2, None
        schedule = self.tree.cuts.schedule()
        if schedule is not None:
            depths, units, weights = schedule
            forms = FormTests(self.tree.cuts.forms, depths, units * per_weight, weights * unit.multiplier)
        point = unit.weights_of(self.tree.z[unit.size])
        return Enumeration(unit.prep.order.astype(np.int64), point, self.tree.minorants * per_weight, forms)

    def _dual_point(self) -> DualPoint | BlockDual:
        """The root's bound for certification, in the layer's units and order."""
        unit, m, found = self.unit, self.unit.multiplier, self.relaxation
        if isinstance(found, BlockRelaxation | SplitRelaxation):
            return self._as_dual(found)
        z, d = self.tree.z[unit.size], unit.minorants[unit.size]
        if found is not None:
            z, d = found.z, found.d
        return DualPoint(unit.weights_of(z), self._in_layer_order(d * (m / unit.scale**2)))

    def _as_dual(self, found: BlockRelaxation | SplitRelaxation) -> DualPoint | BlockDual:
        unit, m = self.unit, self.unit.multiplier
        z = unit.weights_of(found.z)
        if isinstance(found, SplitRelaxation):
            d = self._in_layer_order(found.split.units * (m / unit.scale**2))
            return DualPoint(z, d, self._forms_as_dual(found.form_terms))
        matrix = found.matrix * (m / np.outer(unit.scale, unit.scale))
        matrix = self._in_layer_order(self._in_layer_order(matrix).T)
        split = None if found.split is None else self._forms_as_dual(found.split)
        block = np.empty_like(found.block)
        block[unit.prep.order] = found.block
        return BlockDual(z, block, matrix, split)

    def _forms_as_dual(self, forms: FormTerms) -> FormTerms:
        return replace(forms.scaled(self.unit.multiplier), forms=self._in_layer_order(forms.forms))

    def allowance(self, cut: float) -> float:
        """What rounding and the shift of a singular Gram matrix can have hidden below a cut, in grid units."""
        tree = self.tree
        rounding = rounding_allowance(self.unit, cut, tree.extreme, tree.reach, tree.root_error, tree.cuts)
        return (rounding + shift_charge(self.unit)) * (1.0 + 1e-12)

    def _in_layer_order(self, values: Float) -> Float:
        result = np.empty_like(values)
        result[self.unit.prep.order] = values
        return result

    def _termination(self) -> Status:
        if self.finished:
            return Status.GAP_REACHED if self.control.gap > 0 else Status.OPTIMAL
        if self.control.cancel.is_set():
            return Status.INTERRUPTED
        if self.nodes_left() <= 0:
            return Status.NODE_LIMIT
        return Status.TIME_LIMIT if self.control.remaining() <= 0 else Status.UNRESOLVED


def _best_leaf(task: Task[Levels], leaves: list[Float]) -> Float:
    """The weights of least error, as far as extended precision can tell."""
    deviation = np.array(leaves, dtype=np.longdouble) - task.target
    errors = np.sum((deviation @ task.gram.astype(np.longdouble)) * deviation, axis=1)
    return leaves[int(np.argmin(errors))]


def block_rounds(n: int, seconds: float) -> int:
    """Refits of a block-diagonal minorant that fit into some seconds, by what they cost on one core of 2 to 3 GHz."""
    fit = seconds / (6e-10 * n**3 + 3e-4 * n)
    return 0 if fit < 1.0 else int(np.clip(fit, FEWEST_ROUNDS, ROUNDS))


def both_rounds(n: int, seconds: float) -> float:
    """The same of blocks and integer forms together."""
    return seconds / (1.6e-9 * n**3 + 1.3e-4 * n)


def own_preparation(task: Task[Levels], prep: Preparation, control: Control) -> Preparation:
    """The layer's, or one in which inputs that have no choice are fixed first: the others' bounds are then as without.

    The tree alone has that from it, so that it is only for channels that trees decide, and where it does not take much
    of the time limit.
    """
    n, single = prep.size, np.flatnonzero(task.allowed.count == 1)
    worth = FEWEST_SINGLE * n <= len(single) < n and n <= TREE_DECIDES
    if not worth or control.time_limit < PREPARE_CUBIC * n**3:
        return prep
    return prepare(task.gram, order_exponent(n), first=tuple(single.tolist()))


def search_channel(task: Task[Levels], prep: Preparation, control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    search = ChannelSearch(task, own_preparation(task, prep, control), control)
    few = len(task.target) <= MOST_INPUTS and control.node_limit is None
    if few:
        start = search.weights(search.choice)
        begun = RawSolve(start, Status.UNRESOLVED, trace=tuple(search.trace))
        closed = close_exactly(task, control, begun, start, uneven=True)
        if closed is not None:
            return closed
    raw = search.run()
    if few and control.remaining() > 0:
        certified = certify(task, raw, control.gap)
        if certified.status == Status.UNRESOLVED:
            closed = close_exactly(task, control, raw, certified.weights)
            return raw if closed is None else closed
    return raw
