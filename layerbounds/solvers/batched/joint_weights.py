"""Levels and support for all rows: sets of the relaxation and of pruning, rounded in order, then a local search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.arithmetic import Single
from layerbounds.kernels.batched.joint_weights import improve_rows, round_sets
from layerbounds.solvers.batched.group import in_chunks
from layerbounds.solvers.batched.successive import BLOCK, Choice, Shifts, shifts_in_order
from layerbounds.solvers.batched.support_layout import Layout
from layerbounds.solvers.batched.support_sets import SetSearch, largest_units, refit_rows

#: Share of the mean diagonal that is added for the factorization.
DAMP = 1e-3
#: Gains of no more than this, relative to f(0), are rounding.
FLOOR = 1e-9
#: Visits of weights that the first descents of a layer may take, those after kicks, and moves of a row for each input.
WORK, KICK_WORK, MOVES = 2e10, 2e9, 4
#: Visits after a kick, in multiples of the inputs, and the most kicks of a row.
VISITS_AFTER, MOST_KICKS = 30, 600
#: Visits after which it is asked whether the time is over.
AT_ONCE = 1e7
#: Rows of a thread.
LEAST_ROWS = 4


class JointWeights:
    """Weights for the rows of a layer.

    Parameters
    ----------
    search : SetSearch
    layout : Layout
    norm : ndarray of shape (n,)
        Roots of the diagonal of the Gram matrix, in the order of the layout.
    rows : int
        In all.
    seed : int
    effort : float
        Multiple of the usual number of kicks.
    threads : int
    stop : callable
    """

    def __init__(
        self, search: SetSearch, layout: Layout, norm: Float, rows: int, seed: int, effort: float, threads: int,
        stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._search, self._layout, self._threads, self._stop = search, layout, threads, stop
        self._random = np.random.default_rng([seed, 3])
        self._shifts: Shifts = shifts_in_order(search.matrix, np.argsort(-norm, kind="stable"), DAMP)
        n = len(norm)
        self._most = int(np.clip(WORK / (rows * n**2), 1, MOVES)) * n
        self._kicks = int(np.clip(effort * KICK_WORK / (rows * n * VISITS_AFTER), 0, MOST_KICKS * max(effort, 1.0)))
        self._group = np.repeat(np.arange(len(layout.capacity)), np.diff(layout.units))
        self._begins = layout.inputs[layout.units].astype(np.int64)

    def choose(self, w: Single, values: Single, zero: Choice, score: Single, z: Single, start: Choice | None) -> Choice:
        """Places of good weights among the values.

        Parameters
        ----------
        w : ndarray of float32, shape (rows, n)
        values : ndarray of float32, shape (rows, n, levels)
        zero : ndarray of int16, shape (rows, n)
            Where zero is, exactly: levels may have underflowed to it.
        score : ndarray of float32, shape (rows, units)
            What keeping each unit saves in the relaxation.
        z : ndarray of float32, shape (rows, n)
            Points of the relaxation.
        start : ndarray of int16, shape (rows, n), or None
            Allowed places.
        """
        unit = self._layout.unit
        pruned, refitted = self._search.refitted(w, score, z)
        relaxed = largest_units(score, self._layout)[:, unit]
        own = refit_rows(w, relaxed, z, self._search.product, self._stop)[0]
        candidates = [
            self._rounded(np.where(kept, w + e, np.float32(0.0)), values, zero, kept)
            for kept, e in ((relaxed, own), (pruned, refitted))
        ]
        if start is not None:
            candidates.append(start)
        states: npt.NDArray[np.uint64] = self._random.integers(1, 2**63, len(w)).astype(np.uint64)
        best, least = candidates[0], np.full(len(w), np.inf)
        for place in candidates:
            self._improve(w, values, zero, place, states, 0)
            errors = self._errors(w, values, place)
            better = errors < least
            best, least = np.where(better[:, None], place, best), np.where(better, errors, least)
        best = np.ascontiguousarray(best)
        if self._kicks and not self._stop():
            self._improve(w, values, zero, best, states, self._kicks)
        return np.where(_picked(values, best) == 0.0, zero, best)

    def _rounded(self, targets: Single, values: Single, zero: Choice, kept: Bool) -> Choice:
        """Rounding in order within sets, targets zero outside of them."""
        shifts, n = self._shifts, targets.shape[1]
        place = np.empty(targets.shape, dtype=np.int16)
        ordered = targets[:, shifts.order]
        errors = np.empty_like(ordered)
        for begin in range(0, n, BLOCK):
            end = min(n, begin + BLOCK)
            centres = ordered[:, begin:end] + errors[:, :begin] @ shifts.matrix[:begin, begin:end]
            block = np.ascontiguousarray(shifts.matrix[begin:end, begin:end])
            passed = np.empty((len(targets), end - begin), dtype=np.float32)
            round_sets(block, centres, targets, shifts.order[begin:end], values, zero, kept, place, passed)
            errors[:, begin:end] = passed
        return place

    def _improve(
        self, w: Single, values: Single, zero: Choice, place: Choice, states: npt.NDArray[np.uint64], kicks: int
    ) -> None:
        """Local search from a choice, in place."""
        layout = self._layout
        slopes = self._search.product(_picked(values, place) - w)

        step = max(int(AT_ONCE / (w.shape[1] * (self._most + kicks * VISITS_AFTER))), 1)

        def work(part: slice) -> None:
            for begin in range(part.start, part.stop, step):
                if self._stop():
                    return
                improve_rows(
                    self._search.matrix, values, zero, layout.unit, self._group, layout.capacity, self._begins, place,
                    slopes, FLOOR, self._most, kicks, states, begin, min(begin + step, part.stop),
                )  # fmt: skip

        in_chunks(len(w), self._threads, work, LEAST_ROWS)

    def _errors(self, w: Single, values: Single, place: Choice) -> Float:
        e = _picked(values, place) - w
        return np.asarray(np.einsum("ri,ri->r", e, self._search.product(e), dtype=np.float64))


def _picked(values: Single, place: Choice) -> Single:
    return np.take_along_axis(values, place[:, :, None].astype(np.int64), axis=2)[:, :, 0]


def places_of(values: Float, weights: Float) -> Int:
    """Where weights stand among the values: the nearest one."""
    return np.asarray(np.argmin(np.abs(values - weights[:, :, None]), axis=2), dtype=np.int64)
