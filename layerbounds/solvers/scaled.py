"""Channels whose scales are free as mixed-integer problems: p = s·q, bilinear in scales and codes (docs/backends.md).

Weights are v_i = p_i, or p_i + o with a real zero point, in units of about the incumbent's scale. Codes are integers
where they are consecutive, else sums of binaries. An integer zero point z is an integer of its own, with q_i the
differences and 0 ≤ q_i + z ≤ levels − 1. All variables are bounded by what weights better than the incumbent can be.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from layerbounds.arrays import Float, Int
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.methods.base import ChannelView, choice_of
from layerbounds.methods.beam import beam
from layerbounds.problems.problem import Problem
from layerbounds.problems.scale_fit import ScaleFit
from layerbounds.problems.scale_nearest import VANISHING, snapped_zero
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.solvers.base import Capability
from layerbounds.solvers.formulation import Formulation, Row, starts, write_down
from layerbounds.solvers.sublevel import MARGIN, rank_factor, reach

#: Starting scales as multiples of the one at which nothing is clipped, partial assignments of each beam, and turns of
#: beam and best scale.
FACTORS, WIDTH, TURNS = np.geomspace(0.3, 2.0, 24), 64, 3
#: Powers of two, from the largest on, that have a binary of their own; smaller scales are relaxed to an interval.
POWERS = 24
#: Gram matrices without a limit on the weights are so definite: H ⪰ this · n · diag(H), rounding included.
DEFINITE = 2.0**-40


def check_scaled(problem: Problem, backend: str) -> None:
    """Refuse scales that several output channels share.

    Raises
    ------
    UnsupportedProblemError
    """
    several = any(len(rows) > 1 for rows in problem.sets(range(problem.layer.out_features)))
    if several and problem.requirement == Capability.FREE_SCALE:
        raise UnsupportedProblemError(
            f"backend {backend!r} cannot treat a free scale that several output channels share; use the native backend "
            "or granularity='channel'."
        )


@starts.register
def _(allowed: ScaledLevels, task: Task[ScaledLevels], rng: np.random.Generator) -> list[Float]:
    """The nearest weights, and beams at several scales in turn with the best scales of their codes."""
    nearest = allowed.nearest(task.target)
    if not np.any(task.target):
        return [nearest]
    scaling = Scaling(task)
    known = allowed.fit(nearest)
    assert known is not None
    found = [nearest, scaling.weights(scaling.best(known.codes, known.zero_point, known.scale))]
    width = len(allowed.codes) - 1 or 1
    shared: dict[Hashable, Any] = {}
    for factor in FACTORS:
        scale, zero = np.ones(allowed.groups), np.zeros(allowed.groups)
        for g in range(allowed.groups):
            values = task.target[allowed.group == g]
            low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
            whole = high - low if allowed.zero != "none" else 2.0 * max(high, -low)
            peak = width if allowed.zero != "none" else 2.0 * np.max(np.abs(allowed.codes))
            scale[g] = factor * whole / peak if whole > 0 else 1.0
            zero[g] = 0.0 if allowed.zero == "none" else 0.5 * width - 0.5 * (low + high) / scale[g]
        if allowed.zero == "integer":
            zero = np.clip(np.rint(zero), 0.0, width)
        for _ in range(TURNS):
            levels = scale[allowed.group, None] * (allowed.codes - zero[allowed.group, None])
            # With a negative scale levels descend.
            turned = scale[allowed.group] < 0
            levels[turned] = levels[turned, ::-1]
            count = np.full(len(levels), levels.shape[1], dtype=np.int64)
            view = ChannelView(task.gram, task.target, np.ascontiguousarray(levels), count, rng, shared)
            choice = choice_of(view, beam(view, WIDTH))
            choice = np.where(turned, levels.shape[1] - 1 - choice, choice)
            fit = scaling.best(allowed.codes[choice], zero, scale)
            found.append(scaling.weights(fit))
            if np.array_equal(fit.scale, scale) or not np.all(np.isfinite(fit.zero_point)):
                break
            scale = np.where(fit.scale == 0.0, scale, fit.scale)
            zero = fit.zero_point
    return found


class Scaling:
    """From codes to the weights at their best scales.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task[ScaledLevels]) -> None:
        self.allowed = task.allowed
        self.root = rank_factor(task.gram)
        self.goal = self.root @ task.target

    def best(self, codes: Float, zero: Float, scale: Float) -> ScaleFit:
        """The best scales, and real zero points, of codes; a scale of 0 where none is better.

        Parameters
        ----------
        codes : ndarray of shape (n,)
        zero : ndarray of shape (groups,)
            Integer zero points.
        scale : ndarray of shape (groups,)
            Powers of two to start from.
        """
        allowed, groups = self.allowed, self.allowed.groups
        member = (allowed.group[:, None] == np.arange(groups)).astype(np.float64)
        real = allowed.zero == "real"
        offsets = np.zeros(groups) if real else zero
        columns = self.root @ (member * (codes - offsets[allowed.group])[:, None])
        if allowed.powers_of_two:
            scale = self._powers(columns, scale)
        elif allowed.signed and not real:
            scale = np.linalg.lstsq(columns, self.goal, rcond=None)[0]
        else:
            ones = self.root @ member if real else np.zeros((len(self.root), 0))
            solution = nnls(np.hstack([columns, ones, -ones]), self.goal)[0]
            scale = solution[:groups]
            if real:
                shift = solution[groups : 2 * groups] - solution[2 * groups :]
                # All weights of a group are equal: any scale will do.
                codes = np.where(scale[allowed.group] > 0, codes, 0.0)
                scale = np.where(scale > 0, scale, np.where(shift != 0, np.abs(shift), 1.0))
                offsets = np.array(
                    [snapped_zero(-o / s, len(allowed.codes)) for o, s in zip(shift, scale, strict=True)]
                )
        return ScaleFit(scale, offsets, codes, scale, scale)

    def _powers(self, columns: Float, scale: Float) -> Float:
        """The best power of two of one group after the other: one of the two around the vertex of a parabola."""
        scale = scale.copy()
        for _ in range(2 if len(scale) == 1 else 6):
            for g, column in enumerate(columns.T):
                rest = self.goal - columns @ scale + scale[g] * column
                along, square = float(column @ rest), float(column @ column)
                if along > 0 and square > 0:
                    lower = 2.0 ** np.floor(np.log2(along / square))
                    scale[g] = lower if along / square <= 1.5 * lower else 2.0 * lower
        return scale

    def weights(self, fit: ScaleFit) -> Float:
        """Allowed weights of codes at their scales."""
        allowed = self.allowed
        none = fit.scale[allowed.group] == 0.0
        codes = fit.codes
        if allowed.zero == "none" and 0.0 not in allowed.codes:
            scale = np.where(fit.scale == 0.0, VANISHING, fit.scale)
        else:
            scale = np.where(fit.scale == 0.0, 1.0, fit.scale)
            codes = np.where(none, fit.zero_point[allowed.group], codes)
        found = allowed.weights(ScaleFit(scale, fit.zero_point, codes, scale, scale))
        return found if np.max(np.abs(found), initial=0.0) <= allowed.limit else allowed.nearest(found)


@dataclass(frozen=True, eq=False)
class Range:
    """What weights at least as good as the incumbent can be.

    Attributes
    ----------
    low, high : ndarray of shape (n,)
        Of the weights.
    least, most : ndarray of shape (groups,)
        Of the sizes of the scales, unless all weights of the group are equal (0, or to each other with real zero
        points): then any scale explains them.
    """

    low: Float
    high: Float
    least: Float
    most: Float


def sublevel_range(task: Task[ScaledLevels], unit: float) -> Range:
    """The ranges of weights and scales within the set of errors up to ``unit``."""
    allowed, n = task.allowed, len(task.target)
    far = reach(task.gram, unit)
    if np.isinf(allowed.limit):
        far = np.minimum(far, np.sqrt(unit / (DEFINITE * n * np.diag(task.gram))) * (1 + MARGIN))
    low, high = np.maximum(task.target - far, -allowed.limit), np.minimum(task.target + far, allowed.limit)
    sizes = np.abs(allowed.codes[allowed.codes != 0])
    smallest = 1.0 if allowed.zero != "none" else float(sizes.min())
    top, bottom = float(allowed.codes[-1]), float(allowed.codes[0])
    least, most = np.zeros(allowed.groups), np.zeros(allowed.groups)
    for g in range(allowed.groups):
        mine = allowed.group == g
        lower, upper = low[mine], high[mine]
        if allowed.zero == "real":
            least[g] = (lower.max() - upper.min()) / top if top > 0 else 0.0
            most[g] = upper.max() - lower.min()
            continue
        if allowed.zero == "integer":
            bottom = -top
        bounds = np.maximum(np.abs(lower), np.abs(upper)) / smallest
        most[g] = bounds.max() if allowed.zero != "none" or 0.0 in allowed.codes else bounds.min()
        reached = max(top, -bottom)
        up, down = (reached, reached) if allowed.signed else (top, -bottom)
        least[g] = max(lower.max() / up if up > 0 else 0.0, (-upper).max() / down if down > 0 else 0.0)
    return Range(low, high, np.maximum(least, 0.0) * (1 - MARGIN), most * (1 + MARGIN))


@write_down.register
def _(allowed: ScaledLevels, task: Task[ScaledLevels], start: Float, unit: float, form: str) -> Formulation:
    return _Writer(task, start, unit).formulation()


class _Writer:
    """Variables: q (n), p (n), s (groups), then offsets or integer zero points (groups), then binaries."""

    def __init__(self, task: Task[ScaledLevels], start: Float, unit: float) -> None:
        self.task, self.allowed, self.unit, self.start = task, task.allowed, unit, start
        self.scaling = Scaling(task)
        allowed, n, groups = self.allowed, len(start), self.allowed.groups
        self.q, self.p, self.s = np.arange(n), n + np.arange(n), 2 * n + np.arange(groups)
        self.zero = 2 * n + groups + np.arange(0 if allowed.zero == "none" else groups)
        self.size = 2 * n + groups + len(self.zero)
        self.rows: list[Row] = []
        self.range = sublevel_range(task, unit)
        fit = allowed.fit(start)
        assert fit is not None
        # A group of weights that are all equal may say nothing about its scale.
        told = np.array([len(np.unique(fit.codes[allowed.group == g])) > 1 for g in range(groups)])
        usual = np.where(told, np.abs(fit.scale), np.maximum(self.range.most, np.finfo(np.float64).tiny))
        self.step = 2.0 ** np.rint(np.log2(usual))

    def formulation(self) -> Formulation:
        """The whole problem."""
        allowed, n, group = self.allowed, len(self.start), self.allowed.group
        step = self.step[group]
        least, most = self.range.least / self.step, self.range.most / self.step
        top = float(allowed.codes[-1])
        bottom = -top if allowed.zero == "integer" else float(allowed.codes[0])
        p_low, p_high = self.range.low / step, self.range.high / step
        if allowed.zero == "real":
            p_low, p_high = np.zeros(n), (most * top)[group]
        lows = [np.full(n, bottom), p_low, -most if allowed.signed and allowed.zero == "none" else least]
        highs = [np.full(n, top), p_high, most]
        if allowed.zero == "real":
            ends = [
                (self.range.low[group == g].min(), self.range.high[group == g].max()) for g in range(allowed.groups)
            ]
            lows.append(np.array([low for low, _ in ends]) / self.step - most * top)
            highs.append(np.array([high for _, high in ends]) / self.step)
        elif allowed.zero == "integer":
            lows.append(np.zeros(allowed.groups))
            highs.append(np.full(allowed.groups, top))
            for i in range(n):
                pair = np.array([self.q[i], self.zero[group[i]]])
                self.rows.append(Row(pair, np.ones(2), 0.0, top))
        low, high = np.concatenate(lows), np.concatenate(highs)
        integer = np.zeros(self.size, dtype=bool)
        integer[self.q] = allowed.uniform
        integer[self.zero] = allowed.zero == "integer"
        code_binaries = [] if allowed.uniform else self._code_binaries()
        powers = self._power_binaries(most) if allowed.powers_of_two else []
        added = self.size - len(low)
        low, high = np.append(low, np.zeros(added)), np.append(high, np.ones(added))
        integer = np.append(integer, np.ones(added, dtype=bool))
        for slack, _, _, largest in powers:
            integer[slack], high[slack] = False, largest
        root = rank_factor(self.task.gram / self.unit)
        factor = np.zeros((len(root), self.size))
        factor[:, self.p] = root * step
        if allowed.zero == "real":
            for g in range(allowed.groups):
                factor[:, self.zero[g]] = (root * step)[:, group == g].sum(axis=1)

        def encode(weights: Float) -> Float:
            fit = allowed.fit(weights)
            assert fit is not None
            point = np.zeros(self.size)
            scale = np.clip(fit.scale / self.step, low[self.s], high[self.s])
            codes = fit.codes - (0.0 if allowed.zero == "real" else fit.zero_point[group])
            point[self.s], point[self.q], point[self.p] = scale, codes, scale[group] * codes
            if allowed.zero == "integer":
                point[self.zero] = fit.zero_point
            elif allowed.zero == "real":
                left = weights / step - point[self.p]
                point[self.zero] = [left[group == g].mean() for g in range(allowed.groups)]
            for i, members in enumerate(code_binaries):
                point[members[np.argmin(np.abs(allowed.codes - fit.codes[i]))]] = 1.0
            for g, (slack, small, members, largest) in enumerate(powers):
                power = 2.0 ** self._exponents(float(most[g]))
                # Where all codes are 0, any scale will do.
                chosen = np.flatnonzero(power == scale[g]) if np.any(codes[group == g]) else np.zeros(1, dtype=np.int64)
                point[members[chosen] if chosen.size else small] = 1.0
                point[slack] = 0.0 if chosen.size else min(float(scale[g]), largest)
                point[self.s[g]] = power[chosen[0]] if chosen.size else point[slack]
            return point

        def decode(u: Float) -> Float:
            zero = np.rint(u[self.zero]) if allowed.zero == "integer" else np.zeros(allowed.groups)
            near = u[self.q] + zero[group]
            codes = allowed.codes[np.argmin(np.abs(allowed.codes - near[:, None]), axis=1)]
            scale = np.maximum(u[self.s], 2.0**-POWERS * most) * self.step
            if allowed.powers_of_two:
                scale = 2.0 ** np.rint(np.log2(scale))
            return self.scaling.weights(self.scaling.best(codes, zero, scale))

        return Formulation(
            factor=factor,
            offset=root @ self.task.target,
            cost=np.zeros(self.size),
            constant=0.0,
            low=low,
            high=high,
            integer=integer,
            unit=self.unit,
            decode=decode,
            encode=encode,
            start=encode(self.start),
            rows=self.rows,
            products=[(int(self.p[i]), int(self.s[group[i]]), int(self.q[i])) for i in range(n)],
        )

    def _new(self, count: int) -> Int:
        first, self.size = self.size, self.size + count
        return np.arange(first, self.size)

    def _code_binaries(self) -> list[Int]:
        """For each input a binary for each code, one of which is set."""
        codes, found = self.allowed.codes, []
        for q in self.q:
            members = self._new(len(codes))
            self.rows.append(Row(members, np.ones(len(members)), 1.0, 1.0))
            self.rows.append(Row(np.append(members, q), np.append(codes, -1.0), 0.0, 0.0))
            found.append(members)
        return found

    def _exponents(self, most: float) -> Float:
        """Of the largest powers of two that count."""
        return np.asarray(np.floor(np.log2(most)) - np.arange(float(POWERS)))

    def _power_binaries(self, most: Float) -> list[tuple[int, int, Int, float]]:
        """For each group: a small scale, the binary that allows it, binaries of powers, and what bounds the small."""
        found = []
        for g, s in enumerate(self.s):
            powers = 2.0 ** self._exponents(float(most[g]))
            slack, small = self._new(2).tolist()
            members = self._new(POWERS)
            largest = 0.5 * float(powers[-1])
            self.rows.append(Row(np.append(members, small), np.ones(POWERS + 1), 1.0, 1.0))
            self.rows.append(Row(np.array([slack, small]), np.array([1.0, -largest]), -np.inf, 0.0))
            self.rows.append(Row(np.concatenate([members, [slack, s]]), np.append(powers, [1.0, -1.0]), 0.0, 0.0))
            found.append((slack, small, members, largest))
        return found
