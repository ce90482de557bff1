"""Pruning of all rows of a layer: one diagonal minorant, one relaxation, sets of inputs by exchanges.

The mathematics and what was measured are in docs/batched-pruning.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import is_minorant
from layerbounds.bounds.pruning.rows import alike, same_rule
from layerbounds.kernels.arithmetic import CPU, Single
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.patterns import Structure
from layerbounds.problems.support import Support
from layerbounds.proofs import DualPoint, RawSolve, Status
from layerbounds.solvers.batched.group import Group
from layerbounds.solvers.batched.support_layout import lay_out, unit_diagonal
from layerbounds.solvers.batched.support_minorant import Ascent
from layerbounds.solvers.batched.support_relaxation import Rows, Splitting, split
from layerbounds.solvers.batched.support_sets import SetSearch

#: Rows that say where the minorant should grow.
SAMPLE = 64
#: Steps towards the centre of the minorants, steps that follow the sample, and iterations of the sample for each.
CENTRE, STEPS, BETWEEN = 4, 12, 8
#: Steps that follow the sample in layers of more inputs, where each takes seconds and the later ones gain a per cent.
LARGE, FEWER = 2048, 6
#: Gain of a step, relative to the bound, that counts as none; the training ends after two of them.
GAIN = 2e-3
#: The least weight of an input in the barrier, relative to the mean.
FLOOR = 0.05
#: Iterations of a row at least and at most; more while the sample gains this share of its bound in ``ROUND`` of them.
FEWEST, ROUND, MOST, WORTH = 20, 10, 100, 3e-3
#: Entries of the arrays of the rows that are worked on at a time.
ENTRIES = 2**23
#: Share of the sum of the inputs' own energies below which that of a row is taken for what rounding left.
CANCELLED = 1e-14
#: Share of the energies by which a singular matrix is raised where weights are bounded.
RAISED = 1e-8


class SupportEngine:
    """Kept weights take any value, or stay as they are."""

    requirements = frozenset({"pruning with refit", "pruning masks"})

    def solve(self, group: Group) -> list[RawSolve]:
        """A dual point and weights for every row; rows with one structure share their diagonal."""
        found: dict[int, RawSolve] = {}
        energies, starts = group.energies, group.warm_starts
        for allowed, rows in alike(group.allowed, same_rule):
            part = Part(group, allowed, rows, energies[rows], None if starts is None else starts[rows])
            found.update(zip(rows.tolist(), part.solve(), strict=True))
        return [found[row] for row in range(len(group.targets))]


class Part:
    """Rows with one structure and one rule for kept weights.

    Parameters
    ----------
    group : Group
    allowed : Support
        Of one of the rows.
    rows : ndarray of int64
    energies : ndarray of shape (rows,)
    starts : ndarray of shape (rows, n), or None
        Warm starts.
    """

    def __init__(
        self,
        group: Group,
        allowed: Support | LevelsOnSupport,
        rows: Int,
        energies: Float,
        starts: Float | None,
    ) -> None:
        self.group, self.rows, self.starts = group, rows, starts
        #: Whether kept weights may take any value.
        self.refit = allowed.free
        layout = self.layout = lay_out(allowed.structure)
        group_of = np.repeat(np.arange(len(layout.capacity)), np.diff(layout.units))
        #: The structure of the places.
        self.structure = Structure(layout.unit, group_of, layout.capacity)
        self.norm = np.sqrt(np.diag(group.gram))[layout.order]
        # Where terms cancel, the energy may be rounding, which nothing should be divided by.
        terms = np.sum((group.targets[rows][:, layout.order] * self.norm) ** 2, axis=1)
        size = np.sqrt(np.maximum(energies, CANCELLED * terms))
        self.size = np.where(size > 0, size, 1.0)
        self.matrix = unit_diagonal(group.gram, self.norm, layout.order, np.float32)
        #: The same where products are computed; nothing writes to it.
        self.there: Any = self.matrix if group.arithmetic is CPU else group.arithmetic.put(self.matrix)
        self.z = group.targets[rows].copy()
        #: The diagonal in the order of the layout, scaled; None where nothing is proven.
        self.d: Float | None = None
        #: What keeping each unit saves in the relaxation; the energy of its weights where there is none.
        self.score = np.add.reduceat(self._targets(np.arange(len(rows))) ** 2, layout.inputs[:-1], axis=1)
        #: Iterations after which the points of the sample have settled.
        self.iterations = FEWEST

    def solve(self) -> list[RawSolve]:
        """A dual point and weights for every row."""
        d = self._relax()
        weights = self._weights()
        status = Status.INTERRUPTED if self.group.control.cancel.is_set() else Status.RELAXED
        finite = np.all(np.isfinite(self.z), axis=1)
        return [
            RawSolve(weights=v, termination=status, dual=DualPoint(z, d) if d is not None and good else None)
            for v, z, good in zip(weights, self.z, finite, strict=True)
        ]

    def _stop(self) -> bool:
        return self.group.remaining() <= 0

    def _unit(self, chosen: Int) -> Float:
        """What scales the weights of some rows."""
        return np.asarray(self.norm / self.size[chosen, None])

    def _targets(self, chosen: Int) -> Single:
        """The targets of some rows, scaled."""
        targets = self.group.targets[self.rows[chosen]][:, self.layout.order]
        return np.asarray((targets * self._unit(chosen)).astype(np.float32))

    def _original(self, chosen: Int) -> Single | None:
        """The weights that kept ones have, scaled; None with refit."""
        if self.refit:
            return None
        allowed = self.group.allowed
        original = np.stack([allowed[row].original for row in self.rows[chosen].tolist()])[:, self.layout.order]
        return np.asarray((original * self._unit(chosen)).astype(np.float32))

    def _chunks(self) -> list[Int]:
        """Numbers of the rows that are worked on at a time."""
        step = max(ENTRIES // len(self.norm), 1)
        return [np.arange(i, min(i + step, len(self.rows))) for i in range(0, len(self.rows), step)]

    # Bounds

    def _relax(self) -> Float | None:
        """Train the diagonal and find the points; the diagonal in the order of the inputs."""
        group, order, raised = self.group, self.layout.order, 0.0

        def exact() -> Float:
            return unit_diagonal(group.gram, self.norm, order, np.float64)

        ascent = Ascent(self.there, exact, group.arithmetic)
        if not ascent.usable and not self.refit:
            # Weights are bounded: what the diagonal is raised by is taken off again, and may leave negative entries.
            raised = RAISED
            ascent = Ascent(self.there, exact, group.arithmetic, raised)
        splitting = self._train(ascent, raised) if ascent.usable else None
        if splitting is None:
            return None
        self.d = ascent.d
        del ascent
        for chosen in self._chunks():
            group.report(f"points of rows {chosen[0] + 1} to {chosen[-1] + 1} of {len(self.rows)}")
            rows = self._state(chosen)
            rows.use(splitting)
            rows.iterate(self.iterations, group.arithmetic, self._stop)
            self.z[np.ix_(chosen, order)] += rows.e / self._unit(chosen)
            self.score[chosen] = rows.savings(self.there, group.arithmetic)
        return self._proven(self.d, raised)

    def _proven(self, d: Float, raised: float) -> Float:
        """A scaled diagonal in the order and the units of the inputs."""
        result = np.empty(len(d))
        result[self.layout.order] = (d - raised) * self.norm**2
        return result

    def _state(self, chosen: Int) -> Rows:
        """Some rows at the beginning of their relaxation."""
        return Rows(self.layout, self._targets(chosen), self._original(chosen), self.group.threads)

    def _train(self, ascent: Ascent, raised: float) -> Splitting | None:
        """Let the diagonal follow a sample of the rows."""
        arithmetic, count = self.group.arithmetic, len(self.rows)
        chosen = np.arange(count)
        if count > SAMPLE:
            chosen = np.sort(np.random.default_rng(self.group.control.seed).choice(count, SAMPLE, replace=False))
        rows = self._state(chosen)
        even = np.ones(len(self.norm))
        steps = STEPS if len(even) <= LARGE else FEWER
        for number in range(CENTRE):
            self.group.report(f"minorant {number + 1} of {CENTRE + steps}")
            if self._stop():
                break
            ascent.step(even)
        ascent.mu = ascent.length = 1.0
        best: tuple[float, Float] | None = None
        log_weight, weight = even, None
        poor = 0
        for number in range(steps + 1):
            splitting = split(ascent.d, self.layout, self.there, arithmetic, self.refit)
            if splitting is None:
                break
            rows.use(splitting)
            rows.iterate(BETWEEN if number else 2 * BETWEEN, arithmetic, self._stop)
            value = float(np.sum(rows.bounds(self.there, self.structure, arithmetic)))
            poor = poor + 1 if best is not None and value <= best[0] + GAIN * abs(best[0]) else 0
            if best is None or value > best[0]:
                best = value, ascent.d
            if number == steps or poor == 2 or self._stop():
                break
            self.group.report(f"minorant {CENTRE + number + 1} of {CENTRE + steps}")
            growth = rows.growth()
            if self.refit:
                log_weight = np.maximum(growth / _positive(float(growth.mean())), FLOOR)
            else:
                weight = growth / _positive(float(np.mean(growth * ascent.d)))
            ascent.step(log_weight, weight)
        if best is None:
            return None
        ascent.d = best[1]
        if not self._stop():
            # Single precision may take a diagonal for feasible that is not; shrinking it would cost more.
            ascent.sharpen(lambda d: is_minorant(self.group.gram, self._proven(d, raised)), log_weight, weight)
        splitting = split(ascent.d, self.layout, self.there, arithmetic, self.refit)
        if splitting is not None:
            self._settle(rows, splitting)
        return splitting

    def _settle(self, sample: Rows, splitting: Splitting) -> None:
        """How many iterations the sample needs from the beginning."""
        arithmetic, value = self.group.arithmetic, -np.inf
        rows = sample.anew()
        rows.use(splitting)
        rows.iterate(FEWEST, arithmetic, self._stop)
        while self.iterations < MOST and not self._stop():
            now = float(np.sum(rows.bounds(self.there, self.structure, arithmetic)))
            if now <= value + WORTH * abs(now):
                return
            value = now
            rows.iterate(ROUND, arithmetic, self._stop)
            self.iterations += ROUND

    # Sets

    def _weights(self) -> Float:
        """Allowed weights of every row."""
        group, order = self.group, self.layout.order
        d = np.ones(len(self.norm)) if self.d is None else self.d
        search = SetSearch(self.matrix, self.there, self.layout, d, group.arithmetic, group.control.seed, self._stop)
        weights = np.zeros_like(self.z)
        for chosen in self._chunks():
            group.report(f"sets of rows {chosen[0] + 1} to {chosen[-1] + 1} of {len(self.rows)}")
            unit, w, original = self._unit(chosen), self._targets(chosen), self._original(chosen)
            if original is None:
                kept, e = search.refitted(
                    w, self.score[chosen], (self.z[np.ix_(chosen, order)] * unit).astype(np.float32)
                )
                # A deviation that rounds to nothing leaves the target itself.
                values = group.targets[self.rows[chosen]][:, order] + e / unit
            else:
                kept = search.masks(w, original, self.score[chosen])
                values = np.stack([group.allowed[row].original for row in self.rows[chosen].tolist()])[:, order]
            weights[np.ix_(chosen, order)] = np.where(kept, values, 0.0)
            self._keep_better(chosen, weights)
        return weights

    def _keep_better(self, chosen: Int, weights: Float) -> None:
        """Where nothing at all, or a warm start, has less error, that is returned."""
        targets = self.group.targets[self.rows[chosen]]
        errors = self._errors(weights[chosen] - targets)
        others = [np.zeros_like(targets)] + ([] if self.starts is None else [self.starts[chosen]])
        for other in others:
            found = self._errors(other - targets)
            better = ~(errors <= found)
            weights[chosen[better]] = other[better]
            errors = np.where(better, found, errors)

    def _errors(self, deviation: Float) -> Float:
        return np.asarray(np.einsum("ri,ri->r", deviation @ self.group.gram, deviation))


def _positive(value: float) -> float:
    """A number that can be divided by."""
    return max(value, float(np.finfo(np.float64).tiny))
