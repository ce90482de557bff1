"""A diagonal minorant for thousands of inputs, without second derivatives.

The barrier function of `layerbounds.bounds.minorants.diagonal`, Σ a_i d_i + μ logdet(H − D) + μ Σ log d_i, is
ascended with the diagonal of its Hessian alone: a step costs one Cholesky factorization and one inverse instead of two
factorizations, an inverse and n² numbers more. Whatever the last step was, the result is proven.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.factorization import cholesky, symmetric_inverse

#: Steps, factor of μ after each, and the first share of a step that is tried.
STEPS, COOLING, FIRST_LENGTH = 30, 0.75, 0.5


def ascend_minorant(gram: Float, objective: Float, steps: int = STEPS, stop: Callable[[], bool] | None = None) -> Float:
    """Roughly maximise Σ a_i d_i over the diagonals 0 ⪯ D ⪯ gram.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite.
    objective : ndarray of shape (n,)
        Coefficients a ≥ 0: the expected squared distance of each variable to its grid.
    steps : int
    stop : callable, optional
        Asked before each step whether to end with what there is.

    Returns
    -------
    ndarray of shape (n,)
        A proven minorant, valid after any number of steps.
    """
    n = len(gram)
    scale = np.sqrt(np.diag(gram))
    matrix = gram / scale[:, None] / scale
    a = np.maximum(objective, 0.0) * scale**2
    top = float(a.max(initial=0.0))
    a = np.ones(n) if top == 0.0 else a / top + 1e-6
    d = interior_start(matrix)
    if not np.all(d > 0):
        return np.zeros(n)
    mu = float(a @ d) / n
    length = FIRST_LENGTH
    inverse = _inverse(matrix, d)
    best, best_value = d, float(a @ d)
    for _ in range(steps):
        checkpoint()
        if inverse is None or (stop is not None and stop()):
            break
        gap = np.diag(inverse)
        step = (a - mu * gap + mu / d) / (mu * gap**2 + mu / d**2)
        # d may at most triple or fall to a third, whatever the model says.
        moved = np.clip(d + length * step, d / 3.0, d * 3.0)
        found = _inverse(matrix, moved)
        if found is None:
            length *= 0.5
            continue
        d, inverse = moved, found
        length = min(1.5 * length, 1.0)
        mu *= COOLING
        if float(a @ d) > best_value:
            best, best_value = d, float(a @ d)
    return certified_minorant(gram, best * scale**2)


def _inverse(matrix: Float, d: Float) -> Float | None:
    reduced = matrix.copy()
    reduced[np.diag_indices(len(d))] -= d
    factor = cholesky(reduced)
    return None if factor is None else symmetric_inverse(factor)
