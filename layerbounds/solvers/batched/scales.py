"""Quantization of all rows of a layer where every row, or every group of its inputs, chooses its scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.scale.projection import counted_from, project
from layerbounds.problems.scale_fit import ScaleFit
from layerbounds.problems.scale_nearest import snapped_zero
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.proofs import RawSolve, ScaleDual, ScaleMinorant, ScalePoint
from layerbounds.solvers.batched.diagonal import fit_diagonal, sample_of
from layerbounds.solvers.batched.group import Group
from layerbounds.solvers.batched.points import penalty
from layerbounds.solvers.batched.preparation import PreparedGram, prepare_gram
from layerbounds.solvers.batched.scale_envelope import Envelope, Lines
from layerbounds.solvers.batched.scale_groups import KEPT, highest_points
from layerbounds.solvers.batched.scale_rounding import Found, Grids, Rounding

#: Rows whose weakest scales the minorant is learned at, and at how many each.
SAMPLE, SCALES = 24, 3
#: Times that a minorant is learned; a new one must gain so much.
LEARNED, GAIN = 3, 3e-3
#: No more is learned when less than this share of the time is left.
LATE = 0.6
#: Bytes of the dual points that are in memory at once, and points of a row.
POINT_BYTES, POINTS = 1 << 28, 64


class ScalesEngine:
    """Every weight is a code times a scale that is chosen with the codes."""

    requirements = frozenset({"free scales"})

    def solve(self, group: Group) -> list[RawSolve]:
        """Dual points for all scales, and weights, for every row."""
        layout = _Layout(group)
        group.report("weights")
        rounding = Rounding(
            group, layout.gram, layout.targets, layout.codes, layout.group, layout.first.groups,
            layout.first.powers_of_two, layout.limit,
        )  # fmt: skip
        found = rounding.search()
        duals: list[ScaleDual | None] = [None] * len(group.targets)
        prepared = None
        if len(layout.gram):
            prepared = prepare_gram(layout.gram, group.arithmetic, group.threads, lambda: group.remaining() <= 0)
        if prepared is not None and layout.first.groups > 1:
            duals = self._grouped(group, layout, prepared, found)
        elif prepared is not None:
            learned = self._learned(group, layout, prepared, found)
            if learned is not None:
                duals = self._bound(group, layout, prepared, rounding, *learned)
        status = group.status()
        weights = _better(group, layout.weights(found))
        return [RawSolve(weights[r], status, dual=duals[r]) for r in range(len(weights))]

    def _learned(
        self, group: Group, layout: _Layout, prepared: PreparedGram, found: Found
    ) -> tuple[Float, Envelope | None] | None:
        """A diagonal that serves the scales at which the envelopes of a sample of the rows are lowest.

        Where the sample has all rows, with their envelope.
        """
        rows = sample_of(len(group.targets))
        rows = rows[:: max(len(rows) // SAMPLE, 1)]
        lines = layout.lines(rows, found)
        unit = layout.unit(rows, found)[lines.row]
        real = Lines(lines.target * unit[:, None], lines.scale * unit, lines.row, lines.which, lines.codes)
        line, scale = np.arange(len(lines.target)), real.scale
        best: tuple[Float, float, Envelope] | None = None
        for turn in range(LEARNED):
            group.report(f"minorant {turn + 1} of {LEARNED}")
            fitted = fit_diagonal(group, prepared, real.levels(line, scale))
            if fitted is None:
                break
            d = fitted[0]
            envelope = self._envelope(group, prepared.gram, d, lines)
            if envelope is None:
                break
            least = np.maximum(envelope.least(), 0.0)
            value = float(np.sum(least * layout.unit(rows, found) ** 2))
            gain = np.inf if best is None else value - best[1]
            if gain > 0:
                best = d, value, envelope
            if gain <= GAIN * value or group.remaining() <= LATE * group.control.time_limit:
                break
            line, scale = envelope.weakest_scales(SCALES)
            scale = scale * unit[line]
        if best is None:
            return None
        return best[0], best[2] if len(rows) == len(group.targets) else None

    def _grouped(self, group: Group, layout: _Layout, prepared: PreparedGram, found: Found) -> list[ScaleDual | None]:
        """One point for all scales of all groups, for each row."""
        rows, n = layout.targets.shape
        grids = Grids(layout.codes, layout.group, found.scale, found.which)
        fitted = fit_diagonal(group, prepared, grids.levels(layout.targets))
        if fitted is None:
            return [None] * rows
        group.report("all scales of all groups")
        d, points = fitted
        minorants = (ScaleMinorant(prepared.unit * d, np.zeros((n, 0)), np.zeros(0)),)
        whole = np.array([-1]), np.zeros(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        count = max(POINT_BYTES // (16 * n * KEPT), 1)
        duals: list[ScaleDual | None] = []
        for begin in range(0, rows, count):
            part = slice(begin, min(begin + count, rows))
            z = highest_points(
                prepared.gram, d, layout.targets[part],
                replace(grids, scale=grids.scale[part], which=grids.which[part]),
                layout.targets[part] + points.y[part], group.arithmetic, group.threads, lambda: group.remaining() <= 0,
            )[1]  # fmt: skip
            duals += [
                ScaleDual(minorants, (ScalePoint(one[None], 0, np.zeros((1, 0))),), *whole, layout.dropped) for one in z
            ]
        return duals

    def _envelope(self, group: Group, gram: Float, d: Float, lines: Lines) -> Envelope | None:
        setting = penalty(gram, d, group.arithmetic)
        if setting is None:
            return None
        envelope = Envelope(gram, d, setting, lines, group.arithmetic, group.threads, lambda: group.remaining() <= 0)
        envelope.grow()
        return envelope

    def _bound(
        self,
        group: Group,
        layout: _Layout,
        prepared: PreparedGram,
        rounding: Rounding,
        d: Float,
        known: Envelope | None,
    ) -> list[ScaleDual | None]:
        """Envelopes of all rows, some at a time, and weights for the scales at which they are lowest."""
        gram = prepared.gram
        n, total, found = len(gram), len(group.targets), rounding.found
        minorants = (ScaleMinorant(prepared.unit * d, np.zeros((n, 0)), np.zeros(0)),)
        count = total if known is not None else max(POINT_BYTES // (16 * n * POINTS * len(layout.codes)), 1)
        duals: list[ScaleDual | None] = []
        for begin in range(0, total, count):
            group.report(f"all scales of rows {begin} of {total}")
            rows = np.arange(begin, min(begin + count, total))
            lines, unit = layout.lines(rows, found), layout.unit(rows, found)
            envelope = known if known is not None else self._envelope(group, gram, d, lines)
            if envelope is None:
                return [None] * total
            duals += envelope.duals(unit, minorants, layout.dropped)
            line, scale = envelope.weakest_scales(1)
            row = lines.row[line]
            rounding.round(rows[row], (scale * unit[row])[:, None], lines.which[line][:, None])
        return duals


def _better(group: Group, weights: Float) -> Float:
    """The weights, or those to start from where these are better."""
    starts = group.warm_starts
    if starts is None:
        return weights
    errors = []
    for candidate in (weights, starts):
        deviation = candidate - group.targets
        errors.append(np.einsum("ij,ij->i", deviation @ group.gram, deviation))
    return np.where((errors[1] < errors[0])[:, None], starts, weights)


class _Layout:
    """The rows of a group as rays: with real zero points without one input, from whose weight the others count."""

    def __init__(self, group: Group) -> None:
        self.parent = group
        self.first: ScaledLevels = group.allowed[0]
        self.codes = np.stack([np.asarray(codes, dtype=np.float64) for codes in self.first.boxes()])
        self.limit = np.array([allowed.limit for allowed in group.allowed])
        self.gram, self.targets, self.group = group.gram, group.targets, self.first.group
        self.dropped: tuple[int, ...] = ()
        if self.first.zero == "real":
            self._project()
        self.energy = np.einsum("ij,ij->i", self.targets @ self.gram, self.targets)

    def _project(self) -> None:
        gram, targets, group = self.parent.gram, self.parent.targets, self.first.group
        self.dropped = counted_from(gram, group)
        found = project(gram, group, self.dropped)
        self.limit = 2.0 * self.limit
        if found is None:
            self.gram, self.targets, self.group = np.zeros((0, 0)), targets[:, :0], group[:0]
            return
        self.gram, left = found
        self.group = group[left]
        self.targets = np.ascontiguousarray((targets - targets[:, np.array(self.dropped)[group]])[:, left])

    def unit(self, rows: Int, found: Found) -> Float:
        """Of the weights of each row: the root of the error of the best ones, or of what is there."""
        error = np.maximum(found.error[rows], 1e-9 * self.energy[rows])
        return np.sqrt(np.where(error > 0, error, 1.0))

    def lines(self, rows: Int, found: Found) -> Lines:
        """A line for each row and list of codes, in these units."""
        lists = len(self.codes)
        unit = self.unit(rows, found)
        size = np.abs(self.targets[rows]).max(axis=1, initial=0.0) / np.abs(self.codes).max()
        scale = np.where(found.error[rows] < self.energy[rows], found.scale[rows, 0], np.where(size > 0, size, 1.0))
        return Lines(
            np.repeat(self.targets[rows] / unit[:, None], lists, axis=0),
            np.repeat(scale / unit, lists),
            np.repeat(np.arange(len(rows)), lists),
            np.tile(np.arange(lists), len(rows)),
            self.codes,
        )

    def weights(self, found: Found) -> Float:
        """Of all inputs."""
        moved = found.scale[:, self.group] * found.codes + 0.0
        if not self.dropped:
            return moved
        gram, targets, allowed = self.parent.gram, self.parent.targets, self.parent.allowed
        whole, group = np.zeros_like(targets), self.first.group
        left = np.setdiff1d(np.arange(len(gram)), self.dropped)
        whole[:, left] = moved
        # The best offsets of all groups.
        members = (group[:, None] == np.arange(self.first.groups)).astype(np.float64)
        pull = gram @ members
        offset = np.linalg.lstsq(members.T @ pull, ((targets - whole) @ pull).T, rcond=None)[0].T
        for r in range(len(targets)):
            first = self.codes[found.which[r], 0]
            codes = np.zeros(len(gram))
            codes[left] = found.codes[r]
            codes -= first[group]
            zero = (-first - offset[r] / found.scale[r]).tolist()
            zero_point = np.array([snapped_zero(z, len(self.first.codes)) for z in zero])
            own = allowed[r]
            weights = own.weights(ScaleFit(found.scale[r], zero_point, codes, found.scale[r], found.scale[r]))
            whole[r] = weights if np.abs(weights).max() <= own.limit else own.nearest(weights)
        return whole
