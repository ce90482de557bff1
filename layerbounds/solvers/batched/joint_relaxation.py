"""The relaxation of joint problems for many rows: that of masks, with levels in the place of the original weights.

The penalty function is the convex envelope of Σ d_i v_i² over levels on a support (docs/batched-joint.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.pruning.rows import largest_totals
from layerbounds.kernels.arithmetic import Arithmetic, Single
from layerbounds.kernels.batched.joint import joint_step, level_savings
from layerbounds.problems.patterns import Structure
from layerbounds.solvers.batched.group import in_chunks
from layerbounds.solvers.batched.support_layout import Layout
from layerbounds.solvers.batched.support_relaxation import ROWS, Rows


class JointRows(Rows):
    """The state of some rows.

    Parameters
    ----------
    layout : Layout
    w : ndarray of float32, shape (rows, n)
        The targets.
    values : ndarray of float32, shape (rows, n, levels)
        Sorted, with zero among them.
    threads : int
    """

    def __init__(self, layout: Layout, w: Single, values: Single, threads: int) -> None:
        super().__init__(layout, w, None, threads)
        self.values = values
        self.spread = np.zeros_like(w)

    def anew(self) -> JointRows:
        """The same rows at the beginning."""
        return JointRows(self.layout, self.w, self.values, self.threads)

    def _move(self, part: slice) -> None:
        """The proximal step of some rows."""
        s, layout = self.splitting, self.layout
        assert s is not None
        joint_step(
            self.e, self.w, s.d, s.p, self.values, layout.inputs, layout.units, layout.capacity, self.theta, self.y,
            self.t, self.share, self.spread, self.right, part.start, part.stop,
        )  # fmt: skip

    def growth(self) -> Float:
        """The mean over the rows of what the bound grows by with d_i, shape (n,): the variance of the mixture."""
        return np.asarray(self.spread.mean(axis=0, dtype=np.float64))

    def _tangent(self, there: Any, arithmetic: Arithmetic, structure: Structure | None) -> tuple[Float, Float]:
        """The bounds, where a structure is given, and what keeping each input saves."""
        assert self.splitting is not None
        d = self.splitting.d.astype(np.float64)
        h = arithmetic.product(self.e, there).astype(np.float64)
        z = self.w + self.e.astype(np.float64)
        c = d * z - h
        saving = np.empty_like(c)
        in_chunks(
            len(c), self.threads, lambda part: level_savings(c, d, self.values, saving, part.start, part.stop), ROWS
        )
        if structure is None:
            return np.zeros(0), saving
        value = np.sum(self.e * h - 2.0 * h * z + d * z**2, axis=1)
        return value - largest_totals(structure, saving), saving
