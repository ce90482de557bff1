"""The tangent relaxation with split cuts, for uniform grids in grid units.

For any z, any multipliers ρ of the forms v_j and weights with diag(d) + V diag(g) Vᵀ ⪯ H,

    f(q) ≥ f(z) + Σ_i min_v [2 (h − Vρ)_i (v − z_i) + d_i (v − z_i)²] + Σ_j min_t [2 ρ_j (t − y_j) + g_j (t − y_j)²],

h = H(z − w), y = Vᵀz, t over the integers. The maximum over z and ρ is the minimum over the hull of f(z) plus the
weight of every unit and form times (fractional part)(1 − fractional part): a convex, piecewise-quadratic problem with
kinks along the forms (docs/bounds.md, split cuts at the root).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.sparse import csr_array

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.alternating import AlternatingDirections, ascend
from layerbounds.bounds.quantization.cuts import (
    Barrier,
    certified_weights,
    first_weights,
    fractional_product,
    maximize_weights,
    separate_at,
)
from layerbounds.kernels.factorization import UNIT
from layerbounds.proofs import FormTerms

#: Cycles of alternating directions.
CYCLES = 8
#: Share of the mean fractional product that every unit and form counts for at least.
FLOOR = 0.02
#: New forms of a separation and the most that are kept, as multiples of n.
ADDED, KEPT = 0.5, 2.0
#: Gain of a refit, relative to the bound, below which forms are separated anew, or the work ends.
WORTHWHILE = 5e-3


@dataclass(frozen=True, eq=False)
class SplitWeights:
    """Integer forms and the proven weights of the units and the forms.

    Attributes
    ----------
    forms : ndarray of shape (n, cuts)
    units : ndarray of shape (n,)
    weights : ndarray of shape (cuts,)
    """

    forms: Float
    units: Float
    weights: Float

    @classmethod
    def without_forms(cls, units: Float) -> Self:
        """Of the units alone."""
        return cls(np.zeros((len(units), 0)), units, np.zeros(0))


@dataclass(frozen=True, eq=False)
class SplitRelaxation:
    """A dual point of the tangent relaxation with split cuts.

    Attributes
    ----------
    value : float
        Lower bound, its own rounding deducted.
    z : ndarray of shape (n,)
    split : SplitWeights
    multipliers : ndarray of shape (cuts,)
    terms : ndarray of shape (levels, n)
        As in `layerbounds.bounds.quantization.relaxation.Relaxation`.
    """

    value: float
    z: Float
    split: SplitWeights
    multipliers: Float
    terms: Float

    @property
    def form_terms(self) -> FormTerms:
        """The forms with their weights and multipliers."""
        return FormTerms(self.split.forms, self.split.weights, self.multipliers)


def evaluate_split(
    gram: Float, origin: Float, levels: Float, split: SplitWeights, z: Float, multipliers: Float
) -> SplitRelaxation:
    """The bound at a point and multipliers.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    origin : ndarray of shape (n,)
        w.
    levels : ndarray of shape (levels, n)
        Consecutive integers in every column.
    split : SplitWeights
        Proven.
    z : ndarray of shape (n,)
    multipliers : ndarray of shape (cuts,)
    """
    n, m = split.forms.shape
    low, high = levels[0], levels[-1]
    forms = csr_array(split.forms)
    deviation = z - origin
    linear = gram @ deviation
    step = levels - z
    value = float(deviation @ linear)
    terms = 2.0 * (linear - forms @ multipliers) * step + split.units * step**2
    of_forms, size_of_forms = form_minima(forms, split.weights, multipliers, low, high, z)
    size = np.abs(gram) @ np.abs(deviation)
    reach = np.abs(step).max(axis=0)
    magnitude = (
        np.abs(deviation) @ size
        + 2.0 * np.sum((size + abs(forms) @ np.abs(multipliers)) * reach)
        + split.units @ reach**2
        + size_of_forms
    )
    total = value + float(np.sum(terms.min(axis=0))) + of_forms
    error = 4.0 * (n + m + 8) * UNIT * float(magnitude)
    return SplitRelaxation(total - error, z.copy(), split, multipliers.copy(), terms)


def form_minima(
    forms: csr_array, weights: Float, multipliers: Float, low: Float, high: Float, z: Float
) -> tuple[float, float]:
    """Σ_j min over the integers t that form j can be of 2ρ_j(t − y_j) + g_j(t − y_j)², and the size of what was added.

    Parameters
    ----------
    forms : csr_array of shape (n, cuts)
    weights, multipliers : ndarray of shape (cuts,)
    low, high : ndarray of shape (n,)
        Ends of the box, integers.
    z : ndarray of shape (n,)
    """
    # Ranges of the forms, exact integers.
    lowest = (forms.minimum(0.0)).T @ high + (forms.maximum(0.0)).T @ low
    highest = (forms.maximum(0.0)).T @ high + (forms.minimum(0.0)).T @ low
    y = forms.T @ z
    vertex = y - np.divide(multipliers, weights, out=np.zeros(len(weights)), where=weights > 0)
    points = np.clip(np.stack([lowest, highest, np.floor(vertex), np.ceil(vertex)]), lowest, highest)
    move = points - y
    least = (2.0 * multipliers * move + weights * move**2).min(axis=0)
    farthest = np.maximum(np.abs(lowest - y), np.abs(highest - y))
    slope = np.abs(multipliers) + weights * farthest
    spread = abs(forms).T @ (np.abs(z) + np.maximum(np.abs(low), np.abs(high)))
    return float(np.sum(least)), float(2.0 * slope @ (farthest + spread))


def maximize_split(
    gram: Float,
    origin: Float,
    levels: Float,
    split: SplitWeights,
    start: Float,
    stop: Callable[[], bool],
    inverse: Float | None = None,
) -> SplitRelaxation:
    """Best z and multipliers for fixed weights, by alternating directions.

    Parameters
    ----------
    gram, origin, levels, split
        As in `evaluate_split`.
    start : ndarray of shape (n,)
    stop : callable
        Asked between evaluations whether to end.
    inverse : ndarray of shape (n, n), optional
        As in `AlternatingDirections`.
    """
    z = np.clip(start, levels[0], levels[-1])
    best = evaluate_split(gram, origin, levels, split, z, np.zeros(len(split.weights)))
    method = AlternatingDirections(gram, origin, levels, split.units, z, csr_array(split.forms), split.weights, inverse)
    return ascend(
        method, best, lambda: evaluate_split(gram, origin, levels, split, method.z, method.multipliers), CYCLES, stop
    )


def refine_split(
    gram: Float,
    covariance: Float,
    origin: Float,
    levels: Float,
    start: SplitWeights,
    point: Float,
    rounds: int,
    stop: Callable[[], bool],
) -> SplitRelaxation:
    """Alternate between (z, ρ), the weights and new forms; returns the best dual point met.

    The weights are refitted to the fractional products of the units and forms at z, averaged over the rounds. Where
    that gains little, forms u ± w of the units and the present forms are added whose fractional product exceeds vᵀXv,
    X the dual matrix of the weights, and the least useful ones are dropped.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    covariance : ndarray of shape (n, n)
        Inverse of ``gram``.
    origin, levels
        As in `evaluate_split`.
    start : SplitWeights
        Proven.
    point : ndarray of shape (n,)
        First z.
    rounds : int
        Refits at most.
    stop : callable
        Asked all the time whether to end.
    """
    n = len(origin)
    low, high = levels[0], levels[-1]
    best = current = maximize_split(gram, origin, levels, start, point, stop)
    forms, state = start.forms, (start.units, start.weights)
    expected: Float | None = None
    separated = False
    for _ in range(rounds):
        if stop():
            break
        z = np.clip(current.z, low, high)
        product = fractional_product(np.concatenate([z, z @ forms]))
        product += FLOOR * float(np.mean(product)) + np.finfo(np.float64).tiny
        expected = product if expected is None else 0.5 * (expected + product)
        found = maximize_weights(gram, forms, expected[:n], expected[n:], state, relative_gap=0.3, stop=stop)
        if found is None:
            break
        state = found.units, found.weights
        split = SplitWeights(forms, *certified_weights(gram, forms, *state))
        current = maximize_split(gram, origin, levels, split, current.z, stop)
        gain = current.value - best.value
        if gain > 0:
            best = current
        if gain > WORTHWHILE * abs(best.value):
            separated = False
            continue
        if separated:
            break
        z = np.clip(current.z, low, high)
        new = separate_at(found.dual, covariance, forms, z, int(ADDED * n))
        forms, state, expected = _extended(found, forms, expected, new, z, int(KEPT * n))
        separated = True
    return best


def _extended(
    found: Barrier, forms: Float, expected: Float, new: Float, z: Float, most: int
) -> tuple[Float, tuple[Float, Float], Float]:
    """Forms, weights and expected products with new forms in, the lightest old ones out."""
    n = len(z)
    use = found.weights * np.einsum("ij,ij->j", forms, found.dual @ forms)
    kept = np.sort(np.argsort(-use, kind="stable")[: max(most - new.shape[1], 0)])
    weights = np.concatenate([found.weights[kept], first_weights(found, new)])
    expected = np.concatenate([expected[:n], expected[n:][kept], fractional_product(z @ new)])
    return np.hstack([forms[:, kept], new]), (found.units, weights), expected
