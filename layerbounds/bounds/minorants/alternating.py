"""Alternating direction method of multipliers for the tangent relaxation, with split cuts or without.

Minimises (z − w)ᵀM(z − w) + Σ_j d_j e_j(c_jᵀz), M = H − C diag(d) Cᵀ, C the columns of the units and, if any, the
integer forms, and e_j the piecewise-linear interpolation of the squares of the numbers that c_jᵀq can be. With the
splitting y = Cᵀz and the penalty diag(κ∘d), κ_i = √(H_ii/d_i) without forms, every proximal step is one rounding
(Boyd et al., Foundations and Trends in Machine Learning 3, 2011; docs/bounds.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from scipy.sparse import csr_array

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.cuts import weighted_square
from layerbounds.kernels.factorization import cholesky, symmetric_inverse

#: Over-relaxation, κ with forms, and the largest κ: columns of next to no weight are left to the others.
RELAXATION, WITH_FORMS, LARGEST = 1.6, 6.0, 1e9
#: Iterations between two evaluations, and the relative gain of one below which they end.
CYCLE, PROGRESS = 50, 2e-4


class _Valued(Protocol):
    @property
    def value(self) -> float: ...


Point = TypeVar("Point", bound=_Valued)


def penalties(gram: Float, units: Float, weights: Float) -> tuple[Float, Float]:
    """κ of the units and of the forms.

    Without forms the penalty κd of a unit is between its weight and what it is in H. With forms that is slower than one
    number for all columns.
    """
    if weights.size:
        return np.full(len(units), WITH_FORMS), np.full(weights.size, WITH_FORMS)
    own = np.diag(gram)
    ratio = np.divide(own, units, out=np.full_like(own, LARGEST**2), where=units > own / LARGEST**2)
    return np.sqrt(ratio), np.zeros(0)


def smooth_inverse(gram: Float, units: Float, forms: csr_array, weights: Float) -> Float | None:
    """Inverse of H + C diag((κ − 1)∘d) Cᵀ, the matrix of the smooth part."""
    kappa, kappa_forms = penalties(gram, units, weights)
    return penalized_inverse(gram, units, forms, weights, kappa, kappa_forms)


def penalized_inverse(
    gram: Float, units: Float, forms: csr_array, weights: Float, kappa: Float | float, kappa_forms: Float | float
) -> Float | None:
    """The same for any κ."""
    matrix = gram.copy()
    if weights.size:
        matrix += weighted_square(forms, (kappa_forms - 1.0) * weights)
    matrix[np.diag_indices(len(units))] += (kappa - 1.0) * units
    factor = cholesky(matrix)
    return None if factor is None else symmetric_inverse(factor)


class AlternatingDirections:
    """State of the method; `iterate` goes on, and any state gives a dual point.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        H.
    origin : ndarray of shape (n,)
        w.
    levels : ndarray of shape (levels, n)
        Sorted, padded with the last level.
    units : ndarray of shape (n,)
        Weights of the units.
    start : ndarray of shape (n,)
    forms : csr_array of shape (n, cuts), optional
        Integer forms, where the levels are integers.
    weights : ndarray of shape (cuts,), optional
        Weights of the forms.
    inverse : ndarray of shape (n, n), optional
        Of the smooth part's matrix (`smooth_inverse`), where it is known.

    Attributes
    ----------
    z : ndarray of shape (n,)
    multipliers : ndarray of shape (cuts,)
        Of the forms.
    usable : bool
        False where the matrix of the smooth part cannot be factorized.
    """

    def __init__(
        self,
        gram: Float,
        origin: Float,
        levels: Float,
        units: Float,
        start: Float,
        forms: csr_array | None = None,
        weights: Float | None = None,
        inverse: Float | None = None,
    ) -> None:
        n = len(origin)
        self._levels, self._units = levels, units
        self._forms = csr_array((n, 0)) if forms is None else forms
        self._transposed = csr_array(self._forms.T)
        self._weights = np.zeros(0) if weights is None else weights
        self._kappa, self._kappa_forms = penalties(gram, units, self._weights)
        if inverse is None:
            inverse = smooth_inverse(gram, units, self._forms, self._weights)
        self.usable = inverse is not None
        self._inverse = np.zeros((n, n)) if inverse is None else inverse
        self._pull = gram @ origin
        self.z = start
        self._y, self._y_forms = start.copy(), self._transposed @ start
        self._u, self._u_forms = np.zeros(n), np.zeros(self._weights.size)

    def iterate(self, count: int) -> None:
        """So many iterations."""
        for _ in range(count):
            right = self._kappa * self._units * (self._y - self._u)
            right += self._forms @ (self._kappa_forms * self._weights * (self._y_forms - self._u_forms))
            self.z = self._inverse @ (self._pull + right)
            moved = RELAXATION * self.z + (1.0 - RELAXATION) * self._y + self._u
            self._y = _nearest_kink(moved, self._levels, self._kappa)
            self._u = moved - self._y
            if self._weights.size:
                moved = RELAXATION * (self._transposed @ self.z) + (1.0 - RELAXATION) * self._y_forms + self._u_forms
                self._y_forms = _nearest_integer_kink(moved, self._kappa_forms)
                self._u_forms = moved - self._y_forms

    @property
    def multipliers(self) -> Float:
        """Of the forms, for the tangent bound at z."""
        return np.asarray(self._weights * (self._transposed @ self.z - self._kappa_forms * self._u_forms))


def ascend(
    method: AlternatingDirections, best: Point, evaluate: Callable[[], Point], cycles: int, stop: Callable[[], bool]
) -> Point:
    """Iterate and evaluate by turns; the better of `best` and the best point met.

    Parameters
    ----------
    method : AlternatingDirections
    best : object with a ``value``
        Of the start.
    evaluate : callable
        The dual point at the method's state.
    cycles : int
        Evaluations at most.
    stop : callable
        Asked between evaluations whether to end.
    """
    for _ in range(cycles if method.usable else 0):
        method.iterate(CYCLE)
        found = evaluate()
        gain = found.value - best.value
        if gain > 0:
            best = found
        if stop() or abs(gain) <= PROGRESS * abs(best.value):
            break
    return best


def _nearest_kink(v: Float, levels: Float, kappa: Float | float) -> Float:
    """Minimiser over y in the hull of e(y) + κ(y − v)², e the interpolation of t² at the levels of each column."""
    if len(levels) == 1:
        return np.array(levels[0])
    low, high = levels[:-1], levels[1:]
    half = (low + high) / (2.0 * kappa)
    cell = np.minimum((v > high + half).sum(axis=0), len(low) - 1)
    column = np.arange(len(v))
    return np.asarray(np.clip(v - half[cell, column], low[cell, column], high[cell, column]))


def _nearest_integer_kink(v: Float, kappa: Float | float) -> Float:
    """The same for all integers."""
    below = np.floor((v + 0.5 / kappa) / (1.0 + 1.0 / kappa))
    return np.asarray(np.clip(v - (below + 0.5) / kappa, below, below + 1.0))
