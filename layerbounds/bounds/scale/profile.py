"""A separable bound as a function of the scale: piecewise quadratic, minimised exactly over intervals.

With v = s·c, c_i one of the codes of i, a separable quadratic bound is

    LB(s) = F + Σ_i min_c [ d_i (s c)² − 2 b_i s c ] = F + A_k s² − 2 B_k s   for s between two breaks,

A = Σ d_i c_i² and B = Σ b_i c_i at the codes nearest to x_i/s, x_i = b_i/d_i. A code gives way to its neighbour at
s = x_i/m, m the middle of the two. From s = ∞ downward all codes move away from zero on the side of x_i: A and B change
by nonnegative terms, and their sums in that order lose nothing to cancellation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float

#: Of any floating-point type, extended precision included.
Real = npt.NDArray[Any]


class Profile:
    """The bound of some inputs that share a scale s > 0, every rounding error charged.

    Parameters
    ----------
    d : ndarray of shape (items,)
        Weights, nonnegative; where one is 0 the term is linear in s.
    b : ndarray of shape (items,)
    codes : ndarray of shape (items, codes)
        Sorted, each row padded with its last code.

    Attributes
    ----------
    edges : ndarray of shape (pieces,)
        Where each piece begins, increasing from 0; the last one has no end.
    square, linear : ndarray of shape (pieces,)
        A and B, rounded to the safe side.
    """

    def __init__(self, d: Real, b: Real, codes: Real) -> None:
        kind = np.result_type(d, b)
        self._unit = float(np.finfo(kind).eps)
        d, b, codes = d.astype(kind), b.astype(kind), codes.astype(kind)
        middle = (codes[:, 1:] + codes[:, :-1]) / 2
        moves = codes[:, 1:] > codes[:, :-1]
        positive, curved = b[:, None] > 0, d[:, None] > 0
        # At s = ∞ the code nearest to zero, of two the one on the side of b; linear terms take the best end always.
        nearest = np.sum(moves & np.where(positive, middle <= 0, middle < 0), axis=1)
        extreme = np.where(b > 0, codes.shape[1] - 1, 0)
        first = np.take_along_axis(codes, np.where(curved[:, 0], nearest, extreme)[:, None], axis=1)[:, 0]
        crossed = moves & curved & (b[:, None] != 0) & np.where(positive, middle > 0, middle < 0)
        item, place = np.nonzero(crossed)
        at = b[item] / (d[item] * middle[item, place])
        old = np.where(b[item] > 0, codes[item, place], codes[item, place + 1])
        new = np.where(b[item] > 0, codes[item, place + 1], codes[item, place])
        order = np.argsort(-at, kind="stable")
        item, at, old, new = item[order], at[order], old[order], new[order]
        steps = d[item] * (new - old) * (new + old), b[item] * (new - old)
        starts = d * first * first, b * first
        count = len(d) + len(at) + 16
        sums, sizes = [], []
        for start, step in zip(starts, steps, strict=True):
            sums.append(np.cumsum(np.concatenate([[start.sum()], step]))[::-1])
            sizes.append(np.cumsum(np.concatenate([[np.abs(start).sum()], np.abs(step)]))[::-1])
        self.edges: Real = np.concatenate([np.zeros(1, dtype=kind), at[::-1]])
        slack = 4 * count * self._unit
        self.square: Real = sums[0] - slack * sizes[0]
        self.linear: Real = sums[1] + slack * sizes[1]
        # Just above an edge rounding may have put breaks in the wrong order: codes that should have changed there cost
        # d|c'² − c²|s²δ too little, δ the relative error of the break.
        near = np.searchsorted(self.edges, self.edges * (1 - 64 * self._unit), side="right") - 1
        self._order: Real = 32 * self._unit * sizes[0][np.maximum(near, 0)] * self.edges * self.edges
        self._least_all: Real | None = None

    def minimum(self, low: float, high: float) -> tuple[float, float]:
        """Least value over low ≤ s ≤ high, rounded down, and where it is.

        Parameters
        ----------
        low, high : float
            0 ≤ low ≤ high, infinity included.

        Returns
        -------
        value, scale : float
            The value is −∞ where the bound falls without end.
        """
        first, last = self._pieces(low, high)
        value, scale = self._least(first, last, low, high)
        best = int(np.argmin(value))
        return float(np.nextafter(float(value[best]), -np.inf)), float(scale[best])

    def least_power(self, low: float, high: float) -> float:
        """Least value over the powers of two in [low, high], rounded down; ∞ where there is none.

        Below the first break and above the last one over all scales, where the powers never end.
        """
        breaks = self.edges[1:]
        first = max(low, float(breaks[0])) if breaks.size else low
        last = min(high, float(breaks[-1])) if breaks.size else low
        value = np.inf
        if low < first or not breaks.size:
            value = self.minimum(low, min(first, high))[0]
        if last < high:
            value = min(value, self.minimum(max(last, low), high)[0])
        if not 0 < first <= last < np.inf:
            return value
        for exponent in range(int(np.floor(np.log2(first))), int(np.ceil(np.log2(last))) + 1):
            scale = 2.0**exponent
            if low <= scale <= high:
                value = min(value, self.minimum(scale, scale)[0])
        return value

    def around(self, scale: float, level: float) -> tuple[float, float]:
        """An interval around a scale in which the bound is at least a level, as long as rounding lets it be.

        Both ends equal the scale where the bound is lower there.
        """
        value = self._whole()
        place = max(int(np.searchsorted(self.edges, scale, side="right")) - 1, 0)
        end = self.edges[place + 1] if place + 1 < len(self.edges) else np.inf
        low = high = scale
        if self.minimum(scale, scale)[0] < level:
            return low, high
        if self.minimum(scale, float(end))[0] < level:
            high = self._crossing(place, scale, float(end), level, up=True)
        else:
            lower = np.flatnonzero(value[place + 1 :] < level)
            if lower.size:
                piece = place + 1 + int(lower[0])
                stop = float(self.edges[piece + 1]) if piece + 1 < len(self.edges) else np.inf
                high = self._crossing(piece, float(self.edges[piece]), stop, level, up=True)
            else:
                high = np.inf
        if self.minimum(float(self.edges[place]), scale)[0] < level:
            low = self._crossing(place, float(self.edges[place]), scale, level, up=False)
        else:
            lower = np.flatnonzero(value[:place] < level)
            if lower.size:
                piece = int(lower[-1])
                low = self._crossing(piece, float(self.edges[piece]), float(self.edges[piece + 1]), level, up=False)
            else:
                low = 0.0
        return low, high

    def _crossing(self, piece: int, left: float, right: float, level: float, up: bool) -> float:
        """Where a piece first falls below a level, seen from its left end (up) or its right one."""
        a, b = float(self.square[piece]), float(self.linear[piece])
        near = left if up else right
        root = b * b + a * level
        if root >= 0 and b > 0:
            # a s² − 2 b s = level: the roots are −level/(b + √…) and (b + √…)/a.
            sum_ = b + np.sqrt(root)
            cross = -level / sum_ if up else (sum_ / a if a > 0 else near)
            if left <= cross <= right:
                return float(cross)
        return near

    def _whole(self) -> Real:
        """Least value of each piece."""
        if self._least_all is None:
            self._least_all = self._least(0, len(self.edges), 0.0, np.inf)[0]
        return self._least_all

    def _pieces(self, low: float, high: float) -> tuple[int, int]:
        first = max(int(np.searchsorted(self.edges, low, side="right")) - 1, 0)
        return first, max(int(np.searchsorted(self.edges, high, side="left")), first + 1)

    def _least(self, first: int, last: int, low: float, high: float) -> tuple[Real, Real]:
        """Least value of each piece from ``first`` to ``last`` within [low, high], and where."""
        a, b = self.square[first:last], self.linear[first:last]
        left = np.maximum(self.edges[first:last], low)
        right = np.concatenate([self.edges[first + 1 : last], [high]]).astype(a.dtype)
        right = np.maximum(np.minimum(right, high), left)
        vertex = np.clip(np.divide(b, a, out=np.where(b > 0, right, left), where=a > 0), left, right)
        with np.errstate(invalid="ignore", over="ignore"):
            points = np.stack([left, right, vertex])
            finite = np.isfinite(points)
            value = (a * points - 2 * b) * points
            value -= 16 * self._unit * (np.abs(a) * points + 2 * np.abs(b)) * points
            # At infinity the sign of the leading coefficient decides.
            leading = np.where(a != 0, a, -b)
            limit = np.where(leading > 0, np.inf, np.where(leading < 0, -np.inf, 0.0))
            value = np.where(finite, value, limit) - self._order[first:last]
        choice = np.argmin(value, axis=0)[None, :]
        return np.take_along_axis(value, choice, axis=0)[0], np.take_along_axis(points, choice, axis=0)[0]


def padded(codes: Float, items: int) -> Float:
    """The same codes for so many items."""
    return np.broadcast_to(codes, (items, len(codes)))
