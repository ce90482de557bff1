"""One scale for all channels: best-first over intervals of scales and what every channel reaches in each.

The error of an interval is at least the sum of what each channel can reach with a scale of its own in it, found by the
ray tree with leaves valued within the interval. Intervals are divided until the sum tells (docs/scales.md).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import gamma
from layerbounds.kernels.quantization.rounding import beam, coordinate_descent
from layerbounds.proofs import Control, Status, TracePoint
from layerbounds.search.quantization.neighbourhoods import Neighbourhoods
from layerbounds.search.quantization.preparation import Preparation
from layerbounds.search.scale.allowance import float_charge, ray_allowance, shift_charge
from layerbounds.search.scale.cells import largest_scale, layout, least_of_smaller
from layerbounds.search.scale.incumbents import FACTORS, Codes, first_incumbents
from layerbounds.search.scale.rays import Ray, RayTree, make_ray

#: Nodes between two looks at the clock.
CHUNK = 1 << 17
#: Shares of a channel's error in an interval that are proven one after the other, until the sum suffices.
SHARES = (0.6, 0.8, 0.9, 0.95, 0.98, 1.0)
#: Up to so many inputs a search costs less than beginning it.
FEW_INPUTS = 24
#: Choices of codes of a channel in an interval that are listed, and the nodes that this may take.
MOST_CHOICES, LIST_NODES = 256, 1 << 22
#: Rounds of neighbourhoods at the common scale, and calls for each channel.
POLISHES, CALLS = 6, 12
#: Partial assignments kept by the beam, and moves of a descent per input.
WIDTH_OF_BEAM, MOVES = 32, 50


@dataclass(eq=False)
class Interval:
    """Scales of one box.

    Attributes
    ----------
    box : int
    first, last : float
        Least and largest t; equal for a single scale.
    lower : ndarray of shape (rows,)
        What each channel reaches at least.
    upper : ndarray of shape (rows,)
        What it reaches in the interval with ``codes``; infinite before they are known.
    codes : list of ndarray
    share : int
        How many of `SHARES` are proven.
    """

    box: int
    first: float
    last: float
    lower: Float
    upper: Float
    codes: list[Float]
    share: int = 0


@dataclass(frozen=True, eq=False)
class TensorResult:
    """Codes, shape (rows, n), and their scale; nothing below ``proven`` is left, but for ``allowance``."""

    error: float
    box: int
    codes: Float
    scale: float
    proven: float
    allowance: float
    termination: Status
    nodes: int
    trace: tuple[TracePoint, ...]


class TensorSearch:
    """State of the work on channels that share their scale.

    Parameters
    ----------
    prep : Preparation
    targets : ndarray of shape (rows, n)
        In the order of the inputs.
    boxes : list of ndarray
    limit : float
    powers : bool
    constant : float
    control : Control
    """

    def __init__(
        self, prep: Preparation, targets: Float, boxes: list[Float], limit: float, powers: bool, constant: float,
        control: Control,
    ) -> None:  # fmt: skip
        self.prep, self.limit, self.powers, self.constant, self.control = prep, limit, powers, constant, control
        self.targets = np.ascontiguousarray(targets[:, prep.order])
        self.boxes = boxes
        rows = len(targets)
        self.channels = [[Codes(prep.gram, w, codes, limit) for w in self.targets] for codes in boxes]
        self.energies = np.array([max(channel.energy, 0.0) for channel in self.channels[0]])
        self.energy = float(self.energies.sum())
        self.nodes_counted = [np.zeros(1, dtype=np.int64) for _ in range(rows)]
        self.trace: list[TracePoint] = []
        self.error, self.box, self.codes, self.scale = self.energy, 0, np.zeros_like(self.targets), 0.0
        self.closed = np.inf
        self.unit = self._start()
        self.trees = [
            [
                RayTree(make_ray(prep, w / self.unit, codes), count)
                for w, count in zip(targets, self.nodes_counted, strict=True)
            ]
            for codes in boxes
        ]
        self._shares = SHARES if prep.size > FEW_INPUTS else SHARES[-1:]
        self._heap: list[tuple[float, int, Interval]] = []
        self._number = itertools.count()
        self.proven = 0.0
        self.record()

    @property
    def nodes(self) -> int:
        """Nodes so far."""
        return sum(int(count[0]) for count in self.nodes_counted)

    def record(self) -> None:
        """Add a point to the trace."""
        lower, upper = self.proven + self.constant, self.error + self.constant
        self.trace.append(TracePoint(self.control.elapsed(), self.nodes, min(lower, upper), upper))

    def _start(self) -> float:
        """First codes at several scales; the scale at t = 1."""
        peak = max(float(np.max(np.abs(codes))) for codes in self.boxes)
        reach = float(np.max(np.abs(self.targets)))
        if not (peak > 0.0 and reach > 0.0):
            return 1.0
        # Every channel at its own scale is far from what one scale allows: all at the same scales instead.
        for box, row_channels in enumerate(self.channels):
            for factor in FACTORS:
                scale = factor * reach / peak
                self._offer(box, [self._descend(channel, scale) for channel in row_channels])
            own = [channel.codes[first_incumbents(channel, self.prep, [])[1]] for channel in row_channels]
            self._offer(box, own)
        self._polish()
        unit = self.scale if self.scale > 0.0 else reach / peak
        return 2.0 ** float(np.rint(np.log2(unit))) if self.powers else unit

    def _descend(self, channel: Codes, scale: float, start: Float | None = None) -> Float:
        """Codes of a channel at a scale."""
        target = channel.target / scale
        choice = np.zeros(len(target), dtype=np.int64)
        if start is None:
            width = WIDTH_OF_BEAM
            beam(width, self.prep.pivots, self.prep.shifts, target, channel.table, channel.count, choice)
        else:
            choice = channel.choice(start)
        n = len(target)
        coordinate_descent(channel.gram, target, channel.table, channel.count, choice, n <= 400, MOVES * n)
        return np.asarray(channel.codes[choice])

    def _polish(self) -> None:
        """Large neighbourhoods of each channel at the common scale, which then moves along."""
        for _ in range(POLISHES):
            if not self.scale > 0.0 or self.powers or self.control.remaining() <= 0:
                return
            before, codes = self.error, []
            for row, channel in enumerate(self.channels[self.box]):
                target, known = channel.target / self.scale, self.codes[row]
                choice = channel.choice(known)
                value = float((known - target) @ (channel.gram @ (known - target)))
                rng = np.random.default_rng((self.control.seed, row))
                search = Neighbourhoods(channel.gram, target, channel.table, channel.count, choice, value, rng)
                for _ in range(CALLS):
                    search.improve()
                codes.append(channel.codes[search.best])
            self._offer(self.box, codes)
            if not self.error < before * (1.0 - 1e-9):
                return

    def _offer(self, box: int, codes: list[Float]) -> None:
        """Take codes of all channels at their best common scale if they are better than those known."""
        stacked = np.array(codes)
        gram = self.prep.gram
        pulled = stacked @ gram
        along, square = float(np.sum(pulled * self.targets)), float(np.sum(pulled * stacked))
        if not (along > 0.0 and square > 0.0):
            return
        scale = min(along / square, self.limit / float(np.max(np.abs(stacked))))
        scales = [scale]
        if self.powers:
            lower = 2.0 ** float(np.floor(np.log2(scale)))
            scales = [s for s in (lower, 2.0 * lower) if s * float(np.max(np.abs(stacked))) <= self.limit]
        for s in scales:
            deviation = s * stacked - self.targets
            error = float(np.sum((deviation @ gram) * deviation))
            if 0.0 <= error < self.error:
                self.error, self.box, self.codes, self.scale = error, box, stacked, s

    @property
    def goal(self) -> float:
        """A proven bound that ends the work."""
        top = min(self.error, (1.0 - 1e-7) * self.energy)
        return top * (1.0 - max(0.999 * self.control.gap, 2e-7))

    def _open(self) -> bool:
        """Lay out intervals of all scales; False where some cannot be excluded."""
        for box in range(len(self.boxes)):
            rays = [tree.ray for tree in self.trees[box]]
            pairs = zip(rays, self.targets, self.energies, strict=True)
            most = max(largest_scale(ray, w, e * (1.0 + 1e-9), self.limit) for ray, w, e in pairs)
            found = layout(most, partial(self._excludes_smaller, rays), self.unit, self.powers)
            if found is None:
                return False
            self.closed = min(self.closed, self._smaller(rays, float(found[-1, 1])))
            for lower, upper in found.tolist():
                self._push(Interval(box, lower, upper, np.zeros(len(rays)), np.full(len(rays), np.inf), []))
        return True

    def _smaller(self, rays: list[Ray], t: float) -> float:
        return float(sum(least_of_smaller(ray, t) for ray in rays)) * self.unit**2

    def _excludes_smaller(self, rays: list[Ray], t: float) -> bool:
        return self._smaller(rays, t) > self.goal

    def _push(self, interval: Interval) -> None:
        # Those next to the best scale first, among equals.
        t = self.unit / self.scale if self.scale > 0.0 else 1.0
        far = abs(np.log(np.sqrt(interval.first * interval.last) / t))
        value = float(interval.lower.sum())
        heapq.heappush(self._heap, (value + 1e-9 * float(far) * self.energy, next(self._number), interval))

    def _bound(self) -> float:
        left = [float(interval.lower.sum()) for _, _, interval in self._heap]
        return min([self.closed, *left])

    def run(self) -> TensorResult:
        """Work until the interval is closed or a limit is reached."""
        done = self.energy <= 0.0 or self.error <= 0.0
        if not done and self._open():
            with threadpool_limits(limits=1), ThreadPoolExecutor(max_workers=self.control.threads) as pool:
                while self._heap and self._within_limits():
                    _, _, interval = heapq.heappop(self._heap)
                    lower = float(interval.lower.sum())
                    if lower >= self.goal:
                        self.closed = min(self.closed, lower)
                        continue
                    finished = self._work(interval, pool)
                    if not finished or interval.share < len(self._shares):
                        self._push(interval)
                    elif not self._close(interval, pool):
                        for part in self._halves(interval):
                            self._push(part)
                    self.proven = max(self.proven, self._bound())
                    self.record()
                    if self.proven >= self.goal:
                        break
        charge = 0.0
        if self.proven > 0.0:
            charge = sum(float_charge(self.prep, w, self.proven, self.limit) for w in self.targets)
        codes = np.empty_like(self.codes)
        codes[:, self.prep.order] = self.codes
        termination = self._termination(done)
        return TensorResult(
            self.error, self.box, codes, self.scale, self.proven, charge, termination, self.nodes, tuple(self.trace)
        )

    def _within_limits(self) -> bool:
        limit = self.control.node_limit
        return self.control.remaining() > 0 and (limit is None or self.nodes < limit)

    def _termination(self, done: bool) -> Status:
        if done or self.proven >= self.goal:
            return Status.GAP_REACHED if self.control.gap > 0 else Status.OPTIMAL
        if self.control.cancel.is_set():
            return Status.INTERRUPTED
        if self.control.remaining() <= 0:
            return Status.TIME_LIMIT
        return Status.UNRESOLVED if self._within_limits() else Status.NODE_LIMIT

    def _halves(self, interval: Interval) -> Iterator[Interval]:
        """The two parts of an interval, which keep its bounds."""
        rows = len(interval.lower)
        if interval.first == interval.last:
            # A single scale whose choices are too many to list: what is proven for each channel is all there is.
            self.closed = min(self.closed, float(interval.lower.sum()))
            return
        middle = float(np.sqrt(interval.first * interval.last))
        for first, last in ((interval.first, middle), (middle, interval.last)):
            yield Interval(interval.box, first, last, interval.lower.copy(), np.full(rows, np.inf), interval.codes)

    def _close(self, interval: Interval, pool: ThreadPoolExecutor) -> bool:
        """Settle an interval by listing each channel's choices; False where there are too many.

        A channel above its part of the goal, the others at their least, makes the sum reach the goal. So only choices
        below that count, and each is a parabola of the scale: the least sum is found exactly.
        """
        goal = self.goal
        spare = max(goal - float(interval.lower.sum()), 0.0)

        def choices(row: int) -> list[Float] | None:
            return self._list(row, interval, float(interval.lower[row]) + spare)

        lists = list(pool.map(choices, range(len(self.targets))))
        found = [choice for choice in lists if choice is not None]
        if len(found) < len(lists):
            return False
        least = goal
        if all(found):
            value, codes = self._least_sum(interval, found)
            self._offer(interval.box, codes)
            # The sum is that of the matrix with its shift.
            least = min(goal, value - sum(self._shift_charge(row, interval) for row in range(len(found))))
        self.closed = min(self.closed, least)
        return True

    def _list(self, row: int, interval: Interval, cut: float) -> list[Float] | None:
        """All codes of a channel whose error in an interval is below a cut; None where they are too many."""
        tree, square = self.trees[interval.box][row], self.unit**2
        cut += self._shift_charge(row, interval)
        cell = (interval.first, interval.last)
        tree.enter(cell, cut / square, cell)
        # What rounding may hide of a choice is searched, too.
        slack = 8.0 * ray_allowance(tree, cut / square, self.energies[row] / square) * square
        if not np.isfinite(slack):
            return None
        cut += slack
        begun, leaves = int(tree.nodes[0]), []
        done = not tree.enter(cell, cut / square, cell)
        while not done:
            done = tree.run(CHUNK, collect=True)
            leaf = tree.take()
            if leaf is not None:
                leaves.append(leaf)
            if len(leaves) > MOST_CHOICES or tree.nodes[0] - begun > LIST_NODES or not self._within_limits():
                return None
        allowance = ray_allowance(tree, cut / square, self.energies[row] / square) * square
        return leaves if allowance <= slack else None

    def _least_sum(self, interval: Interval, lists: list[list[Float]]) -> tuple[float, list[Float]]:
        """The least sum over the scales of an interval, each channel with one of its choices, and that choice.

        A choice q has the error f(0) + s·(s·qᵀHq − 2wᵀHq): at every scale the lowest line in the brackets is the best.
        """
        gram, size = self.prep.gram, np.abs(self.prep.gram)
        first, last = self.unit / interval.last, self.unit / interval.first
        lines = []
        ends = [first, last]
        magnitude = 0.0
        for w, choices in zip(self.targets, lists, strict=True):
            stacked = np.array(choices)
            pulled = stacked @ gram
            square, along = np.sum(pulled * stacked, axis=1), pulled @ w
            lines.append((square, along))
            far = np.abs(w) + last * np.abs(stacked)
            magnitude += float(np.max(np.sum((far @ size) * far, axis=1)))
            s = first
            while True:
                now = int(np.lexsort((square, square * s - 2.0 * along))[0])
                falls = square < square[now]
                cross = np.where(falls, 2.0 * (along[now] - along) / np.where(falls, square[now] - square, 1.0), np.inf)
                cross[cross <= s] = np.inf
                s = float(cross.min(initial=np.inf))
                if not s < last:
                    break
                ends.append(s)
        edges = np.unique(ends)
        best, least, codes = np.inf, np.inf, [choices[0] for choices in lists]
        for left, right in itertools.pairwise(edges) if len(edges) > 1 else [(first, first)]:
            middle = 0.5 * (left + right)
            picks = [int(np.argmin(square * middle - 2.0 * along)) for square, along in lines]
            square = sum(float(lines[r][0][pick]) for r, pick in enumerate(picks))
            along = sum(float(lines[r][1][pick]) for r, pick in enumerate(picks))
            vertex = min(max(along / square, left), right) if square > 0.0 else left
            value = self.energy + min(s * (s * square - 2.0 * along) for s in (left, vertex, right))
            if value < best:
                best, codes = value, [lists[r][pick] for r, pick in enumerate(picks)]
            # Rounding may have hidden a change of lines within the segment. The lowest line is concave: no line is
            # farther above it than at an end.
            least = min(least, value - right * _above_lowest(lines, picks, left, right))
        rounding = 4.0 * gamma(2 * len(gram) + len(lists) + 16) * magnitude
        return least - rounding, codes

    def _work(self, interval: Interval, pool: ThreadPoolExecutor) -> bool:
        """Prove the next share of all channels' errors in an interval; False where a limit ended it."""
        rows = range(len(self.targets))
        t = float(np.sqrt(interval.first * interval.last))
        if not np.all(np.isfinite(interval.upper)):
            starts = interval.codes

            def best(row: int) -> Float:
                channel = self.channels[interval.box][row]
                options = [self._descend(channel, self.unit / t)]
                if starts:
                    options.append(self._descend(channel, self.unit / t, starts[row]))
                return min(options, key=lambda codes: self._within(row, interval, codes))

            interval.codes = list(pool.map(best, rows))
            interval.upper = np.array([self._within(row, interval, interval.codes[row]) for row in rows])
            self._offer(interval.box, interval.codes)
        share = self._shares[interval.share]
        results = list(pool.map(lambda row: self._prove(row, interval, share), rows))
        for row, (lower, codes, complete) in enumerate(results):
            interval.lower[row] = max(interval.lower[row], lower)
            if codes is not None:
                interval.codes[row] = codes
                interval.upper[row] = self._within(row, interval, codes)
            if not complete:
                return False
        self._offer(interval.box, interval.codes)
        interval.share += 1
        return True

    def _shift_charge(self, row: int, interval: Interval) -> float:
        size = self.unit / interval.first * float(np.max(np.abs(self.boxes[interval.box])))
        return shift_charge(self.prep, self.targets[row], min(size, self.limit))

    def _within(self, row: int, interval: Interval, codes: Float) -> float:
        """Least error of a channel's codes at the scales of an interval."""
        gram, w = self.prep.gram, self.targets[row]
        pulled = gram @ codes
        along, square = float(pulled @ w), float(pulled @ codes)
        best = along / square if square > 0.0 else 0.0
        scale = min(max(best, self.unit / interval.last), self.unit / interval.first)
        deviation = scale * codes - w
        return max(float(deviation @ (gram @ deviation)), 0.0)

    def _prove(self, row: int, interval: Interval, share: float) -> tuple[float, Float | None, bool]:
        """A channel's least error in an interval, or a share of it: bound, better codes, whether no limit ended it."""
        target = share * float(interval.upper[row])
        if interval.lower[row] >= target or target <= 0.0:
            return 0.0, None, True
        tree, square = self.trees[interval.box][row], self.unit**2
        charge = self._shift_charge(row, interval)
        cell = (interval.first, interval.last)
        cut = target * (1.0 + 1e-9) + charge
        inside = tree.enter(cell, cut / square, cell)
        while inside and not tree.run(CHUNK):
            if not self._within_limits():
                return 0.0, tree.found, False
        allowance = ray_allowance(tree, cut / square, self.energies[row] / square) * square
        return tree.cut * square - charge - allowance, tree.found if inside else None, True


def _above_lowest(lines: list[tuple[Float, Float]], picks: list[int], left: float, right: float) -> float:
    """How far the picked lines square·s − 2·along are above the lowest ones in a segment, at most, summed up."""
    total = 0.0
    for (square, along), pick in zip(lines, picks, strict=True):
        values = np.multiply.outer((left, right), square) - 2.0 * along
        total += float(np.max(values[:, pick] - values.min(axis=1)))
    return total
