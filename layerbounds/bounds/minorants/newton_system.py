"""The linear systems of Newton's method for diagonal minorants: (T∘T + diag(w)) x = r for a few right sides.

T is the inverse of a positive definite matrix. On the processor one Cholesky factorization in the triangle of T that is
spare; on other devices conjugate gradients. Both leave T as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import lapack

from layerbounds.kernels.arithmetic import STRIPE, mirror_lower

#: Conjugate gradients: the residual that is small enough, relative, and the products that are spent at most.
TOLERANCE, PRODUCTS = 1e-2, 40


def solve_squared(inverse: Any, weights: Any, right: Any) -> Any | None:
    """Solve (T∘T + diag(w)) x = r.

    Parameters
    ----------
    inverse : array of shape (n, n)
        T, symmetric and C-contiguous. Written to meanwhile, but left as it was.
    weights : array of shape (n,)
        Positive.
    right : array of shape (n, k)

    Returns
    -------
    array of shape (n, k) or None
        None where the factorization breaks down.
    """
    if isinstance(inverse, np.ndarray):
        return _factorized(inverse, weights, right)
    return _conjugate_gradients(inverse, weights, right)


def _factorized(inverse: Any, weights: Any, right: Any) -> Any | None:
    n, diagonal = len(inverse), inverse.diagonal().copy()
    single = inverse.dtype == np.float32
    factorize, solve = (lapack.spotrf, lapack.spotrs) if single else (lapack.dpotrf, lapack.dpotrs)
    scale = (diagonal**2 + weights) ** -0.5
    for i in range(0, n, STRIPE):
        j = min(i + STRIPE, n)
        rows = inverse[i:j, i:]
        squared = rows * rows
        squared *= scale[i:j, None]
        squared *= scale[i:]
        lower = np.tril(rows[:, : j - i], -1)
        rows[...] = squared
        rows[:, : j - i] = np.triu(squared[:, : j - i], 1) + lower
    inverse.reshape(-1)[:: n + 1] = 1.0
    # The upper triangle of a C-ordered matrix is the lower one of its transpose, which LAPACK takes without a copy.
    factor, failed = factorize(inverse.T, lower=1, clean=0, overwrite_a=1)
    found = None if failed else solve(factor, np.asfortranarray(scale[:, None] * right), lower=1)[0] * scale[:, None]
    mirror_lower(inverse)
    inverse.reshape(-1)[:: n + 1] = diagonal
    return found if found is not None and np.all(np.isfinite(found)) else None


def _conjugate_gradients(inverse: Any, weights: Any, right: Any) -> Any:
    """All right sides at once, with the diagonal as preconditioner."""
    n, diagonal = len(inverse), inverse.diagonal()
    condition = (1.0 / (diagonal * diagonal + weights))[:, None]
    found, residual = right * 0.0, right + 0.0
    direction = condition * residual
    size = (residual * direction).sum(0)
    # A right side of zeros stays one.
    enough = TOLERANCE**2 * size + 1e-30
    product = right * 0.0
    for _ in range(PRODUCTS):
        for i in range(0, n, STRIPE):
            rows = inverse[i : i + STRIPE]
            product[i : i + STRIPE] = (rows * rows) @ direction
        product = product + weights[:, None] * direction
        length = size / ((direction * product).sum(0) + 1e-30)
        found = found + length * direction
        residual = residual - length * product
        preconditioned = condition * residual
        following = (residual * preconditioned).sum(0)
        if bool((following <= enough).all()):
            break
        direction = preconditioned + (following / (size + 1e-30)) * direction
        size = following
    return found
