"""Masks as a binary quadratic form: f = zᵀAz − 2βᵀz + c, z_g = 1 for a kept unit (docs/pruning-bounds.md).

For units of inputs that R rows share, A_gh = Σ_{i∈g, j∈h} h_ij Σ_r ω_ri ω_rj and β_g = Σ_{i∈g} Σ_r ω_ri (Hw_r)_i.
For output channels that a metric Q binds, A = Q∘(ΩHΩᵀ) and β_r = Σ_s q_rs (WHΩᵀ)_sr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.objective import entry_sizes
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.patterns import Structure

#: Products with more terms than this are computed in double precision.
EXTENDED_TERMS = 3e7
#: More than a product can lose by underflow.
TINY = float(np.finfo(np.float64).smallest_subnormal)


@dataclass(frozen=True, eq=False)
class MaskForm:
    """f = zᵀAz − 2βᵀz + c over binary z, at most so many ones in each group.

    Attributes
    ----------
    a : ndarray of shape (units, units)
        Symmetric.
    beta : ndarray of shape (units,)
    energy : float
        c, negative where the stored matrix is indefinite: raising it to zero would raise all other values.
    group : ndarray of int64, shape (units,)
    capacity : ndarray of int64, shape (groups,)
    off : float
        How far a value of the form can be from that of the problem it was made of, for any z in [0, 1].
    """

    a: Float
    beta: Float
    energy: float
    group: Int
    capacity: Int
    off: float

    @property
    def size(self) -> float:
        """More than the absolute terms of the form, and of bounds from points in [0, 1], add up to."""
        return 1.01 * (abs(self.energy) + 4.0 * float(np.abs(self.a).sum() + np.abs(self.beta).sum()))

    @property
    def idle(self) -> Bool:
        """Units that change nothing, kept or not, as their weights are zero."""
        return np.asarray(~np.any(self.a, axis=1) & (self.beta == 0.0))

    def restricted(self, units: Int) -> MaskForm:
        """The form of some units where the others are not kept.

        Parameters
        ----------
        units : ndarray of int64
        """
        if len(units) == len(self.beta):
            return self
        part = np.ascontiguousarray(self.a[np.ix_(units, units)])
        return MaskForm(part, self.beta[units], self.energy, self.group[units], self.capacity, self.off)

    def value(self, kept: Bool) -> float:
        """F of a choice of units, in float64."""
        z = kept.astype(np.float64)
        return self.energy + float(z @ self.a @ z) - 2.0 * float(self.beta @ z)


@np.errstate(over="ignore", invalid="ignore")
def unit_form(gram: Float, targets: Float, originals: Float, structure: Structure) -> MaskForm:
    """The form of units of inputs that rows share.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    targets, originals : ndarray of shape (rows, n)
        w, and the weights ω of kept inputs.
    structure : Structure
    """
    rows, n = originals.shape
    wide = rows * n * n <= EXTENDED_TERMS
    kind: Any
    kind, unit_error = (np.longdouble, float(np.finfo(np.longdouble).eps)) if wide else (np.float64, UNIT)
    h, w, kept = gram.astype(kind), targets.astype(kind), originals.astype(kind)
    right = h @ w.T
    scaled: Any = h * (kept.T @ kept)
    linear: Any = np.sum(kept.T * right, axis=1)
    energy = float(np.sum(w.T * right))
    if len(structure.group) < n:
        order = np.argsort(structure.unit, kind="stable")
        first = np.searchsorted(structure.unit[order], np.arange(len(structure.group)))
        scaled = np.add.reduceat(np.add.reduceat(scaled[np.ix_(order, order)], first, 0), first, 1)
        linear = np.add.reduceat(linear[order], first)
    a, beta = scaled.astype(np.float64), linear.astype(np.float64)
    a = np.ascontiguousarray(0.5 * (a + a.T))
    # Σ_r |ω_ri ω_rj| and the like are at most products of these (Cauchy–Schwarz), whose squares must not underflow.
    reach = sum(np.sqrt(np.sum(part.astype(np.longdouble) ** 2, axis=0)) for part in (originals, targets))
    reach = reach.astype(np.float64)
    terms = 1.01 * float(reach @ (np.abs(gram) @ reach))
    # Sums of at most n or R terms after one another, and the rounding of A, β and c to float64.
    off = 4.0 * (2 * n + rows + 32) * unit_error * terms
    off += 4.0 * UNIT * (abs(energy) + float(np.abs(a).sum() + np.abs(beta).sum()))
    off += 8.0 * n * n * (rows + 8) * TINY
    return MaskForm(a, beta, energy, structure.group, structure.capacity, off)


@np.errstate(over="ignore", invalid="ignore")
def row_form(gram: Float, targets: Float, originals: Float, metric: Float, capacity: int) -> MaskForm:
    """The form of whole output channels that a metric binds.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    targets, originals : ndarray of shape (rows, n)
        w, and the weights ω of kept output channels.
    metric : ndarray of shape (rows, rows)
        Q.
    capacity : int
    """
    rows, n = originals.shape
    wide = 2 * rows * n * (n + rows) <= EXTENDED_TERMS
    kind: Any
    kind, unit_error = (np.longdouble, float(np.finfo(np.longdouble).eps)) if wide else (np.float64, UNIT)
    h, w, kept, q = gram.astype(kind), targets.astype(kind), originals.astype(kind), metric.astype(kind)
    right: Any = h @ kept.T
    scaled: Any = q * (kept @ right)
    linear: Any = np.sum(q * (w @ right), axis=0)
    energy = float(np.sum(q * (w @ (h @ w.T))))
    a, beta = scaled.astype(np.float64), linear.astype(np.float64)
    a = np.ascontiguousarray(0.5 * (a + a.T))
    # |ω_rᵀHω_s| and all that it is added up from is at most a product of these.
    reach = (np.abs(originals) + np.abs(targets)) @ entry_sizes(gram)
    terms = 1.01 * float(reach @ (np.abs(metric) @ reach))
    off = 4.0 * (2 * n + 2 * rows + 32) * unit_error * terms
    off += 4.0 * UNIT * (abs(energy) + float(np.abs(a).sum() + np.abs(beta).sum()))
    off += 8.0 * rows * rows * n * n * TINY
    return MaskForm(a, beta, energy, np.zeros(rows, dtype=np.int64), np.array([capacity], dtype=np.int64), off)
