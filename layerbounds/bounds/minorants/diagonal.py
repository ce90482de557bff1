"""Diagonal minorants 0 ⪯ D ⪯ H of a Gram matrix: the heart of every separable bound.

Maximises Σ a_i d_i over {d ≥ 0, H − D ⪰ 0} by the log-determinant barrier (`bounds/barrier.py`, docs/bounds.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.barrier import FAR, ascend_barrier
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, semidefinite_shift, shrink_until
from layerbounds.kernels.factorization import cholesky, inverse_diagonal

#: Instead of the inverse of an entry of 0: what a tilt alone prices is least at an end of the box.
STEEP = 1e150


def reciprocals(minorants: Float) -> Float:
    """Entrywise inverses by which tilts move the best level; `STEEP` where an entry is 0."""
    return np.divide(1.0, minorants, out=np.full_like(minorants, STEEP), where=minorants > 0)


def is_minorant(gram: Float, d: Float) -> bool:
    """Prove diag(d) ⪯ gram."""
    matrix = gram.copy()
    matrix[np.diag_indices(len(d))] -= d
    return is_positive_semidefinite(matrix)


def certified_minorant(gram: Float, d: Float) -> Float:
    """Shrink a diagonal until it is a proven minorant; zeros in the worst case."""
    return shrink_until(lambda candidate: is_minorant(gram, candidate), d)


def proven_minorant(gram: Float, d: Float) -> tuple[Float, Float] | None:
    """A diagonal d' ≤ d and a shift e ≥ 0 with diag(d') ⪯ gram + diag(e) proven; None where nothing can be.

    Positive definite matrices need no shift, at most a slightly smaller diagonal.
    """
    shifted = semidefinite_shift(gram)
    return None if shifted is None else (certified_minorant(shifted[0], d), shifted[1])


def interior_start(gram: Float) -> Float:
    """A strictly feasible diagonal: a fraction of 1/diag(H⁻¹)/n, which lies below H (Cauchy–Schwarz)."""
    n = gram.shape[0]
    factor = cholesky(gram)
    if factor is None:
        return np.zeros(n)
    return np.asarray(0.9 / (n * inverse_diagonal(factor)))


def maximize_minorant(
    gram: Float,
    objective: Float,
    start: Float | None = None,
    relative_gap: float = 0.2,
    max_steps: int = 80,
    stop: Callable[[], bool] | None = None,
) -> Float:
    """Approximately maximise Σ a_i d_i over the diagonals 0 ⪯ D ⪯ gram.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite.
    objective : ndarray of shape (n,)
        Coefficients a ≥ 0: the expected squared distance of each variable to its grid.
    start : ndarray of shape (n,), optional
        Strictly feasible; others are shrunk until they are.
    relative_gap : float
        Stop when the barrier's duality gap 2nμ is below this fraction of the value. A loose gap is cheaper and leaves
        D inside the cone, where it serves children better.
    max_steps : int
        Newton steps.
    stop : callable, optional
        Asked before each Newton step whether to end with what there is.

    Returns
    -------
    ndarray of shape (n,)
        A proven minorant.
    """
    n = gram.shape[0]
    scale = np.sqrt(np.diag(gram))
    matrix = gram / np.outer(scale, scale)
    a = np.maximum(objective * scale**2, 0.0)
    top = float(a.max(initial=0.0))
    a = np.ones(n) if top == 0.0 else a / top + 1e-6
    d, poor = _strictly_inside(matrix, None if start is None else start / scale**2)
    if not np.all(d > 0):
        return np.zeros(n)
    mu = (FAR if poor else 1.0) * float(a @ d) / n
    found = ascend_barrier(
        a, d, mu, lambda x: cholesky(matrix - np.diag(x)), lambda x: x, relative_gap, max_steps, stop
    )
    return certified_minorant(gram, (d if found is None else found.d) * scale**2)


def _strictly_inside(matrix: Float, start: Float | None) -> tuple[Float, bool]:
    """A strictly feasible diagonal, and whether it may be far from a good one."""
    if start is not None:
        d = np.maximum(start, 0.0)
        floor = float(d.max(initial=0.0)) * 1e-6
        d = np.maximum(d, floor)
        for factor in (0.98, 0.9, 0.7, 0.4):
            if floor > 0 and cholesky(matrix - np.diag(d * factor)) is not None:
                return np.asarray(d * factor), False
    return interior_start(matrix), True
