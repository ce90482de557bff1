"""What keeping or dropping a unit changes, for all units at once, from one swept tableau."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.factorization import cholesky
from layerbounds.methods.pruning import PruningView
from layerbounds.problems.patterns import Structure

#: Pivots below this share of their diagonal entry count as none: then the diagonal is raised.
SMALLEST_PIVOT = 1e-11
#: The tableau is made anew after so many sweeps: rounding adds up.
REFRESH = 64


class Tableau:
    """H and B = HWᵀ swept on the inputs of the kept units S: −H_SS⁻¹, H_SS⁻¹H_ST, the Schur complement, the weights.

    Sweeps: Beale, Kendall & Mann (Biometrika 1967), here of blocks. The error of S is tr(W H Wᵀ) − tr(B_SᵀH_SS⁻¹B_S). A
    nearly singular H is raised on the diagonal: that may change the choice, not the error that methods end with.

    Parameters
    ----------
    view : PruningView
    kept : ndarray of bool, shape (units,)
    damp : float
        Share of the mean diagonal that is added to the diagonal.

    Attributes
    ----------
    kept : ndarray of bool, shape (units,)
    value : float
        The error of the kept units.
    """

    def __init__(self, view: PruningView, kept: Bool, damp: float = 0.0) -> None:
        rows = np.atleast_2d(view.target)
        if len(rows) > rows.shape[1]:
            # What is sought depends on W through WᵀW alone.
            rows = scipy.linalg.qr(rows, mode="r", check_finite=False)[0][: rows.shape[1]]
        self.gram = raised(view.gram, damp)
        self.b = self.gram @ rows.T
        self.energy = float(np.sum(rows.T * self.b))
        self.structure: Structure = view.structure
        self.members = padded_members(view.structure)
        # Units of fewer inputs than the largest are filled up with an input that is never there.
        self.filler = self.members == len(view.structure.unit)
        self.kept = np.zeros(len(self.members), dtype=bool)
        self.start(kept)

    def start(self, kept: Bool) -> None:
        """Begin anew with a choice of units, shape (units,)."""
        n, rows = self.b.shape
        table = np.zeros((n + 1 + rows, n + 1 + rows))
        table[:n, :n], table[:n, n + 1 :], table[n + 1 :, :n] = self.gram, self.b, self.b.T
        table[n + 1 :, n + 1 :] = np.diag(np.full(rows, self.energy / max(rows, 1)))
        self.table, self.sweeps, self.kept = table, 0, kept.copy()
        self._sweep(np.flatnonzero(kept[self.structure.unit]), 1.0)
        self.sweeps = 0

    @property
    def value(self) -> float:
        """The error of the kept units."""
        first = len(self.gram) + 1
        return max(float(np.trace(self.table[first:, first:])), 0.0)

    def flip(self, *units: int) -> None:
        """Drop kept units and keep dropped ones; those of one call are all kept or all dropped before."""
        if not units:
            return
        inputs = self.members[list(units)].ravel()
        self._sweep(inputs[inputs < len(self.gram)], -1.0 if self.kept[units[0]] else 1.0)
        self.kept[list(units)] = ~self.kept[list(units)]
        self.sweeps += 1
        if self.sweeps >= REFRESH:
            self.start(self.kept)

    def costs(self) -> Float:
        """What dropping each kept unit would add to the error; infinite for dropped ones."""
        return np.where(self.kept, self._traces(-1.0), np.inf)

    def gains(self) -> Float:
        """What keeping each dropped unit would take from the error; −infinite for kept ones."""
        return np.where(self.kept, -np.inf, self._traces(1.0))

    def _sweep(self, inputs: Int, sign: float) -> None:
        """Take inputs in (sign 1) or out (−1)."""
        if not len(inputs):
            return
        table = self.table
        block = np.linalg.inv(table[np.ix_(inputs, inputs)])
        block = 0.5 * (block + block.T)
        side = table[inputs]
        columns = block @ side
        table -= side.T @ columns
        table[inputs], table[:, inputs] = sign * columns, sign * columns.T
        table[np.ix_(inputs, inputs)] = -block

    def _blocks(self, members: Int, sign: float, units: Int) -> Float:
        blocks = sign * self.table[members[:, :, None], members[:, None, :]]
        which, place = np.nonzero(self.filler[units])
        blocks[which, place, place] = 1.0
        return blocks

    def _right(self, members: Int) -> Float:
        return self.table[members][:, :, len(self.gram) + 1 :]

    def _traces(self, sign: float) -> Float:
        """tr(rᵀQ⁻¹r) of the units on one side, 0 elsewhere."""
        units = np.flatnonzero(self.kept if sign < 0 else ~self.kept)
        result = np.zeros(len(self.kept))
        if len(units):
            members = self.members[units]
            right = self._right(members)
            result[units] = _trace_solve(self._blocks(members, sign, units), right @ right.transpose(0, 2, 1))
        return result


def raised(gram: Float, damp: float) -> Float:
    """The matrix with a share of its mean diagonal added, and more of each entry where that is nearly singular."""
    diagonal = np.diag(gram)
    matrix = gram + np.diag(np.full(len(gram), damp * float(np.mean(diagonal))))
    share = 1e-10
    while True:
        factor = cholesky(np.ascontiguousarray(matrix))
        if factor is not None and np.all(np.diag(factor) ** 2 > SMALLEST_PIVOT * np.diag(matrix)):
            return matrix
        matrix = matrix + np.diag(share * diagonal)
        share *= 10.0


def padded_members(structure: Structure) -> Int:
    """The inputs of each unit, shape (units, largest size), filled up with n."""
    n = len(structure.unit)
    sizes = np.bincount(structure.unit, minlength=len(structure.group))
    order = np.argsort(structure.unit, kind="stable")
    members = np.full((len(sizes), int(sizes.max(initial=1))), n, dtype=np.int64)
    place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    members[structure.unit[order], place] = order
    return members


def _trace_solve(matrix: Float, right: Float) -> Float:
    """tr(matrix⁻¹ right) of many small blocks."""
    if matrix.shape[-1] == 1:
        return np.asarray((right / matrix)[..., 0, 0])
    return np.asarray(np.trace(np.linalg.solve(matrix, right), axis1=-2, axis2=-1))
