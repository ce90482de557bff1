"""The same where every group of inputs has a scale of its own: best-first over boxes of scales (docs/scales.md).

A dual point's bound is a sum over the groups, so that its minimum over a box is one sweep for each group. What is hard
is that a dual point is strong only near the scales that it was made for, in all groups at once.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Sequence

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.scale.dual import Rays
from layerbounds.proofs import ScaleDual, ScalePoint
from layerbounds.search.scale.fixed_scale import FixedScale, in_units, typical_diagonal
from layerbounds.search.scale.one_point import highest_point

#: A box tries the dual points of its parents and the last ones of all.
RECENT = 6
#: Minorants are learned at the first box and whenever so many boxes were divided since the last time.
LEARN_EVERY = 12
#: From so many groups on all time goes into one dual point for all scales.
MANY = 3
#: Where a scale has no end it is divided at so many times the weakest one.
BEYOND = 2.0


class GroupEnvelope:
    """A growing lower bound over all scales of several groups.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,) or (rows, n)
    boxes : sequence of ndarray
        Lists of codes; every group takes one of them.
    group : ndarray of int64, shape (n,)
    scale : ndarray of shape (groups,)
        Of the best weights known, positive.
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
    size : int
        Number of dual points so far.
    """

    def __init__(
        self,
        gram: Float,
        target: Float,
        boxes: Sequence[Float],
        group: Int,
        scale: Float,
        value: float,
        limit: float = np.inf,
        dropped: tuple[int, ...] = (),
    ) -> None:
        rows = np.atleast_2d(target)
        self._unit = typical_diagonal(gram)
        self._size = float(np.exp(np.mean(np.log(scale))))
        self._best_scale = scale / self._size
        self.best = value / (self._unit * self._size**2)
        self._rays = Rays(tuple(boxes), group, limit / self._size)
        self._groups, self._dropped = len(scale), dropped
        self._fixed = FixedScale(gram / self._unit, rows / self._size, self._rays)
        self.usable = self._fixed.usable and bool(self._fixed.minorants)
        self._points: list[ScalePoint] = []
        self._constants: list[float] = []
        self._minorant, self._since = 0, 0
        #: Nodes of the tree as in `ScaleDual`, and of its leaves the bound, which they are sorted by.
        self._axis, self._at, self._child = [-1], [0.0], [0]
        self._open: list[tuple[float, int, tuple[float, ...], tuple[float, ...]]] = []
        self._closed = np.inf
        if self.usable:
            cuts = self._fixed.minorants[0].split.weights.size
            self._keep(ScalePoint(np.zeros(rows.shape), 0, np.zeros((len(rows), cuts))))
            self._push(0, (0.0,) * self._groups, (np.inf,) * self._groups, [0])

    @property
    def size(self) -> int:
        """Number of dual points so far."""
        return len(self._points)

    @property
    def value(self) -> float:
        """The bound; certification derives it anew."""
        if not self.usable:
            return 0.0
        return max(min(self._weakest, self._closed), 0.0) * self._unit * self._size**2

    @property
    def finished(self) -> bool:
        """Whether nothing is left to gain."""
        return not self.usable or not self._open or self._weakest >= min(self.best, self._closed)

    @property
    def _weakest(self) -> float:
        return self._open[0][0] if self._open else np.inf

    def grow(self, stop: Callable[[], bool]) -> None:
        """Divide the weakest box until told to stop, or `finished`; with many groups improve one point for all."""
        if self.usable and self._groups >= MANY and len(self._fixed.target) == 1 and not self._fixed.has_forms:
            self._raise_all(stop)
        while not (stop() or self.finished):
            self._divide(stop)

    def dual(self) -> ScaleDual | None:
        """For certification; None where there is none."""
        if not self.usable:
            return None
        used = sorted({child for axis, child in zip(self._axis, self._child, strict=True) if axis < 0})
        minorants, points = in_units(
            self._fixed.minorants, [self._points[k] for k in used], self._unit, self._size
        )  # fmt: skip
        axis, at = np.array(self._axis), np.array(self._at) * self._size
        child = np.array([c if a >= 0 else used.index(c) for a, c in zip(self._axis, self._child, strict=True)])
        return ScaleDual(minorants, points, axis, at, child, np.zeros(1, dtype=np.int64), self._dropped)

    def _keep(self, point: ScalePoint) -> int:
        self._points.append(point)
        self._constants.append(self._fixed.constant(point))
        return len(self._points) - 1

    @functools.cached_property
    def _profile(self) -> Callable[[int, int, int], object]:
        return functools.cache(
            lambda number, group, box: self._fixed.profile(self._points[number], group, box)
        )  # fmt: skip

    def _least(self, number: int, group: int, low: float, high: float) -> tuple[float, float, int]:
        """Least value of a dual point's term of a group, the scale where it is, and the list of codes."""
        found = []
        for box in range(len(self._rays.boxes)):
            value, at = self._profile(number, group, box).minimum(low, high)  # type: ignore[attr-defined]
            found.append((value, at, box))
        return min(found)

    def _bound(self, number: int, low: Sequence[float], high: Sequence[float]) -> float:
        terms = [self._least(number, g, low[g], high[g])[0] for g in range(self._groups)]
        return self._constants[number] + sum(terms)

    def _push(self, node: int, low: tuple[float, ...], high: tuple[float, ...], candidates: Sequence[int]) -> None:
        value, number = max((self._bound(number, low, high), number) for number in candidates)
        self._child[node] = number
        heapq.heappush(self._open, (value, node, low, high))

    def _divide(self, stop: Callable[[], bool]) -> None:
        value, node, low, high = heapq.heappop(self._open)
        old = self._child[node]
        terms = [self._least(old, g, low[g], high[g]) for g in range(self._groups)]
        weak = np.array([at for _, at, _ in terms])
        if len(self._points) == 1:
            weak = self._best_scale
        # Scales without a value are near an end of their interval.
        inner = np.array([_inside(at, low[g], high[g], self._best_scale[g]) for g, at in enumerate(weak)])
        boxes = {box for _, _, box in terms}
        found = self._solve(inner, boxes.pop() if len(boxes) == 1 else 0, self._points[old].z, stop)
        here = [self._least(found, g, inner[g], inner[g])[0] for g in range(self._groups)]
        there = [self._least(found, g, low[g], high[g]) for g in range(self._groups)]
        loss = np.array([a - b[0] for a, b in zip(here, there, strict=True)])
        if not np.any(loss > 0) and self._bound(found, low, high) <= value:
            self._closed = min(self._closed, value)
            return
        axis = int(np.argmax(loss))
        at = _between(inner[axis], there[axis][1])
        if not low[axis] < at < high[axis]:
            at = _between(max(low[axis], inner[axis] / BEYOND), min(high[axis], inner[axis] * BEYOND))
        if not low[axis] < at < high[axis]:
            self._closed = min(self._closed, value)
            return
        first = len(self._axis)
        self._axis[node], self._at[node], self._child[node] = axis, at, first
        self._axis += [-1, -1]
        self._at += [0.0, 0.0]
        self._child += [0, 0]
        recent = range(max(len(self._points) - RECENT, 0), len(self._points))
        candidates = sorted({old, found, *recent})
        below, above = list(high), list(low)
        below[axis] = above[axis] = at
        self._push(first, low, tuple(below), candidates)
        self._push(first + 1, tuple(above), high, candidates)

    def _raise_all(self, stop: Callable[[], bool]) -> None:
        """The one point that is best for all scales together, with a minorant learned at the best ones."""
        zeros = np.zeros_like(self._fixed.target)
        point = self._points[self._solve(self._best_scale, 0, zeros, stop)]
        d = self._fixed.minorants[point.minorant].split.units
        if not np.all(d > 0):
            return
        codes = self._rays.boxes[0]
        scale = self._best_scale[self._rays.group]
        start = scale * codes[np.argmin(np.abs((self._fixed.target[0] / scale)[:, None] - codes), axis=1)]
        z = highest_point(
            self._fixed.gram, self._fixed.target[0], d, self._rays.boxes, self._rays.group, start, stop
        )[1]  # fmt: skip
        number = self._keep(ScalePoint(z[None], point.minorant, np.zeros((1, 0))))
        _, node, low, high = heapq.heappop(self._open)
        self._push(node, low, high, [self._child[node], number])

    def _solve(self, scale: Float, box: int, start: Float, stop: Callable[[], bool]) -> int:
        point = self._fixed.point(self._minorant, scale, box, start, stop)
        self._since += 1
        if len(self._points) == 1 or self._since >= LEARN_EVERY:
            self._since = 0
            learned = self._fixed.refit(point.minorant, scale, box, point.z, stop)
            if learned is not None:
                self._minorant = learned.minorant
                return self._keep(learned)
        return self._keep(point)


def _inside(at: float, low: float, high: float, usual: float) -> float:
    """A positive, finite scale in an interval at or near a given one."""
    if 0 < at < np.inf:
        return at
    if at == 0:
        return min(high, usual) / BEYOND if not np.isfinite(high) or high > usual else high / BEYOND
    return max(low, usual) * BEYOND


def _between(one: float, other: float) -> float:
    """The middle of two scales in logarithm; beside the first where the other is 0 or infinite."""
    if other == 0:
        return one / BEYOND
    return one * BEYOND if not np.isfinite(other) else float(np.sqrt(one * other))
