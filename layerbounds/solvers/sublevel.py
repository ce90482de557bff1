"""Factor of a Gram matrix, and how far points at least as good as the incumbent can lie from the target."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import UNIT, cholesky, symmetric_inverse

#: The sublevel set of the incumbent is taken a little larger, so that rounding cannot cut off the optimum.
MARGIN = 1e-6
#: A matrix that needs a larger margin counts as singular.
MOST_MARGIN = 1e-2


def rank_factor(gram: Float) -> Float:
    """R with RᵀR = gram: upper triangular, or of fewer rows (pivoted Cholesky) where the matrix is singular."""
    lower = cholesky(gram)
    if lower is not None and np.all(np.diag(lower) ** 2 > 64 * len(gram) * UNIT * np.diag(gram)):
        return np.ascontiguousarray(lower.T)
    # Inputs of very different size must not count as dependent: the tolerance is about the equilibrated matrix.
    norm = np.sqrt(np.diag(gram))
    factor, pivots, rank, _ = lapack.dpstrf(gram / np.outer(norm, norm), lower=0, tol=64 * len(gram) * UNIT)
    result = np.zeros((rank, len(gram)))
    result[:, pivots - 1] = np.triu(factor)[:rank]
    return result * norm


def reach(gram: Float, radius: float) -> Float:
    """How far each coordinate can be from the centre where dᵀ gram d ≤ radius: √(radius·(gram⁻¹)_ii).

    Infinite where the matrix is numerically singular.
    """
    lower = cholesky(gram)
    if lower is None:
        return np.full(len(gram), np.inf)
    # The inverse is known to about n·u times the condition number of the equilibrated matrix.
    smallest = float(np.min(np.diag(lower) ** 2 / np.diag(gram)))
    margin = MARGIN + 64 * len(gram) ** 2 * UNIT / smallest
    if margin > MOST_MARGIN:
        return np.full(len(gram), np.inf)
    return np.asarray(np.sqrt(radius * np.diag(symmetric_inverse(lower))) * (1 + margin))


def is_singular(gram: Float) -> bool:
    """Whether no finite bounds on the weights can be derived."""
    return not np.all(np.isfinite(reach(gram, 1.0)))
