"""Damped Newton steps of the log-determinant barrier, for diagonals and for weights of integer forms.

Maximises Σ a_j d_j + μ logdet(H − V diag(d) Vᵀ) + μ Σ log d_j for falling μ (Nesterov & Nemirovskii, 1994). With
T = VᵀM⁻¹V, M = H − V diag(d) Vᵀ, the gradient is a − μ diag(T) + μ/d, the negative Hessian μ T∘T + μ diag(d⁻²).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.factorization import symmetric_inverse

#: First μ over Σ a_j d_j/n where the start may be far from a good point, and the factor by which μ falls.
FAR, COOLING = 30.0, 0.3
#: Newton systems of this size and larger are solved in single precision.
SINGLE_FROM = 200


@dataclass(frozen=True, eq=False)
class BarrierPoint:
    """Strictly feasible weights d, the lower Cholesky factor of M there, and the last μ."""

    d: Float
    factor: Float
    mu: float


def ascend_barrier(
    objective: Float,
    start: Float,
    mu: float,
    factorize: Callable[[Float], Float | None],
    between: Callable[[Float], Float],
    relative_gap: float,
    max_steps: int,
    stop: Callable[[], bool] | None,
) -> BarrierPoint | None:
    """Newton steps until the duality gap 2nμ is below a share of the value.

    Parameters
    ----------
    objective : ndarray of shape (m,)
        a > 0.
    start : ndarray of shape (m,)
        Positive.
    mu : float
        First μ.
    factorize : callable
        Lower Cholesky factor, of shape (n, n), of H − V diag(d) Vᵀ; None where it breaks down.
    between : callable
        VᵀXV for a matrix X of shape (n, n).
    relative_gap : float
    max_steps : int
    stop : callable, optional
        Asked before each Newton step whether to end with what there is.

    Returns
    -------
    BarrierPoint or None
        None where the start is not strictly feasible.
    """
    d, factor = start, factorize(start)
    if factor is None:
        return None
    for _ in range(max_steps):
        checkpoint()
        if stop is not None and stop():
            break
        middle = between(symmetric_inverse(factor))
        gradient = objective - mu * np.diag(middle) + mu / d
        hessian = middle * middle
        hessian *= mu
        hessian[np.diag_indices(len(d))] += mu / d**2
        step = newton_step(hessian, gradient)
        if step is None:
            break
        decrement = float(gradient @ step) / mu
        length = step_to_boundary(d, step)
        following = factorize(d + length * step)
        while length > 1e-9 and following is None:
            length *= 0.5
            following = factorize(d + length * step)
        full = length == 1.0
        moved = d + (length if full else 0.9 * length) * step
        if not full:
            following = factorize(moved)
        if following is None or length <= 1e-9 or not np.all(moved > 0):
            break
        d, factor = moved, following
        last = 0.5 * relative_gap * float(objective @ d) / len(factor)
        if full and decrement < 1.0:
            if mu <= last:
                break
            mu *= COOLING
        # From a poor start the first μ is far too small.
        mu = max(mu, COOLING * last)
    return BarrierPoint(d, factor, mu)


def newton_step(hessian: Float, gradient: Float) -> Float | None:
    """Solve hessian·step = gradient, for large matrices in single precision: a direction need not be exact.

    Overwrites the Hessian; None where it cannot be factorized.
    """
    scale = 1.0 / np.sqrt(np.diag(hessian))
    hessian *= scale[:, None]
    hessian *= scale
    right = scale * gradient
    if len(gradient) >= SINGLE_FROM:
        factor, failed = lapack.spotrf(hessian.astype(np.float32), lower=1, clean=0, overwrite_a=1)
        if not failed:
            step = scale * np.ravel(lapack.spotrs(factor, right.astype(np.float32), lower=1)[0]).astype(np.float64)
            if gradient @ step > 0:
                return step
    factor, failed = lapack.dpotrf(hessian, lower=1, clean=0)
    return None if failed else scale * np.ravel(lapack.dpotrs(factor, right, lower=1)[0])


def step_to_boundary(d: Float, step: Float) -> float:
    """The full step 1, or the part of it that keeps d positive."""
    negative = step < 0
    return min(1.0, 0.95 * float(np.min(-d[negative] / step[negative]))) if np.any(negative) else 1.0
