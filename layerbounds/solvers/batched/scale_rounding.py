"""Weights for all rows whose scales are free: rounding at several scales, and the best scales of the codes in turn.

For given codes the error is a convex quadratic function of the scales of the row's groups; one product
with the Gram matrix gives it for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.problems.scale_nearest import VANISHING
from layerbounds.solvers.batched.group import Group
from layerbounds.solvers.batched.lattice import LevelRows
from layerbounds.solvers.batched.rounding import round_rows

#: Scales that are tried, as factors of the one at which the largest target meets the largest code.
FACTORS = np.geomspace(0.2, 2.5, 28)
#: Of those the ones that are evaluated, that are rounded at, and the turns of rounding and best scales.
EVALUATED, ROUNDED, TURNS = 8, 3, 3
#: Share of the usual work on the weights of one scale.
EFFORT = 0.25
#: Numbers in the weights that are evaluated together.
WORK_NUMBERS = 1 << 24
#: Turns from one group's best scale to the next one's.
SWEEPS = 20


def is_uniform(codes: Float) -> bool:
    """Whether all lists of codes are two or more consecutive integers."""
    return codes.shape[1] > 1 and bool(np.all(np.diff(codes, axis=1) == 1) and np.all(codes == np.rint(codes)))


@dataclass(frozen=True, eq=False)
class Grids:
    """Scales and lists of codes of some rows.

    Attributes
    ----------
    codes : ndarray of shape (lists, levels)
    group : ndarray of int64, shape (n,)
        The scale group of each input.
    scale : ndarray of shape (lines, groups)
    which : ndarray of int64, shape (lines, groups)
        The list of each group.
    """

    codes: Float
    group: Int
    scale: Float
    which: Int

    def nearest(self, targets: Float) -> Float:
        """The codes nearest to targets, shape (lines, n)."""
        values = targets / self.scale[:, self.group]
        which = self.which[:, self.group]
        if is_uniform(self.codes):
            return np.clip(np.rint(values), self.codes[which, 0], self.codes[which, -1])
        result = np.empty_like(values)
        for k, codes in enumerate(self.codes):
            inside = which == k
            result[inside] = codes[np.searchsorted(0.5 * (codes[1:] + codes[:-1]), values[inside])]
        return result

    def levels(self, targets: Float) -> LevelRows:
        """The levels in single precision."""
        each = self.scale[:, self.group]
        which = self.which[:, self.group].astype(np.int8)
        if len(self.codes) == 1:
            which = which[:1]
        scale = self.scale if self.scale.shape[1] == 1 else each
        origin, single, codes = (a.astype(np.float32) for a in (targets / each, scale, self.codes))
        return LevelRows(np.ones(len(targets)), origin, single, codes, which, is_uniform(self.codes))


@dataclass(eq=False)
class Found:
    """The best weights of each row so far: ``scale·codes``.

    Attributes
    ----------
    scale : ndarray of shape (rows, groups)
    error : ndarray of shape (rows,)
    which : ndarray of int64, shape (rows, groups)
        The lists of codes.
    codes : ndarray of shape (rows, n)
    """

    scale: Float
    error: Float
    which: Int
    codes: Float

    def offer(self, row: Int, grids: Grids, codes: Float, error: Float) -> None:
        """Take what is better; rows may come several times."""
        for k in np.flatnonzero(error < self.error[row]):
            r = row[k]
            if error[k] < self.error[r]:
                self.scale[r], self.error[r], self.which[r], self.codes[r] = (
                    grids.scale[k], error[k], grids.which[k], codes[k],
                )  # fmt: skip


class Rounding:
    """Codes and scales of some rows.

    Parameters
    ----------
    parent : Group
        Whose Gram matrix and targets the next two replace.
    gram : ndarray of shape (n, n)
    targets : ndarray of shape (rows, n)
    codes : ndarray of shape (lists, levels)
    group : ndarray of int64, shape (n,)
        The scale group of each input.
    groups : int
        Some may have no input.
    powers_of_two : bool
        Whether scales are powers of two.
    limit : ndarray of shape (rows,)
        Largest size of a weight.

    Attributes
    ----------
    found : Found
    """

    def __init__(
        self,
        parent: Group,
        gram: Float,
        targets: Float,
        codes: Float,
        group: Int,
        groups: int,
        powers_of_two: bool,
        limit: Float,
    ) -> None:
        self.parent, self.gram, self.targets, self.codes, self.group = parent, gram, targets, codes, group
        self.powers_of_two, self.limit = powers_of_two, limit
        self.groups = groups
        self.members = (group[:, None] == np.arange(self.groups)).astype(np.float64)
        self.energy = np.einsum("ij,ij->i", targets @ gram, targets)
        rows, n = targets.shape
        least = codes[np.arange(len(codes)), np.argmin(np.abs(codes), axis=1)]
        which = int(np.argmin(np.abs(least)))
        # Next to nothing, which is always allowed.
        scale = np.full((rows, self.groups), 1.0 if least[which] == 0 else VANISHING)
        all_codes = np.full((rows, n), float(least[which]))
        self.found = Found(scale, self.energy.copy(), np.full((rows, self.groups), which), all_codes)

    def search(self) -> Found:
        """Scales for the targets alone, then rounding at the best ones."""
        alive = np.flatnonzero(self.targets.any(axis=1))
        count = max(WORK_NUMBERS // (EVALUATED * max(len(self.gram), 1)), 1)
        for begin in range(0, len(alive), count):
            row, scale, which = self._started(alive[begin : begin + count])
            self.round(row, scale, which)
        return self.found

    def round(self, row: Int, scale: Float, which: Int) -> None:
        """Round rows at some scales, in turn with the best scales of the codes.

        Parameters
        ----------
        row : ndarray of int64, shape (lines,)
        scale : ndarray of shape (lines, groups)
        which : ndarray of int64, shape (lines, groups)
        """
        targets = self.targets[row]
        if self.powers_of_two:
            scale = np.asarray(2.0 ** np.round(np.log2(scale)), dtype=np.float64)
        for _ in range(TURNS):
            if self.parent.remaining() <= 0:
                break
            grids = Grids(self.codes, self.group, scale, which)
            codes = self._rounded(grids, targets)
            before, scale = scale, self._offer(row, grids, codes)[0]
            if self.powers_of_two or np.all(np.abs(scale - before) <= 1e-6 * before):
                break

    def _rounded(self, grids: Grids, targets: Float) -> Float:
        """Codes of small error at fixed scales; where a row's groups have several codebooks, the nearest ones."""
        codes = grids.nearest(targets)
        if is_uniform(self.codes):
            lists = [(np.arange(len(targets)), self.codes[0] - self.codes[0, 0], -self.codes[grids.which, 0])]
        else:
            zero = np.zeros_like(grids.scale)
            same = [(np.flatnonzero((grids.which == k).all(axis=1)), k) for k in range(len(self.codes))]
            lists = [(rows, self.codes[k], zero[rows]) for rows, k in same if len(rows)]
        for rows, base, zero in lists:
            choice = round_rows(
                self.gram,
                targets[rows],
                base,
                grids.scale[rows],
                zero,
                group=self.group,
                threads=self.parent.threads,
                seed=self.parent.control.seed,
                effort=EFFORT * self.parent.control.options["effort"],
                remaining=self.parent.remaining,
            )
            codes[rows] = base[choice] - zero[:, self.group]
        return codes

    def _offer(self, row: Int, grids: Grids, codes: Float) -> tuple[Float, Float]:
        """Weights with the best scales of given codes: these, and the errors."""
        better = replace(grids, scale=self._rescaled(row, grids, codes))
        weights = better.scale[:, self.group] * codes
        deviation = weights - self.targets[row]
        error = np.einsum("ij,ij->i", deviation @ self.gram, deviation)
        error[np.abs(weights).max(axis=1, initial=0.0) > self.limit[row]] = np.inf
        self.found.offer(row, better, codes, error)
        return better.scale, error

    def _started(self, alive: Int) -> tuple[Int, Float, Int]:
        """Rows, scales and lists of codes that are worth rounding at."""
        targets, rows = self.targets[alive], len(alive)
        size = np.stack(
            [np.abs(targets[:, self.group == g]).max(axis=1, initial=0.0) for g in range(self.groups)], axis=1
        )
        size = np.where(size > 0, size, size.max(axis=1, keepdims=True))
        trials = [(factor, k) for factor in FACTORS for k in range(len(self.codes))]
        scales, cost = np.empty((2, len(trials), rows, self.groups))
        for trial, (factor, k) in enumerate(trials):
            scale = size * factor / np.abs(self.codes[k]).max()
            scales[trial] = 2.0 ** np.round(np.log2(scale)) if self.powers_of_two else scale
            grids = Grids(self.codes, self.group, scales[trial], np.full((rows, self.groups), k))
            away = scales[trial][:, self.group] * grids.nearest(targets) - targets
            cost[trial] = (away**2 * np.diag(self.gram)) @ self.members
        lists = np.array([k for _, k in trials])
        order = np.argsort(cost, axis=0, kind="stable")[:EVALUATED]
        # The best ones of all groups together, then all second ones, ….
        row = np.tile(alive, len(order))
        scale = np.take_along_axis(scales, order, axis=0).reshape(-1, self.groups)
        which = lists[order].reshape(-1, self.groups)
        grids = Grids(self.codes, self.group, scale, which)
        better, error = self._offer(row, grids, grids.nearest(self.targets[row]))
        kept = np.argsort(error.reshape(len(order), rows), axis=0, kind="stable")[:ROUNDED]
        place = (kept * rows + np.arange(rows)).ravel()
        return row[place], better[place], which[place]

    def _rescaled(self, row: Int, grids: Grids, codes: Float) -> Float:
        """The best positive scales of codes, one group after the other."""
        if self.powers_of_two:
            return grids.scale
        lines = len(codes)
        matrix, side = np.empty((lines, self.groups, self.groups)), np.empty((lines, self.groups))
        for g in range(self.groups):
            inside = self.group == g
            moved = codes[:, inside] @ self.gram[inside]
            matrix[:, g] = (moved * codes) @ self.members
            side[:, g] = np.einsum("ij,ij->i", moved, self.targets[row])
        reach = np.stack(
            [np.abs(codes[:, self.group == g]).max(axis=1, initial=0.0) for g in range(self.groups)], axis=1
        )
        most = self.limit[row][:, None] * (1 - 1e-15) / np.where(reach > 0, reach, 1.0)
        scale = grids.scale.copy()
        for _ in range(SWEEPS if self.groups > 1 else 1):
            for g in range(self.groups):
                curvature = matrix[:, g, g]
                pull = side[:, g] - np.einsum("ij,ij->i", matrix[:, g], scale) + curvature * scale[:, g]
                best = np.divide(pull, curvature, out=scale[:, g].copy(), where=(curvature > 0) & (pull > 0))
                scale[:, g] = np.minimum(best, most[:, g])
        return scale
