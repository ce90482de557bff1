"""A lower bound over all scales at any time, from dual points for ranges of scales (docs/scales.md).

All scales are divided into intervals with a dual point each, whose bound is minimised exactly over the interval. The
weakest interval is improved first: a new dual point at its weakest scale takes over as far as it is strong.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.scale.dual import Rays
from layerbounds.bounds.scale.profile import Profile
from layerbounds.proofs import ScaleDual, ScalePoint
from layerbounds.search.scale.fixed_scale import FixedScale, in_units, typical_diagonal

#: A new dual point is used down to this share of the way from the lowest one's bound to the weakest interval's.
REACH = 0.5
#: The weakest interval may be so far below the lowest dual point, relative to it: at first, and in the end.
TOLERANCE, LEAST_TOLERANCE = 0.02, 0.0005
#: Relative gain that makes it worth while to go on learning at a scale.
GAIN = 3e-3
#: A minorant that was learned at one scale is tried at those that differ by so much in logarithm.
NEARBY = 0.06


@dataclass(frozen=True, eq=False)
class _Point:
    """A dual point, its constant and its profiles so far."""

    point: ScalePoint
    constant: float
    profiles: dict[int, Profile]


@dataclass(frozen=True, eq=False)
class _Interval:
    """Scales that one dual point bounds, its least bound there and where that is."""

    low: float
    high: float
    point: int
    value: float
    at: float


@dataclass(eq=False)
class _Visit:
    """A scale at which a dual point was made: the best value and point there, and whether a minorant can gain more."""

    box: int
    scale: float
    value: float
    point: int
    learned: bool = False


class Envelope:
    """A growing lower bound of one scale group, over all scales s > 0.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        With real zero points the projected one, of the inputs that are left.
    target : ndarray of shape (n,) or (rows, n)
        Rows share the scale.
    boxes : sequence of ndarray
        Lists of codes; the bound holds for all of them.
    scale : float
        Of the best weights known.
    value : float
        Their error; nothing above it is looked for.
    limit : float
        Largest |v| allowed.
    dropped : tuple of int
        See `ScaleDual`.

    Attributes
    ----------
    usable : bool
        False where nothing can be bounded: the Gram matrix cannot be factorized.
    """

    def __init__(
        self,
        gram: Float,
        target: Float,
        boxes: Sequence[Float],
        scale: float,
        value: float,
        limit: float = np.inf,
        dropped: tuple[int, ...] = (),
    ) -> None:
        rows = np.atleast_2d(target)
        n = rows.shape[1]
        # Units in which scale and diagonal are about 1.
        self._scale, self._unit = float(scale), typical_diagonal(gram)
        self.best = value / (self._unit * self._scale**2)
        self._rays = Rays(tuple(boxes), np.zeros(n, dtype=np.int64), limit / self._scale)
        self._dropped = dropped
        self._fixed = FixedScale(gram / self._unit, rows / self._scale, self._rays)
        self.usable = self._fixed.usable and bool(self._fixed.minorants)
        self._points: list[_Point] = []
        self._intervals: list[list[_Interval]] = []
        self._stuck = False
        self._visits: list[_Visit] = []
        #: List of codes, scale and number of each minorant learned.
        self._where: list[tuple[int, float, int]] = []
        self._tolerance = TOLERANCE
        if self.usable:
            tail = self._keep(self._tail())
            self._intervals = [[self._interval(box, 0.0, np.inf, tail)] for box in range(len(boxes))]

    @property
    def value(self) -> float:
        """The bound; certification derives it anew."""
        if not self.usable:
            return 0.0
        return max(self._weakest()[1].value, 0.0) * self._unit * self._scale**2

    @property
    def finished(self) -> bool:
        """Whether nothing is left to gain: the bound has reached the best error, or the method its end."""
        return not self.usable or self._stuck or self._weakest()[1].value >= self.best

    @property
    def size(self) -> int:
        """Number of dual points so far."""
        return len(self._points)

    def grow(self, stop: Callable[[], bool]) -> None:
        """Improve the weakest interval until told to stop, or `finished`."""
        while not (stop() or self.finished):
            self._improve(stop)

    def remaining(self, cut: float) -> list[list[tuple[float, float]]]:
        """For each list of codes the intervals of scales whose bound is below a cut; others hold nothing below it.

        In float64: what rounding hides is charged relative to what is added up, but nothing is proven anew.
        """
        level = cut / (self._unit * self._scale**2)
        result = []
        for intervals in self._intervals:
            left: list[tuple[float, float]] = []
            for interval in intervals:
                if interval.value < level:
                    low, high = interval.low * self._scale, interval.high * self._scale
                    if left and left[-1][1] == low:
                        low = left.pop()[0]
                    left.append((low, high))
            result.append(left)
        return result

    def dual(self) -> ScaleDual | None:
        """For certification; None where there is none."""
        if not self.usable:
            return None
        used = sorted({interval.point for intervals in self._intervals for interval in intervals})
        minorants, points = in_units(
            self._fixed.minorants, [self._points[k].point for k in used], self._unit, self._scale
        )
        axis: list[int] = []
        at: list[float] = []
        child: list[int] = []
        roots = []
        for intervals in self._intervals:
            roots.append(len(axis))
            for interval in intervals[:-1]:
                axis += [0, -1]
                at += [interval.high * self._scale, 0.0]
                child += [len(child) + 1, used.index(interval.point)]
            axis.append(-1)
            at.append(0.0)
            child.append(used.index(intervals[-1].point))
        return ScaleDual(
            minorants, points, np.array(axis), np.array(at), np.array(child), np.array(roots), self._dropped
        )  # fmt: skip

    def _weakest(self) -> tuple[int, _Interval]:
        candidates = ((box, interval) for box, intervals in enumerate(self._intervals) for interval in intervals)
        return min(candidates, key=lambda pair: pair[1].value)

    def _tail(self) -> ScalePoint:
        """Exact at s = 0 and s = ∞, where the weights are zero."""
        cuts = self._fixed.minorants[0].split.weights.size
        rows = self._fixed.target.shape
        return ScalePoint(np.zeros(rows), 0, np.zeros((rows[0], cuts)))

    def _keep(self, point: ScalePoint) -> int:
        self._points.append(_Point(point, self._fixed.constant(point), {}))
        return len(self._points) - 1

    def _profile(self, number: int, box: int) -> Profile:
        profiles = self._points[number].profiles
        if box not in profiles:
            profiles[box] = self._fixed.profile(self._points[number].point, 0, box)
        return profiles[box]

    def _interval(self, box: int, low: float, high: float, number: int) -> _Interval:
        value, at = self._profile(number, box).minimum(low, high)
        return _Interval(low, high, number, value + self._points[number].constant, at)

    def _improve(self, stop: Callable[[], bool]) -> None:
        """Raise the weakest interval, or where no dual point met so far is much better, the weakest dual point."""
        box, weak = self._weakest()
        lowest = min(self._visits, key=lambda visit: visit.value, default=None)
        if lowest is None or weak.value < lowest.value - 1.1 * self._tolerance * abs(lowest.value):
            # The first one at the scale of the best weights.
            scale = 1.0 if lowest is None and weak.low <= 1.0 <= weak.high else min(max(weak.at, weak.low), weak.high)
            if 0 < scale < np.inf:
                near = self._points[weak.point].point
                found = self._solve(box, scale, self._learned_near(box, scale), near.z, stop)
                self._visits.append(_Visit(box, scale, *found))
                self._take_over(self._visits[-1])
                return
        elif self._raise(lowest, stop):
            return
        self._tolerance *= 0.5
        self._stuck = self._tolerance < LEAST_TOLERANCE or not np.isfinite(weak.value)

    def _raise(self, visit: _Visit, stop: Callable[[], bool]) -> bool:
        """A better dual point at a scale, by a minorant learned there; False where there is none."""
        before = visit.value
        learned = self._learned_near(visit.box, visit.scale)
        if learned != self._points[visit.point].point.minorant:
            self._revisit(visit, learned, stop)
        if visit.value <= before * (1 + GAIN) and not (visit.learned or stop()):
            self._learn(visit, stop)
        return visit.value > before

    def _learn(self, visit: _Visit, stop: Callable[[], bool]) -> None:
        """A minorant for a scale, which may serve those nearby."""
        before, point = visit.value, self._points[visit.point].point
        found = self._fixed.refit(point.minorant, np.array([visit.scale]), visit.box, point.z, stop)
        if found is None:
            visit.learned = True
            return
        self._where.append((visit.box, visit.scale, found.minorant))
        self._offer(visit, self._keep(found))
        # What gains no more has been learned.
        visit.learned = visit.value <= before * (1 + GAIN)
        for other in self._visits:
            near = other.box == visit.box and abs(np.log(other.scale / visit.scale)) <= NEARBY
            if near and other is not visit and other.value < visit.value and not stop():
                self._revisit(other, found.minorant, stop)

    def _revisit(self, visit: _Visit, minorant: int, stop: Callable[[], bool]) -> None:
        start = self._points[visit.point].point.z
        self._offer(visit, self._solve(visit.box, visit.scale, minorant, start, stop)[1])

    def _offer(self, visit: _Visit, number: int) -> None:
        """Keep a dual point for a scale where it is better."""
        value = self._value(number, visit.box, visit.scale)
        if value > visit.value:
            visit.value, visit.point = value, number
            self._take_over(visit)

    def _solve(
        self, box: int, scale: float, minorant: int, start: Float, stop: Callable[[], bool]
    ) -> tuple[float, int]:
        number = self._keep(self._fixed.point(minorant, np.array([scale]), box, start, stop))
        return self._value(number, box, scale), number

    def _learned_near(self, box: int, scale: float) -> int:
        """The minorant learned at the nearest scale, the last one of them."""
        found = [(abs(np.log(scale / at)), -minorant) for of, at, minorant in self._where if of == box]
        return -min(found)[1] if found else 0

    def _take_over(self, visit: _Visit) -> None:
        """Use a dual point wherever it is strong enough and others are not."""
        weakest = self._weakest()[1].value
        lowest = min(other.value for other in self._visits)
        top = max(min(visit.value, lowest), weakest)
        level = min(top - REACH * (top - weakest), top - self._tolerance * abs(top))
        level = min(max(level, weakest), self.best)
        for box in range(len(self._intervals)):
            self._insert(box, visit.point, visit.scale, level)

    def _value(self, number: int, box: int, scale: float) -> float:
        return self._profile(number, box).minimum(scale, scale)[0] + self._points[number].constant

    def _insert(self, box: int, number: int, scale: float, level: float) -> None:
        """Let a dual point take over around a scale where it reaches a level and others do not."""
        low, high = self._profile(number, box).around(scale, level - self._points[number].constant)
        if not low < high:
            return
        intervals = self._intervals[box]
        first = bisect.bisect_right([interval.high for interval in intervals], low)
        result = intervals[:first]
        for position in range(first, len(intervals)):
            old = intervals[position]
            if old.low >= high:
                result += intervals[position:]
                break
            left, right = max(old.low, low), min(old.high, high)
            if old.value >= level or not left < right:
                result.append(old)
                continue
            new = self._interval(box, left, right, number)
            if new.value <= old.value:
                result.append(old)
                continue
            if old.low < left:
                result.append(self._interval(box, old.low, left, old.point))
            result.append(new)
            if right < old.high:
                result.append(self._interval(box, right, old.high, old.point))
        self._intervals[box] = result


def scale_envelope(
    gram: Float,
    target: Float,
    boxes: Sequence[Float],
    scale: float,
    value: float,
    stop: Callable[[], bool],
    limit: float = np.inf,
    dropped: tuple[int, ...] = (),
) -> tuple[float, ScaleDual | None]:
    """Lower bound over all scales of one group when told to stop, and what certification derives it from.

    The parameters are those of `Envelope`.
    """
    envelope = Envelope(gram, target, boxes, scale, value, limit, dropped)
    envelope.grow(stop)
    return envelope.value, envelope.dual()
