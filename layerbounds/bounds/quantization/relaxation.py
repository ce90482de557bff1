"""The tangent relaxation and its best diagonal.

For any z in the hull of the grid and any diagonal D ⪯ H,

    f(q) ≥ f(z) + Σ_i min_{v in L_i} [2 h_i (v − z_i) + d_i (v − z_i)²],   h = H(z − w).

Its maximum over z is the minimum over the hull of f(z) + Σ d_i (z_i − l)(u − z_i). Alternating with
D ← argmax Σ a_i d_i, a_i = (z_i − l)(u − z_i), averaged so that it does not oscillate, raises it further: with the best
D it is the box-aware semidefinite bound (docs/bounds.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.alternating import AlternatingDirections, ascend
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.quantization.relaxation import cells, descend

_ROUNDS, _PATIENCE, _PROGRESS = 60, 6, 2e-4
#: Cycles of alternating directions.
_CYCLES = 4


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A dual point of the tangent relaxation.

    Attributes
    ----------
    value : float
        Lower bound, its own rounding deducted.
    z, d : ndarray of shape (n,)
    terms : ndarray of shape (levels, n)
        2 h_i (v − z_i) + d_i (v − z_i)² for every level: the bound with variable i at v is
        ``value + terms[v, i] − min(terms[:, i])``.
    """

    value: float
    z: Float
    d: Float
    terms: Float


def evaluate_relaxation(gram: Float, origin: Float, levels: Float, z: Float, d: Float) -> Relaxation:
    """The bound at a point z, for a proven minorant d."""
    n = len(z)
    deviation = z - origin
    h = gram @ deviation
    step = levels - z
    terms = 2.0 * h * step + d * step**2
    least = terms.min(axis=0)
    size = np.abs(gram) @ np.abs(deviation)
    error = 4.0 * (n + 8) * UNIT * float(np.abs(deviation) @ size + np.sum(2.0 * size * np.abs(step).max(axis=0)))
    return Relaxation(float(deviation @ h + np.sum(least)) - error, z.copy(), d, terms)


def maximize_relaxation(
    gram: Float,
    origin: Float,
    levels: Float,
    count: Int,
    d: Float,
    start: Float,
    stop: Callable[[], bool],
    inverse: Float | None = None,
) -> Relaxation:
    """Best z for a fixed diagonal: alternating directions, then coordinate descent and Newton steps off the levels.

    Neither is always enough: coordinate descent crawls on ill-conditioned matrices, alternating directions where many
    ends of the box are active.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    origin : ndarray of shape (n,)
        w.
    levels : ndarray of shape (levels, n)
        Sorted, padded with the last level.
    count : ndarray of int64, shape (n,)
    d : ndarray of shape (n,)
        A proven minorant.
    start : ndarray of shape (n,)
    stop : callable
        Asked between rounds whether to end.
    inverse : ndarray of shape (n, n), optional
        As in `AlternatingDirections`.
    """
    z = np.clip(start, levels[0], levels[-1])
    best = evaluate_relaxation(gram, origin, levels, z, d)
    method = AlternatingDirections(gram, origin, levels, d, z, inverse=inverse)
    best = ascend(method, best, lambda: evaluate_relaxation(gram, origin, levels, method.z, d), _CYCLES, stop)
    z = np.clip(best.z, levels[0], levels[-1])
    # Sweeps cost n² each: small ill-conditioned problems need, and can have, many.
    sweeps = int(np.clip(20_000 // len(d), 16, 200))
    last_gain, reference = 0, best.value
    for round_number in range(_ROUNDS):
        gradient = gram @ (z - origin)
        largest = descend(gram, levels, count, d, z, gradient, sweeps)
        polished = _newton(gram, origin, levels, count, d, z)
        for candidate in (z, polished):
            if candidate is not None:
                found = evaluate_relaxation(gram, origin, levels, candidate, d)
                if found.value > best.value:
                    best = found
        if best.value > reference + _PROGRESS * abs(reference):
            last_gain, reference = round_number, best.value
        if stop() or largest < 1e-9 or round_number - last_gain >= _PATIENCE:
            break
        if polished is not None:
            z = polished
    return best


def _newton(gram: Float, origin: Float, levels: Float, count: Int, d: Float, z: Float) -> Float | None:
    """Minimise over the variables inside their cells, the others fixed; cut back to the cells."""
    low, high = np.empty_like(z), np.empty_like(z)
    cells(levels, count, z, low, high)
    free = np.flatnonzero(low < high)
    if free.size == 0:
        return None
    matrix = np.ascontiguousarray(gram[np.ix_(free, free)])
    matrix[np.diag_indices(len(free))] -= d[free]
    middle = 0.5 * (low[free] + high[free])
    right = -(gram[free] @ (z - origin)) + d[free] * (z[free] - middle)
    _, step, info = lapack.dposv(matrix, right, lower=1)
    if info != 0:
        return None
    result = z.copy()
    result[free] = np.clip(z[free] + np.ravel(step), low[free], high[free])
    return result


def refine(
    gram: Float, origin: Float, levels: Float, count: Int, d: Float, start: Float, rounds: int, stop: Callable[[], bool]
) -> Relaxation:
    """Alternate between z and the diagonal; returns the best dual point met."""
    best = maximize_relaxation(gram, origin, levels, count, d, start, stop)
    current = best
    weights: Float | None = None
    for _ in range(rounds):
        if stop():
            break
        low, high = np.empty_like(d), np.empty_like(d)
        cells(levels, count, current.z, low, high)
        a = (current.z - low) * (high - current.z)
        a += 0.02 * float(np.mean(a)) + np.finfo(np.float64).tiny
        weights = a if weights is None else 0.5 * (weights + a)
        diagonal = maximize_minorant(gram, weights, current.d, relative_gap=0.3, stop=stop)
        if not np.any(diagonal):
            break
        current = maximize_relaxation(gram, origin, levels, count, diagonal, current.z, stop)
        if current.value > best.value:
            best = current
    return best
