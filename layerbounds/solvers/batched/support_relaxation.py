"""The relaxation of pruning for many rows: one matrix product and one proximal step an iteration.

With M = H − D, b = Hw and the perspective Φ of Σ d_i v_i² over the pattern (for masks its envelope between 0 and the
original weights), min vᵀMv − 2bᵀv + Φ(v) is split into the quadratic form and Φ (docs/batched-pruning.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.pruning.rows import largest_totals
from layerbounds.kernels.arithmetic import Arithmetic, Single
from layerbounds.kernels.batched.support import mask_step, refit_step
from layerbounds.problems.patterns import Structure
from layerbounds.solvers.batched.group import in_chunks
from layerbounds.solvers.batched.support_layout import Layout
from layerbounds.solvers.batched.support_minorant import shifted_inverse

#: The penalty of an input is so many times the geometric mean of its d and its energy.
PENALTY = 1.0
#: Rows for which a thread is worth its while.
ROWS = 8
#: The smallest penalty, relative to the energies: d may be 0, and H singular.
LEAST = 1e-5


@dataclass(frozen=True, eq=False)
class Splitting:
    """A diagonal and what goes with it.

    Attributes
    ----------
    d, p : ndarray of float32, shape (n,)
        The diagonal and the penalties.
    kappa : ndarray of float32, shape (units,)
        p / d, one for each unit.
    inverse : array
        (H − D + P)⁻¹, where the arithmetic's arrays live.
    """

    d: Single
    p: Single
    kappa: Single
    inverse: Any


def split(d: Float, layout: Layout, there: Any, arithmetic: Arithmetic, refit: bool) -> Splitting | None:
    """Penalties of a diagonal; None where single precision breaks down."""
    if refit:
        # One ratio for each unit keeps the proximal point closed.
        begins = layout.inputs[:-1]
        kappa = PENALTY * np.sqrt(np.add.reduceat(1.0 / d, begins) / np.diff(layout.inputs))
        p = kappa[layout.unit] * d
    else:
        kappa = np.ones(len(layout.inputs) - 1)
        p = np.maximum(PENALTY * np.sqrt(np.maximum(d, 0.0)), LEAST)
    inverse = shifted_inverse(there, p - d, arithmetic)
    if inverse is None:
        return None
    return Splitting(d.astype(np.float32), p.astype(np.float32), kappa.astype(np.float32), inverse)


class Rows:
    """The state of some rows.

    Parameters
    ----------
    layout : Layout
    w : ndarray of float32, shape (rows, n)
        The targets.
    original : ndarray of float32, shape (rows, n), or None
        What kept weights are; None with refit.
    threads : int
    """

    def __init__(self, layout: Layout, w: Single, original: Single | None, threads: int) -> None:
        rows, n = w.shape
        self.layout, self.w, self.original, self.threads = layout, w, original, threads
        self.y, self.t = np.float32(0.5) * w, np.zeros((rows, n), dtype=np.float32)
        self.e = np.zeros((rows, n), dtype=np.float32)
        self.share = np.zeros((rows, len(layout.inputs) - 1), dtype=np.float32)
        self.theta = np.zeros((rows, len(layout.capacity)), dtype=np.float32)
        self.right = np.zeros((rows, n), dtype=np.float32)
        self.splitting: Splitting | None = None

    def anew(self) -> Rows:
        """The same rows at the beginning."""
        return Rows(self.layout, self.w, self.original, self.threads)

    def use(self, splitting: Splitting) -> None:
        """Go on with another diagonal."""
        if self.splitting is not None:
            # The multipliers themselves, P t, stay.
            self.t *= self.splitting.p / splitting.p
        self.splitting = splitting
        self.right = splitting.d * self.w + splitting.p * (self.y - self.t - self.w)

    def iterate(self, many: int, arithmetic: Arithmetic, stop: Callable[[], bool]) -> None:
        """So many iterations."""
        assert self.splitting is not None
        for _ in range(many):
            self.e = arithmetic.product(self.right, self.splitting.inverse)
            in_chunks(len(self.e), self.threads, self._move, ROWS)
            if stop():
                return

    def _move(self, part: slice) -> None:
        """The proximal step of some rows."""
        s, layout = self.splitting, self.layout
        assert s is not None
        pattern = layout.inputs, layout.units, layout.capacity
        state = self.theta, self.y, self.t, self.share, self.right, part.start, part.stop
        if self.original is None:
            refit_step(self.e, self.w, s.d, s.kappa, *pattern, *state)
        else:
            mask_step(self.e, self.w, s.d, s.p, self.original, *pattern, *state)

    def growth(self) -> Float:
        """The mean over the rows of what the bound grows by with d_i (masks), or with log d_i (refit), shape (n,)."""
        share = self.share[:, self.layout.unit].astype(np.float64)
        if self.original is not None:
            return np.asarray((self.original**2 * share * (1.0 - share)).mean(axis=0))
        assert self.splitting is not None
        inverse = np.divide(1.0, share, out=np.zeros_like(share), where=share > 0)
        return np.asarray((self.splitting.d * self.y**2 * inverse * (1.0 - share)).mean(axis=0))

    def bounds(self, there: Any, structure: Structure, arithmetic: Arithmetic) -> Float:
        """The bounds of the points w + e, up to single precision; ``structure`` is that of the places."""
        return self._tangent(there, arithmetic, structure)[0]

    def savings(self, there: Any, arithmetic: Arithmetic) -> Single:
        """What keeping each unit saves in these bounds, shape (rows, units)."""
        saving = self._tangent(there, arithmetic, None)[1]
        return np.add.reduceat(saving, self.layout.inputs[:-1], axis=1).astype(np.float32)

    def _tangent(self, there: Any, arithmetic: Arithmetic, structure: Structure | None) -> tuple[Float, Float]:
        """The bounds, where a structure is given, and what keeping each input saves."""
        assert self.splitting is not None
        d = self.splitting.d.astype(np.float64)
        h = arithmetic.product(self.e, there).astype(np.float64)
        z = self.w + self.e.astype(np.float64)
        if self.original is None:
            saving = (d * z - h) ** 2 / d
        else:
            original = self.original.astype(np.float64)
            saving = 2.0 * (d * z - h) * original - d * original**2
        if structure is None:
            return np.zeros(0), saving
        value = np.sum(self.e * h - 2.0 * h * z + d * z**2, axis=1)
        return value - largest_totals(structure, saving), saving
