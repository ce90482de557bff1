"""The least error of pruning and quantization together over all scales, enclosed by problems at fixed scales.

A point s·q of a ray has the error g(s) = E − 2ps + rs², E = f(0). With t = 1/s, g(s) < C means
(E − C)t² − 2pt + r < 0, and a ray does best at the vertex t = p/(E − C). Where the vertex lies between 1/b and 1/a, the
same codes have at s* = 2ab/(a + b) an error below C + (E − C)ρ², ρ = (b − a)/(a + b). So C is a lower bound over all
scales if cells cover them and the least error at each s* is at least C + (E − C)ρ² (docs/joint.md).
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from layerbounds.arguments import real_number, whole_number
from layerbounds.arrays import Float, Int
from layerbounds.bounds.least import least
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.objective import objective_interval
from layerbounds.exceptions import InputError
from layerbounds.kernels.factorization import UNIT, cholesky
from layerbounds.problems.grids import Grid
from layerbounds.problems.joint import JointProblem
from layerbounds.problems.levels import Levels, nearest_levels
from layerbounds.problems.problem import check_channels
from layerbounds.proofs import DualPoint
from layerbounds.solve import solve

#: b/a of the first cells, and up to which a cell's problem is solved roughly, to this gap.
FIRST, ROUGH, ROUGH_GAP = 1.3, 1.05, 0.1
#: Problems at fixed scales for one channel, at most.
MOST_CELLS = 3000
#: Scales are tried downwards by this factor until even the box excludes them.
SHRINK = 1.25


@dataclass(frozen=True, eq=False)
class AllScales:
    """Certified intervals over all positive scales.

    Attributes
    ----------
    bounds : ndarray of shape (channels, 2)
        Of the least error over scales, codes and supports.
    scale : ndarray of shape (channels,)
        At which the upper ends are reached.
    weights : ndarray of shape (channels, n)
        They reach them.
    cells : ndarray of int64, shape (channels,)
        Problems at fixed scales that were solved.
    """

    bounds: Float
    scale: Float
    weights: Float
    cells: Int


def joint_over_scales(
    problem: JointProblem,
    *,
    channels: Sequence[int] | None = None,
    tolerance: float = 0.01,
    time_limit: float = 60.0,
    seed: int = 0,
) -> AllScales:
    """Certified intervals of a joint problem whose scales are chosen with the codes.

    Meant for few inputs (n ≤ 32): a channel takes some hundred problems at fixed scales.

    Parameters
    ----------
    problem : JointProblem
        Its grid has one scale for each channel and no zero points; the codes count, its scales are where the search
        begins.
    channels : sequence of int, optional
        Default: all.
    tolerance : float
        A channel is finished when upper − lower ≤ tolerance · upper.
    time_limit : float
        Seconds for a channel.
    seed : int

    Raises
    ------
    InputError
        If the grid has several scales for a channel, negative ones, or zero points, or no code 0 between the others.
    """
    real_number(tolerance, "tolerance", 0.0, 1.0)
    real_number(time_limit, "time_limit", 0.0, unit="number of seconds")
    whole_number(seed, "seed")
    check_all_scales(problem)
    rows = check_channels(problem, channels)
    found = [_Channel(problem, channel, time_limit, seed).enclose(tolerance) for channel in rows]
    return AllScales(
        np.array([[one.lower, one.upper] for one in found]).reshape(-1, 2),
        np.array([one.scale for one in found]),
        np.array([one.weights for one in found]).reshape(len(rows), -1),
        np.array([one.cells for one in found], dtype=np.int64),
    )


def check_all_scales(problem: JointProblem) -> None:
    """Refuse grids whose scales cannot be chosen with the codes.

    Raises
    ------
    InputError
        See `joint_over_scales`.
    """
    grid = problem.grid
    if grid.scale.shape[1] != 1 or np.any(grid.zero_point) or grid.affine:
        raise InputError(
            "all scales of a joint problem need one scale for each channel, not 0, and no zero points or offsets."
        )
    if np.any(grid.scale < 0.0):
        raise InputError("all scales of a joint problem are the positive ones; pass positive scales to begin with.")
    if not grid.codes[0] <= 0.0 <= grid.codes[-1] or not np.any(grid.codes):
        raise InputError("all scales of a joint problem need codes on both sides of 0, or 0 itself.")


class _Channel:
    """The cells of one output channel."""

    def __init__(self, problem: JointProblem, channel: int, time_limit: float, seed: int) -> None:
        self.problem, self.channel, self.seed = problem, channel, seed
        self.deadline = time.perf_counter() + time_limit
        layer = problem.layer
        live = self.live = layer.live(layer.group_of(channel))
        self.gram = np.ascontiguousarray(problem.gram(channel)[np.ix_(live, live)])
        self.target = layer.target[channel][live]
        self.constant = float(layer.constant[channel])
        self.codes = problem.grid.codes
        self.norm = float(np.sqrt(np.diag(self.gram)).sum()) * float(np.abs(self.codes).max())
        # f(0), rounded up.
        magnitude = np.abs(self.target) @ np.abs(self.gram) @ np.abs(self.target)
        energy = float(self.target @ self.gram @ self.target)
        self.energy = (energy + 4 * (len(live) + 8) * UNIT * float(magnitude) + self.constant) * (1 + 4 * UNIT)
        self.upper, self.scale = np.inf, float(problem.grid.scale[channel, 0])
        self.weights = np.zeros(layer.in_features)
        self.lower = self.constant
        self.cells = 0

    def at(self, scale: float) -> JointProblem:
        """The problem at one scale for all channels."""
        grid = self.problem.grid
        fixed = Grid(self.codes, np.full_like(grid.scale, scale), np.zeros(()), grid.in_features, uniform=grid.uniform)
        return JointProblem(self.problem.layer, fixed, self.problem.pattern, self.problem.kept)

    def enclose(self, tolerance: float) -> _Channel:
        """Divide the scales until the interval is narrow enough, or the time is over."""
        if not len(self.gram):
            self.upper = self.lower
            return self
        self.solved(self.scale, self.scale, 0.0)
        ends = self.ends(tolerance)
        if ends is None:
            return self
        low, high, below = ends
        count = max(int(np.ceil(np.log(high / low) / np.log(FIRST))), 1)
        edges = np.geomspace(low, high, count + 1)
        # Divided scales must not leave a gap between cells: neighbours share their edge.
        heap = [(self.constant, a, b) for a, b in itertools.pairwise(edges.tolist())]
        unseen = {(a, b) for _, a, b in heap}
        heapq.heapify(heap)
        while heap[0][1:] in unseen or heap[0][0] < (1.0 - tolerance) * self.upper:
            if time.perf_counter() > self.deadline or self.cells >= MOST_CELLS:
                break
            value, a, b = heapq.heappop(heap)
            if (a, b) in unseen:
                unseen.discard((a, b))
                heapq.heappush(heap, (max(self.solved(a, b, value), value), a, b))
                continue
            middle = 2.0 * a * b / (a + b)
            for one, other in ((a, middle), (middle, b)):
                heapq.heappush(heap, (max(self.solved(one, other, value), value), one, other))
        bound = min(heap[0][0], self.constant + below, self.upper)
        # Weights are rounded products of a scale and codes.
        root = np.sqrt(max(bound - self.constant, 0.0)) - 2.0 * UNIT * self.norm * high
        self.lower = max(self.constant, float(np.nextafter(self.constant + max(root, 0.0) ** 2, -np.inf)))
        return self

    def solved(self, a: float, b: float, value: float) -> float:
        """A lower bound for all rays whose vertex is between two scales; looks for weights on the way."""
        self.cells += 1
        scale = 2.0 * a * b / (a + b)
        gap = ROUGH_GAP if b > ROUGH * a else 0.0
        left = max(self.deadline - time.perf_counter(), 0.05)
        solution = solve(
            self.at(scale), "native", channels=[self.channel], time_limit=left, gap=gap, jobs=1, seed=self.seed
        )
        if solution.interrupted:
            raise KeyboardInterrupt
        self.offer(solution.weights[0].ravel(), scale)
        ratio = (b - a) / (a + b) * (1.0 + 8 * UNIT)
        root = np.sqrt(max(float(solution.lower_bound[0]) - self.constant, 0.0)) - 2.0 * UNIT * self.norm * scale
        least_error = self.constant + max(root, 0.0) ** 2
        return float((least_error - self.energy * ratio**2) / (1.0 - ratio**2)) * (1.0 - 16 * UNIT)

    def offer(self, weights: Float, scale: float) -> None:
        """Take the codes of some weights at their best scale."""
        live = self.live
        q = nearest_levels(np.tile(np.union1d(self.codes, 0.0), (int(live.sum()), 1)), weights[live] / scale)
        square, product = float(q @ self.gram @ q), float(q @ self.gram @ self.target)
        best = product / square if square > 0.0 and product > 0.0 else scale
        moved = best * q + 0.0
        high = objective_interval(self.gram, self.target, moved)[1]
        error = float(np.nextafter(high + self.constant, np.inf)) if high > 0.0 else self.constant
        if error < self.upper:
            self.upper, self.scale = error, best
            self.weights = self.problem.complete(self.channel, moved)

    def ends(self, tolerance: float) -> tuple[float, float, float] | None:
        """Scales beyond which nothing is below the upper bound, or by half the tolerance at most.

        The third number is a lower bound, without the constant, at the scales below the first one: they come near
        f(0), which may be the least error. None where the Gram matrix does not say.
        """
        n = len(self.gram)
        if cholesky(self.gram) is None:
            return None
        d = maximize_minorant(self.gram, np.ones(n))
        if not np.all(d > 0.0):
            return None
        above = self.upper - self.constant
        smallest = float(np.abs(self.codes[self.codes != 0.0]).min())
        # d_i (v_i − w_i)² is at most the error; a weight other than zero is at least the scale times the smallest code.
        high = float(np.max(np.abs(self.target) + np.sqrt(above / d))) / smallest * (1.0 + 1e-9)
        low = min(self.scale, high)
        while (below := self.box_bound(low)) < above * (1.0 + 1e-9 - 0.5 * tolerance):
            low /= SHRINK
            if low < 1e-12 * high or time.perf_counter() > self.deadline:
                return None
        return low, max(high, low * (1.0 + 1e-9)), below

    def box_bound(self, scale: float) -> float:
        """A lower bound on the error of all weights of a scale or a smaller one: the box of the codes, relaxed."""
        ends = scale * np.array([self.codes[0], self.codes[-1]]) * (1.0 + np.array([1.0, 1.0]) * 4 * UNIT)
        factor = np.linalg.cholesky(self.gram).T
        low, high = np.minimum(ends[0], -1e-300), np.maximum(ends[1], 1e-300)
        z = lsq_linear(factor, factor @ self.target, bounds=(low, high), tol=1e-12).x
        table = np.tile([low, high], (len(z), 1))
        ones = np.ones(len(z))
        levels = Levels(table, table, ones, 0.0 * ones, False)
        # With a diagonal of zeros what is left is linear, and least at an end.
        return least(self.gram, self.target, levels, DualPoint(z, np.zeros(len(z))))
