"""The diagonal of the perspective dual: a centre of the cone of minorants and its improvement for one channel."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import interior_start
from layerbounds.kernels.factorization import cholesky, symmetric_inverse

#: Steps that lead to the centre from anywhere.
CENTRE_STEPS = 12


def newton_step(gram: Float, d: Float, alpha: Float, mu: float) -> Float:
    """One damped Newton step of Σ α_i log d_i + μ logdet(H − D), from a strictly feasible d."""
    factor = cholesky(gram - np.diag(d))
    if factor is None:
        return d
    inverse = symmetric_inverse(factor)
    gradient = alpha / d - mu * np.diag(inverse)
    hessian = mu * inverse * inverse
    hessian[np.diag_indices(len(d))] += alpha / d**2
    hessian_factor = cholesky(hessian)
    if hessian_factor is None:
        return d
    step = scipy.linalg.cho_solve((hessian_factor, True), gradient, check_finite=False)
    length = 1.0
    if np.any(step < 0):
        length = min(1.0, 0.9 * float(np.min(-d[step < 0] / step[step < 0])))
    for _ in range(40):
        if cholesky(gram - np.diag(d + length * step)) is not None:
            return np.asarray(d + (length if length == 1.0 else 0.9 * length) * step)
        length *= 0.5
    return d


def schur_complement(gram: Float, kept: Int, free: Int) -> Float | None:
    """Gram matrix of the free inputs after the kept ones are minimised out; None where those are dependent."""
    block = np.ascontiguousarray(gram[np.ix_(free, free)])
    if not len(kept):
        return block
    factor = cholesky(np.ascontiguousarray(gram[np.ix_(kept, kept)]))
    if factor is None:
        return None
    half = scipy.linalg.solve_triangular(factor, gram[np.ix_(kept, free)], lower=True, check_finite=False)
    return np.asarray(block - half.T @ half)


def centre(gram: Float, steps: int = CENTRE_STEPS) -> Float:
    """Maximiser of Σ log d_i + logdet(H − D): where the improvement for a channel starts. Zeros if H is singular."""
    d = interior_start(gram)
    if not np.all(d > 0):
        return np.zeros(len(d))
    for _ in range(steps):
        d = newton_step(gram, d, np.ones(len(d)), 1.0)
    return d
