"""Channels with one scale for each group of inputs: codes and scales in turn, and dual points over all scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.scale.projection import counted_from, project
from layerbounds.kernels.quantization.rounding import beam, coordinate_descent, successive_rounding
from layerbounds.problems.scale_nearest import snapped_zero
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve, Status, TracePoint
from layerbounds.search.quantization.neighbourhoods import Neighbourhoods
from layerbounds.search.quantization.preparation import Preparation, prepare
from layerbounds.search.scale.fixed_scale import prepare_points
from layerbounds.search.scale.group_envelope import GroupEnvelope

#: Shrink factors of the first scales, and rounds of codes and scales in turn.
SHRINKS, ROUNDS = np.linspace(0.4, 1.1, 29), 20
#: Partial assignments kept by the beam; the most inputs on which beams and pairs are affordable.
WIDTH, PAIRS = 32, 400
#: Share of the time limit for better weights, and the most kicks without success.
INCUMBENT_SHARE, STALLED = 0.4, 60
#: Spreads of the logarithm of a group's scale in a kick; share of the kicks that move codes instead, and how many.
RESCALES, MOVED, MOST_MOVED = (0.05, 0.15, 0.5), 0.3, 4
#: Calls of the large-neighbourhood search after a kick.
CALLS = 2
#: Seconds between two points of the dual points' trace.
RECORD_EVERY = 0.5


@dataclass(frozen=True, eq=False)
class GroupShared:
    """What the channels of a Gram matrix share.

    Attributes
    ----------
    prep : Preparation
    gram : ndarray of shape (left, left)
        Below what real zero points leave of the Gram matrix; else the matrix itself.
    left : ndarray of int64
        The inputs that it belongs to.
    dropped : tuple of int
        With real zero points, one input of each group.
    """

    prep: Preparation
    gram: Float
    left: Int
    dropped: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Levelled:
    """Weights of some scales.

    Attributes
    ----------
    box : ndarray of int64, shape (groups,)
        List of codes of each group.
    scale, offset : ndarray of shape (groups,)
    choice : ndarray of int64, shape (n,)
        In the order of the search.
    error : float
    """

    box: Int
    scale: Float
    offset: Float
    choice: Int
    error: float


def prepare_groups(gram: Float, allowed: ScaledLevels, exponent: float) -> GroupShared:
    """Factorize the Gram matrix of live inputs, and project it where there are real zero points."""
    shared = _project(prepare(gram, exponent), gram, allowed.group, allowed.zero == "real")
    if len(shared.left):
        prepare_points(shared.gram, allowed.group[shared.left], allowed.boxes())
    return shared


def _project(prep: Preparation, gram: Float, group: Int, real_zero: bool) -> GroupShared:
    everything = np.arange(len(gram))
    if not real_zero:
        return GroupShared(prep, gram, everything, ())
    dropped = counted_from(gram, group)
    found = project(gram, group, dropped)
    if found is None:
        return GroupShared(prep, gram, everything, ())
    return GroupShared(prep, found[0], found[1], dropped)


class GroupSearch:
    """State of the work on one channel.

    Parameters
    ----------
    task : Task
    shared : GroupShared
    control : Control
    """

    def __init__(self, task: Task[ScaledLevels], shared: GroupShared, control: Control) -> None:
        self.task, self.shared, self.control = task, shared, control
        allowed, order = task.allowed, shared.prep.order
        self.real = allowed.zero == "real"
        # With real zero points every list of codes is the first one, moved.
        self.boxes = [allowed.codes] if self.real else allowed.boxes()
        self.groups = allowed.groups
        self.group = allowed.group[order]
        self.gram = shared.prep.gram
        self.target = np.ascontiguousarray(task.target[order])
        self.rng = np.random.default_rng((control.seed, task.channel))
        self.trace: list[TracePoint] = []
        self.lower = 0.0
        self.best = self._alternate(self._first())
        start = None if task.warm_start is None else self._known(task.warm_start)
        if start is not None and start.error < self.best.error:
            self.best = self._alternate(start)
        self.record()

    def record(self) -> None:
        """Add a point to the trace."""
        lower, upper = self.lower + self.task.constant, self.best.error + self.task.constant
        self.trace.append(TracePoint(self.control.elapsed(), 0, min(lower, upper), upper))

    def table(self, known: Levelled) -> Float:
        """Levels of every input, shape (n, levels)."""
        codes = np.array(self.boxes)[known.box]
        levels = known.scale[:, None] * codes + known.offset[:, None]
        return np.ascontiguousarray(levels[self.group])

    def _error(self, known: Levelled, table: Float | None = None) -> float:
        table = self.table(known) if table is None else table
        deviation = table[np.arange(len(table)), known.choice] - self.target
        return max(float(deviation @ (self.gram @ deviation)), 0.0)

    def _first(self) -> Levelled:
        """Scales of least weight error, one group after the other."""
        box = np.zeros(self.groups, dtype=np.int64)
        scale, offset = np.ones(self.groups), np.zeros(self.groups)
        for g in range(self.groups):
            values = self.target[self.group == g]
            best = np.inf
            for number, codes in enumerate(self.boxes):
                for s, o in self._trials(values, codes):
                    levels = s * codes + o
                    error = float(np.sum(np.min(np.abs(values[:, None] - levels), axis=1) ** 2))
                    if error < best:
                        best, box[g], scale[g], offset[g] = error, number, s, o
        return Levelled(box, scale, offset, np.zeros(len(self.target), dtype=np.int64), np.inf)

    def _trials(self, values: Float, codes: Float) -> Iterator[tuple[float, float]]:
        """Scales and offsets of a group to start from."""
        low, high = float(values.min()), float(values.max())
        if self.real:
            usual, middle = (high - low) / float(codes[-1] - codes[0]), 0.5 * (low + high)
            for shrink in SHRINKS:
                s = self._allowed_scale(shrink * usual)
                yield s, middle - s * 0.5 * float(codes[0] + codes[-1])
            return
        ends = [v / c for v, c in ((low, float(codes[0])), (high, float(codes[-1]))) if v * c > 0.0]
        for shrink in SHRINKS:
            yield self._allowed_scale(shrink * max(ends, default=1.0)), 0.0

    def _allowed_scale(self, scale: float) -> float:
        scale = scale if scale > 0.0 else 1.0
        return 2.0 ** float(np.rint(np.log2(scale))) if self.task.allowed.powers_of_two else scale

    def _alternate(self, known: Levelled, calls: int = 0) -> Levelled:
        """Codes at the scales, and scales for the codes, in turn."""
        n = len(self.target)
        best = known if np.isfinite(known.error) else None
        for _ in range(ROUNDS):
            table = self.table(known)
            count = np.full(n, table.shape[1], dtype=np.int64)
            trials = []
            for start in (None, known.choice if np.isfinite(known.error) else None, best and "beam"):
                choice = np.zeros(n, dtype=np.int64)
                if isinstance(start, np.ndarray):
                    choice = start.copy()
                elif start == "beam" and n <= PAIRS:
                    beam(WIDTH, self.shared.prep.pivots, self.shared.prep.shifts, self.target, table, count, choice)
                else:
                    successive_rounding(self.shared.prep.shifts, self.target, table, count, choice)
                value, _ = coordinate_descent(self.gram, self.target, table, count, choice, n <= PAIRS, 10 * n)
                trials.append((float(value), choice))
            value, choice = min(trials, key=lambda trial: trial[0])
            if calls:
                search = Neighbourhoods(self.gram, self.target, table, count, choice, value, self.rng)
                for _ in range(calls):
                    search.improve()
                choice = search.best
            known = self._rescale(
                replace(known, choice=choice, error=self._error(replace(known, choice=choice), table))
            )
            if best is not None and not known.error < best.error * (1.0 - 1e-9):
                return min((best, known), key=lambda found: found.error)
            best = known
            if self.control.remaining() <= 0:
                break
        assert best is not None
        return best

    def _rescale(self, known: Levelled) -> Levelled:
        """The best scales, and offsets, of the codes; as they were where that is no better or not allowed."""
        if self.task.allowed.powers_of_two:
            return known
        codes = np.array(self.boxes)[known.box][self.group, known.choice]
        members = self.group[:, None] == np.arange(self.groups)
        columns = members * codes[:, None]
        if self.real:
            columns = np.concatenate([columns, members * 1.0], axis=1)
        pulled = self.gram @ columns
        found = np.linalg.lstsq(columns.T @ pulled, pulled.T @ self.target, rcond=1e-12)[0]
        scale, offset = found[: self.groups], found[self.groups :] if self.real else known.offset
        scale = np.where(scale > 0.0, scale, known.scale)
        trial = replace(known, scale=scale, offset=offset)
        trial = replace(trial, error=self._error(trial))
        size = float(np.max(np.abs(self.table(trial))))
        return trial if trial.error < known.error and size <= self.task.allowed.limit else known

    def _known(self, weights: Float) -> Levelled | None:
        """Given weights as scales and choices."""
        allowed = self.task.allowed
        fit = allowed.fit(weights)
        if fit is None:
            return None
        scale, zero = fit.scale, fit.zero_point
        codes = (fit.codes if self.real else fit.codes - zero[allowed.group])[self.shared.prep.order]
        signs = np.where(scale < 0.0, -1.0, 1.0)
        codes = codes * (1.0 if self.real else signs[self.group])
        box = np.zeros(self.groups, dtype=np.int64)
        for g in range(self.groups):
            mine = codes[self.group == g]
            fits = [i for i, own in enumerate(self.boxes) if np.all(np.isin(mine, own))]
            if not fits:
                return None
            box[g] = fits[0]
        table = np.array(self.boxes)[box][self.group]
        choice = np.abs(table - codes[:, None]).argmin(axis=1).astype(np.int64)
        offset = -scale * zero if self.real else np.zeros(self.groups)
        known = Levelled(box, np.abs(scale), offset, choice, np.inf)
        return replace(known, error=self._error(known))

    def improve(self) -> None:
        """Kicks of a group's scale, or its list of codes, each followed by codes and scales in turn."""
        control, failures = self.control, 0
        end = INCUMBENT_SHARE * control.time_limit
        while failures < STALLED and control.remaining() > 0:
            if control.node_limit is not None and failures >= 5:
                break
            if control.node_limit is None and control.elapsed() > end:
                break
            g = int(self.rng.integers(self.groups))
            scale, box = self.best.scale.copy(), self.best.box.copy()
            if self.task.allowed.powers_of_two:
                scale[g] *= 2.0 ** float(self.rng.choice([-1, 1]))
            elif len(self.boxes) > 1 and self.rng.random() < 0.3:
                box[g] = self.rng.integers(len(self.boxes))
            else:
                scale[g] *= float(np.exp(self.rng.choice(RESCALES) * self.rng.normal()))
            trial = Levelled(box, scale, self.best.offset, self.best.choice, np.inf)
            if self.rng.random() < MOVED:
                trial = self._moved()
            found = self._alternate(trial, CALLS)
            failures += 1
            if found.error < self.best.error * (1.0 - 1e-12):
                self.best, failures = found, 0
                self.record()

    def _moved(self) -> Levelled:
        """The best weights with a few codes moved, at the best scales for these."""
        n = len(self.target)
        count = min(n, int(self.rng.integers(1, MOST_MOVED + 1)))
        moved = self.rng.choice(n, size=count, replace=False)
        choice = self.best.choice.copy()
        steps = self.rng.choice([-1, 1], size=count)
        choice[moved] = np.clip(choice[moved] + steps, 0, len(self.boxes[0]) - 1)
        trial = replace(self.best, choice=choice)
        return self._rescale(replace(trial, error=self._error(trial)))

    def bound(self) -> Dual | None:
        """Dual points over all scales, in what is left of the time."""
        shared, task, control = self.shared, self.task, self.control
        if not len(shared.left) or (self.real and not shared.dropped) or self.best.error == 0.0:
            return None
        target, limit = task.target, task.allowed.limit
        if self.real:
            counted = np.array(shared.dropped)[task.allowed.group]
            target, limit = (target - target[counted])[shared.left], 2.0 * limit

        def stop() -> bool:
            return control.remaining() <= 0

        envelope = GroupEnvelope(
            shared.gram, target, task.allowed.boxes(), task.allowed.group[shared.left], self.best.scale,
            max(self.best.error, np.finfo(np.float64).tiny), limit, shared.dropped,
        )  # fmt: skip
        record_at = 0.0

        def pause() -> bool:
            return stop() or control.elapsed() > record_at

        def close() -> bool:
            return self.lower >= self.best.error * (1.0 - max(0.999 * control.gap, 1e-7))

        rounds = 0
        while not stop() and not envelope.finished and not close():
            rounds += 1
            if control.node_limit is not None and rounds > 3:
                break
            record_at = control.elapsed() + RECORD_EVERY
            envelope.grow(pause)
            self.lower = envelope.value
            self.record()
        return envelope.dual()

    def weights(self) -> Float:
        """The best weights in the order of the inputs, rounded once."""
        known = self.best
        codes = np.array(self.boxes)[known.box][self.group, known.choice]
        scale = known.scale[self.group]
        values = scale * codes + 0.0
        if self.real:
            levels = len(self.task.allowed.codes)
            zero = [snapped_zero(-o / s, levels) for s, o in zip(known.scale, known.offset, strict=True)]
            values = scale * (codes - np.array(zero)[self.group]) + 0.0
        result = np.empty_like(values)
        result[self.shared.prep.order] = values
        return result


def search_group_scales(task: Task[ScaledLevels], shared: GroupShared, control: Control) -> RawSolve:
    """Solve a channel with several scales, of at least one live input."""
    search = GroupSearch(task, shared, control)
    search.improve()
    dual = search.bound()
    status = Status.UNRESOLVED
    if control.cancel.is_set():
        status = Status.INTERRUPTED
    elif control.remaining() <= 0:
        status = Status.TIME_LIMIT
    return RawSolve(search.weights(), status, dual=dual, trace=tuple(search.trace))
