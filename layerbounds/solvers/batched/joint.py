"""Pruning and quantization of all rows of a layer together: one diagonal, one relaxation (docs/batched-joint.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.pruning.rows import alike
from layerbounds.kernels.arithmetic import Single
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.proofs import RawSolve
from layerbounds.solvers.batched.group import Group
from layerbounds.solvers.batched.joint_relaxation import JointRows
from layerbounds.solvers.batched.joint_weights import JointWeights, places_of
from layerbounds.solvers.batched.support import Part
from layerbounds.solvers.batched.support_sets import SetSearch

#: Levels of the rows that are worked on at a time.
ENTRIES = 2**23


class JointEngine:
    """Every weight is zero or a level, and what is kept fits a pattern."""

    requirements = frozenset({"pruning with quantization"})

    def solve(self, group: Group) -> list[RawSolve]:
        """A dual point and weights for every row; rows with one structure share their diagonal."""
        found: dict[int, RawSolve] = {}
        energies, starts = group.energies, group.warm_starts
        for allowed, rows in alike(group.allowed, _same):
            part = _JointPart(group, allowed, rows, energies[rows], None if starts is None else starts[rows])
            found.update(zip(rows.tolist(), part.solve(), strict=True))
        return [found[row] for row in range(len(group.targets))]


class _JointPart(Part):
    """Rows with one structure.

    Parameters as of `Part`.
    """

    def __init__(
        self, group: Group, allowed: LevelsOnSupport, rows: Int, energies: Float, starts: Float | None
    ) -> None:
        super().__init__(group, allowed, rows, energies, starts)
        #: Numbers in the list of a weight, at least.
        self.levels = allowed.values.shape[1] + 1

    def _chunks(self) -> list[Int]:
        """Numbers of the rows that are worked on at a time."""
        step = max(ENTRIES // (len(self.norm) * self.levels), 1)
        return [np.arange(i, min(i + step, len(self.rows))) for i in range(0, len(self.rows), step)]

    def _values(self, chosen: Int) -> Float:
        """The lists of values of some rows, in the layout's order."""
        allowed = self.group.allowed
        lists = [allowed[row].values for row in self.rows[chosen].tolist()]
        most = max(part.shape[1] for part in lists)
        padded = [np.pad(part, ((0, 0), (0, most - part.shape[1])), mode="edge") for part in lists]
        return np.stack(padded)[:, self.layout.order]

    def _state(self, chosen: Int) -> JointRows:
        """Some rows at the beginning of their relaxation."""
        values = self._values(chosen) * self._unit(chosen)[:, :, None]
        return JointRows(self.layout, self._targets(chosen), values.astype(np.float32), self.group.threads)

    def _original(self, chosen: Int) -> Single | None:
        """Kept weights are levels."""
        return None

    def _weights(self) -> Float:
        """Allowed weights of every row."""
        group, order, stop = self.group, self.layout.order, self._stop
        seed, effort = group.control.seed, group.control.options["effort"]
        d = np.ones(len(self.norm)) if self.d is None else self.d
        search = SetSearch(self.matrix, self.there, self.layout, d, group.arithmetic, seed, stop)
        rows = len(self.rows)
        work = JointWeights(search, self.layout, self.norm, rows, seed, effort, group.threads, stop)
        weights = np.zeros_like(self.z)
        for chosen in self._chunks():
            group.report(f"weights of rows {chosen[0] + 1} to {chosen[-1] + 1} of {rows}")
            values, unit = self._values(chosen), self._unit(chosen)
            single = (values * unit[:, :, None]).astype(np.float32)
            start = None if self.starts is None else places_of(values, self.starts[chosen][:, order]).astype(np.int16)
            z = (self.z[np.ix_(chosen, order)] * unit).astype(np.float32)
            zero = np.argmax(values == 0.0, axis=2).astype(np.int16)
            place = work.choose(self._targets(chosen), single, zero, self.score[chosen], z, start)
            picked = np.take_along_axis(values, place[:, :, None].astype(np.int64), axis=2)[:, :, 0]
            weights[np.ix_(chosen, order)] = picked
            self._keep_better(chosen, weights)
        return weights


def _same(first: LevelsOnSupport, second: LevelsOnSupport) -> bool:
    return first.structure.equals(second.structure)
