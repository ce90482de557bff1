"""Branch and bound of one channel over all scales: incumbents, then searches of all cells below rising targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Control, ScaleDual, Status, TracePoint
from layerbounds.search.quantization.preparation import Preparation
from layerbounds.search.rising import Rising
from layerbounds.search.scale.allowance import float_charge, ray_allowance, shift_charge
from layerbounds.search.scale.cells import cells
from layerbounds.search.scale.envelope import Envelope
from layerbounds.search.scale.incumbents import Codes, ScaleNeighbourhoods, first_incumbents
from layerbounds.search.scale.rays import RayTree, make_ray

#: Nodes between two looks at the clock, for up to 64 variables; fewer for larger problems.
CHUNK = 1 << 17
#: Attempts to close a channel at once, before targets rise step by step: calls of the large-neighbourhood search
#: before it, nodes that it may cost, and the share of what is left of the limits that it may take.
ATTEMPTS = ((10, 1 << 20, 0.4), (30, 1 << 23, 0.4), (60, 1 << 27, 0.7))
#: Shares of the upper bound that are proven where the first attempt fails, so that a limit that ends the next ones
#: leaves a bound, and the nodes that each may cost.
FLOORS, FLOOR_NODES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8), 1 << 16
#: Share of what is left of the limits that one of these may take.
FLOOR_SHARE = 0.4
#: Largest number of variables for which closing a channel at once is tried.
CLOSE_AT_ONCE = 90
#: Share of the time limit for better points before the targets rise.
INCUMBENT_SHARE = 0.25
#: Up to so many inputs the trees get further than dual points; shares of the time limit that these may take.
TREE_DECIDES, SMALL_ENVELOPE_SHARE, ENVELOPE_SHARE = 160, 0.05, 0.5
#: Larger layers have dual points only.
LARGEST_TREE = 400
#: Seconds, and seconds per squared number of inputs, that dual points take where the limits left no time for them.
LATE_SECONDS, LATE_SQUARE = 0.1, 2e-7
#: Seconds per cubed number of inputs that the certification of dual points takes.
CERTIFY_CUBIC = 2e-10
#: The same for each dual point and number of inputs, and its square; the most of the time limit that is kept for it.
CERTIFY_LINEAR, CERTIFY_SQUARE, MOST_KEPT = 1.2e-5, 2e-9, 0.1
#: Boxes whose incumbents get neighbourhoods of their own.
BEST_BOXES = 3
#: Seconds between two points of the dual points' trace.
RECORD_EVERY = 0.5
#: Nodes that one call of the large-neighbourhood search counts for under a node limit.
NODES_PER_CALL = 100_000
#: Nodes that the first searches may cost, and below which a search counts as cheap.
FIRST_BUDGET, CHEAP = 1e7, 6e4
#: More points than this within the rounding allowance of the optimum are not collected; nodes of the collection.
MANY_LEAVES, COLLECT_NODES = 20_000, 1 << 23
#: Targets next to f(0) would need arbitrarily small scales.
BELOW_ENERGY = 1.0 - 1e-7


@dataclass(eq=False)
class Box:
    """A list of codes at all scales, and the cells of scales that remain.

    Attributes
    ----------
    channel : Codes
    tree : RayTree
    cells : ndarray of shape (cells, 2), or None
        Least and largest t of each, in units of the common scale; None where not all scales can be excluded.
    excluded : ndarray
        For each cell, the largest cut at which its root excluded it, and the allowance of that test.
    """

    channel: Codes
    tree: RayTree
    cells: Float | None = None
    excluded: Float = field(default_factory=lambda: np.zeros((0, 2)))


@dataclass(frozen=True, eq=False)
class Found:
    """Codes at a scale."""

    error: float
    box: int
    codes: Float
    scale: float


@dataclass(frozen=True, eq=False)
class RayResult:
    """What the search over all scales found and proved, in the order of the inputs and the units of the Gram matrix.

    Attributes
    ----------
    best : Found
        Codes in the order of the inputs.
    proven, allowance : float
        Nothing below ``proven`` is left, but for what rounding may have hidden.
    leaves : list of Found, or None
        With it, what was visited below ``proven`` are these scales and codes.
    dual : ScaleDual or None
        What bounds the error without a search.
    """

    best: Found
    proven: float
    allowance: float
    leaves: list[Found] | None
    dual: ScaleDual | None
    termination: Status
    nodes: int
    trace: tuple[TracePoint, ...]


class ScaleSearch:
    """State of the work on one channel.

    Parameters
    ----------
    prep : Preparation
    gram : ndarray of shape (n, n)
        What was prepared, in the order of the inputs.
    target : ndarray of shape (n,)
        w, in the order of the inputs.
    dropped : tuple of int
        With real zero points, the input from which weights are counted.
    boxes : list of ndarray
        The lists of codes whose unions over all scales are allowed.
    limit : float
        Largest weight that is allowed.
    powers : bool
        Whether scales are powers of two.
    constant : float
        Part of the error that no weights repair: for gaps and traces.
    control : Control
    seed : tuple of int
    starts : list of (box, codes)
        Known codes, in the order of the inputs.
    rounding : callable, optional
        With real zero points, where weights are rounded and not what is searched: what that can lower errors just
        below a cut.
    """

    def __init__(
        self,
        prep: Preparation,
        gram: Float,
        target: Float,
        dropped: tuple[int, ...],
        boxes: list[Float],
        limit: float,
        powers: bool,
        constant: float,
        control: Control,
        seed: tuple[int, ...],
        starts: list[tuple[int, Float]],
        rounding: Callable[[float], float] | None = None,
    ) -> None:
        self.prep, self.control, self.limit, self.powers, self.constant = prep, control, limit, powers, constant
        self._rounding = rounding
        self._input_order = gram, target, dropped, boxes
        self.target = np.ascontiguousarray(target[prep.order])
        #: A bound without a search.
        self.root = 0.0
        self.envelope: Envelope | None = None
        self.energy = max(float(self.target @ (prep.gram @ self.target)), 0.0)
        self.trace: list[TracePoint] = []
        self.nodes_counted = np.zeros(1, dtype=np.int64)
        self.proven = 0.0
        self.exhausted = False
        self.allowance = 0.0
        channels = [Codes(prep.gram, self.target, codes, limit, powers) for codes in boxes]
        found = []
        for index, channel in enumerate(channels):
            own = [channel.choice(codes[prep.order]) for box, codes in starts if box == index]
            found.append(first_incumbents(channel, prep, own))
        order = np.argsort([error for error, _ in found], kind="stable")
        first = int(order[0])
        self.best = self._found(channels[first], first, found[first][1])
        #: The scale at t = 1.
        self.unit = self.best.scale if self.best.scale > 0.0 else self._usual_scale(boxes)
        if powers:
            self.unit = 2.0 ** float(np.rint(np.log2(self.unit)))
        scaled = np.empty(prep.size)
        scaled[prep.order] = self.target / self.unit
        self.boxes = [
            Box(channel, RayTree(make_ray(prep, scaled, channel.codes), self.nodes_counted)) for channel in channels
        ]
        self.searches = {
            int(i): ScaleNeighbourhoods(channels[i], prep, found[i][1], found[i][0], np.random.default_rng((*seed, i)))
            for i in order[:BEST_BOXES]
        }
        self.chunk = max(4096, CHUNK * 64 // max(prep.size, 64))
        self.record()

    def _usual_scale(self, boxes: list[Float]) -> float:
        peak = max(float(np.max(np.abs(codes))) for codes in boxes)
        reach = float(np.max(np.abs(self.target)))
        return reach / peak if reach > 0.0 and peak > 0.0 else 1.0

    def _found(self, channel: Codes, box: int, choice: Int) -> Found:
        return Found(channel.error(choice), box, channel.codes[choice], channel.scale(choice))

    @property
    def upper(self) -> float:
        """The least error so far, without the constant."""
        return self.best.error

    @property
    def nodes(self) -> int:
        """Nodes so far."""
        return int(self.nodes_counted[0])

    def record(self) -> None:
        """Add a point to the trace."""
        lower, upper = max(self.proven, self.root) + self.constant, self.upper + self.constant
        self.trace.append(TracePoint(self.control.elapsed(), self.nodes, min(lower, upper), upper))

    @property
    def goal(self) -> float:
        """A proven bound that ends the work: with a margin, so that certification still finds the gap reached."""
        top = min(self.upper, BELOW_ENERGY * self.energy)
        gap = self.control.gap
        if gap == 0.0:
            return top
        return min(top, self.upper * (1.0 - 0.999 * gap) + 2.0 * self.allowance)

    @property
    def finished(self) -> bool:
        """Whether nothing below the incumbent is left, or the gap that was asked for is reached."""
        return self.exhausted or max(self.proven, self.root) >= self.goal

    def nodes_left(self) -> float:
        """Nodes that may still be spent."""
        limit = self.control.node_limit
        return math.inf if limit is None else limit - self.nodes

    def improve(self, calls: float, share: float = 1.0) -> None:
        """Large-neighbourhood search: so many calls, in at most a share of the time limit."""
        end = self.control.elapsed() + share * self.control.time_limit
        done = 0
        while done < calls and self.control.remaining() > 0:
            if self.control.node_limit is None and self.control.elapsed() >= end:
                break
            done += 1
            for index, search in self.searches.items():
                if search.improve() and search.value < self.upper:
                    self.best = self._found(self.boxes[index].channel, index, search.best)
                    self.record()

    def _open(self) -> bool:
        """Lay out the cells of all boxes; False where some scales cannot be excluded."""
        for box in self.boxes:
            if box.cells is None:
                cut = min(self.upper, BELOW_ENERGY * self.energy)
                box.cells = cells(box.tree.ray, self.target, self.unit, cut, self.limit, self.powers)
                if box.cells is None:
                    return False
                box.excluded = np.zeros((len(box.cells), 2))
        return True

    def _order(self) -> list[tuple[int, int]]:
        """Boxes and cells, those next to the best scale first."""
        t = self.unit / self.best.scale if self.best.scale > 0.0 else 1.0
        ranked = []
        for index, box in enumerate(self.boxes):
            assert box.cells is not None
            middle = np.sqrt(box.cells[:, 0] * box.cells[:, 1])
            far = np.abs(np.log(middle / t)) + 0.25 * abs(index - self.best.box)
            ranked += [(float(distance), index, cell) for cell, distance in enumerate(far)]
        return [(index, cell) for _, index, cell in sorted(ranked)]

    def attempt(self, target: float, budget: float, share: float = 1.0, late: bool = False) -> bool:
        """Search all cells of all boxes below a target, with a budget of nodes and a share of what is left.

        True when that is exhausted. ``late`` ones do not look at the clock.
        """
        if not self._open():
            return False
        timed = self.control.node_limit is None
        end = self.nodes + min(budget, self.nodes_left() * (1.0 if timed else share))
        spared = self.control.remaining() * (1.0 - share) if timed else 0.0
        spared = -np.inf if late else spared
        everything = target >= min(self.upper, BELOW_ENERGY * self.energy)
        cut, proven, worst = target, target, 0.0
        for index, cell in self._order():
            box = self.boxes[index]
            if box.excluded[cell, 0] >= cut:
                worst = max(worst, float(box.excluded[cell, 1]))
                continue
            charge, inside = self._enter(box, cell, cut)
            done = not inside
            while not done and self.nodes < end and self.control.remaining() > spared:
                done = box.tree.run(int(min(self.chunk, max(end - self.nodes, 1))))
            if inside and (codes := box.tree.found) is not None:
                self._take(index, codes)
                cut = min(cut, self.upper)
            if not done:
                return False
            allowance = self._allowance(box.tree, cut)
            if not inside:
                box.excluded[cell] = cut, allowance
            worst = max(worst, allowance)
            proven = min(proven, box.tree.cut * self.unit**2 - charge) if inside else proven
        proven = min(proven, cut)
        if proven > self.proven:
            self.proven, self.allowance = proven, worst
        self.exhausted = self.exhausted or everything
        self.record()
        return True

    def _enter(self, box: Box, cell: int, cut: float) -> tuple[float, bool]:
        """Begin a cell below a cut; the shift's charge in it, by which the tree's cut is higher."""
        assert box.cells is not None
        first, last = (float(t) for t in box.cells[cell])
        size = self.unit / first * float(np.max(np.abs(box.channel.codes)))
        charge = shift_charge(self.prep, self.target, min(size, self.limit))
        span = (first, last) if self.powers else (0.0, np.inf)
        return charge, box.tree.enter((first, last), (cut + charge) / self.unit**2, span)

    def _allowance(self, tree: RayTree, cut: float) -> float:
        square = self.unit**2
        return ray_allowance(tree, max(tree.cut, cut / square), self.energy / square) * square

    def _take(self, index: int, codes: Float) -> None:
        channel = self.boxes[index].channel
        choice = channel.choice(codes)
        found = self._found(channel, index, choice)
        if found.error < self.upper:
            self.best = found
            if index in self.searches:
                self.searches[index].adopt(found.error, choice)
            self.record()

    def relax(self, late: float | None = None) -> None:
        """A bound from dual points, in a share of the time limit; all of it where the trees are out of reach.

        ``late`` is a number of seconds when the time is over.
        """
        n = self.prep.size
        share = SMALL_ENVELOPE_SHARE if n <= TREE_DECIDES else ENVELOPE_SHARE if n <= LARGEST_TREE else 1.0
        if self.control.node_limit is not None or self.powers:
            return
        deadline = self.control.elapsed() + (share * self.control.time_limit if late is None else late)
        kept = CERTIFY_CUBIC * n**3

        def stop() -> bool:
            if late is not None:
                return self.control.elapsed() > deadline
            return self.control.elapsed() > deadline or self.control.remaining() <= kept

        gram, target, dropped, boxes = self._input_order
        scale = self.best.scale if self.best.scale > 0.0 else self.unit
        self.envelope = Envelope(gram, target, boxes, scale, self.upper, self.limit, dropped)
        record_at = 0.0

        def pause() -> bool:
            return stop() or self.control.elapsed() > record_at

        while not stop() and not self.envelope.finished and not self.finished:
            record_at = self.control.elapsed() + RECORD_EVERY
            self.envelope.grow(pause)
            self.root = self.envelope.value
            self.record()
        self.root = max(self.root, self.envelope.value)

    def _reserve(self) -> None:
        """Keep time for the certification of dual points."""
        n, points = self.prep.size, 0 if self.envelope is None else self.envelope.size
        seconds = points * (CERTIFY_LINEAR * n + CERTIFY_SQUARE * n**2)
        limit = self.control.time_limit
        self.control = replace(self.control, time_limit=limit - min(seconds, MOST_KEPT * limit))

    def secure(self, late: bool = False) -> None:
        """Prove low targets one after the other while they are cheap; ``late`` ones when the time is over."""
        for share in FLOORS:
            if not self.attempt(min(share * self.upper, self.goal), FLOOR_NODES, FLOOR_SHARE, late):
                break

    def _bound_late(self) -> None:
        """A bound where the limits left no time for one, as the search at one scale has that of its root."""
        if self.control.cancel.is_set() or self.nodes_left() <= 0:
            return
        if self.prep.size <= TREE_DECIDES:
            self.secure(late=True)
        else:
            self.relax(LATE_SECONDS + LATE_SQUARE * self.prep.size**2)

    def rise(self) -> None:
        """Prove rising targets until the goal, or until a limit ends the work, as the search at one scale does."""
        rising = Rising(1.0 / 24.0, 2.0 * CHEAP)
        while not self.finished and self.nodes_left() > 0 and self.control.remaining() > 0:
            current = max(self.proven, self.root) / self.upper
            # The goal itself in the end: a bound one unit below it would never be enough.
            last = current + rising.step >= self.goal / self.upper
            target = self.goal / self.upper if last else current + rising.step
            begin, started = self.nodes, self.control.elapsed()
            done = self.attempt(self.goal if last else self.upper * target, rising.budget(FIRST_BUDGET))
            spent = float(max(self.nodes - begin, 1))
            if not done:
                if self.boxes[0].cells is None or rising.step < 1e-9:
                    return
                rising.missed()
                continue
            rising.reached(target, spent, self.available(spent, self.control.elapsed() - started))

    def available(self, spent: float, seconds: float) -> float:
        """How many searches of some nodes or seconds fit into what is left of the limits."""
        if self.control.node_limit is not None:
            return self.nodes_left() / spent
        return self.control.remaining() / max(seconds, 1e-3)

    def run(self) -> RayResult:
        """Work until the interval is closed or a limit is reached."""
        if self.energy <= 0.0 or self.upper <= 0.0:
            self.exhausted = True
        for calls, budget, share in ATTEMPTS if self.prep.size <= CLOSE_AT_ONCE else ():
            if self.finished or self.control.remaining() <= 0:
                break
            self.improve(self._calls(calls), INCUMBENT_SHARE)
            self.attempt(self.goal, budget, share)
            if not self.finished and self.proven == 0.0:
                self.secure()
        if not self.finished:
            large = self.prep.size > CLOSE_AT_ONCE
            self.improve(self._calls(math.inf if large else 100.0), INCUMBENT_SHARE)
            if large:
                self.relax()
                self._reserve()
            if self.prep.size <= LARGEST_TREE:
                self.rise()
        if not self.exhausted and max(self.proven, self.root) == 0.0:
            self._bound_late()
        return self.result()

    def _calls(self, calls: float) -> float:
        limit = self.control.node_limit
        return calls if limit is None else min(calls, 0.05 * limit / NODES_PER_CALL)

    def collect(self, cut: float) -> tuple[float, list[Found]] | None:
        """All codes below a cut, and the allowance; None where there are too many or a limit ends it.

        Powers of two are collected at every scale, other codes at their best one.
        """
        for box in self.boxes:
            # The scales that the search had left out can matter again below this higher cut.
            box.cells = cells(box.tree.ray, self.target, self.unit, cut, self.limit, self.powers)
            if box.cells is None:
                return None
            box.excluded = np.zeros((len(box.cells), 2))
        leaves: list[Found] = []
        worst = 0.0
        end = self.nodes + min(COLLECT_NODES, self.nodes_left())
        for index, cell in self._order():
            box = self.boxes[index]
            _, inside = self._enter(box, cell, cut)
            seen: set[bytes] = set()
            done = not inside
            while not done:
                if self.nodes >= end or self.control.remaining() <= 0:
                    return None
                done = box.tree.run(int(min(self.chunk, end - self.nodes)), collect=True)
                codes = box.tree.take()
                if codes is not None and codes.tobytes() not in seen:
                    seen.add(codes.tobytes())
                    choice = box.channel.choice(codes)
                    leaf = self._found(box.channel, index, choice)
                    self.best = min(self.best, leaf, key=lambda found: found.error)
                    if self.powers:
                        assert box.cells is not None
                        scale = self.unit / float(box.cells[cell, 0])
                        leaf = Found(box.channel.error_at(choice, scale), index, codes, scale)
                    leaves.append(leaf)
                    if len(leaves) > MANY_LEAVES or (leaf.scale == 0.0 and np.any(codes)):
                        # In the latter case rounding hides at which scale the codes are of use.
                        return None
            worst = max(worst, self._allowance(box.tree, cut))
        return worst, leaves

    def result(self) -> RayResult:
        """What was found and what it proves."""
        charge = self._float_charge(self.proven) if self.proven > 0.0 else 0.0
        proven, allowance, leaves = self.proven, self.allowance + charge, None
        if self.exhausted and self.upper > 0.0:
            hidden = allowance + max(self.upper - proven, 0.0)
            if hidden > max(0.1 * OPTIMAL_RELATIVE * self.upper, OPTIMAL_ABSOLUTE * (self.energy + self.constant)):
                cut = self.upper + 4.0 * hidden
                collected = self.collect(cut) if cut < BELOW_ENERGY * self.energy else None
                if collected is not None:
                    worst, leaves = collected
                    proven, allowance = cut, worst + self._float_charge(cut)
        return RayResult(
            best=self._in_input_order(self.best),
            proven=proven,
            allowance=allowance,
            leaves=None if leaves is None else [self._in_input_order(leaf) for leaf in leaves],
            dual=None if self.envelope is None else self.envelope.dual(),
            termination=self._termination(),
            nodes=self.nodes,
            trace=tuple(self.trace),
        )

    def _float_charge(self, cut: float) -> float:
        """What the rounding of weights can lower errors just below a cut."""
        # With real zero points this is about the rounding of the differences of the targets.
        charge = float_charge(self.prep, self.target, cut, self.limit)
        return charge + self._rounding(cut) if self._rounding is not None else charge

    def _in_input_order(self, found: Found) -> Found:
        codes = np.empty_like(found.codes)
        codes[self.prep.order] = found.codes
        return Found(found.error, found.box, codes, found.scale)

    def _termination(self) -> Status:
        if self.finished:
            return Status.GAP_REACHED if self.control.gap > 0 else Status.OPTIMAL
        if self.control.cancel.is_set():
            return Status.INTERRUPTED
        if self.nodes_left() <= 0:
            return Status.NODE_LIMIT
        return Status.TIME_LIMIT if self.control.remaining() <= 0 else Status.UNRESOLVED
