"""Weights of least error on a set of inputs, dependent ones included."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import UNIT, cholesky

#: Inputs whose pivots fall below this many roundings of their energy count as dependent on the others.
DEPENDENT = 64


def refit(gram: Float, b: Float, inputs: Int) -> Float:
    """The solution v of H_SS v = b_S; inputs that depend on others get 0.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    b : ndarray of shape (n,) or (n, rows)
        H w.
    inputs : ndarray of int64
        S, not empty.

    Returns
    -------
    ndarray of shape (len(S),) or (len(S), rows)
    """
    block = np.ascontiguousarray(gram[np.ix_(inputs, inputs)])
    factor = cholesky(block)
    if factor is not None:
        return np.asarray(scipy.linalg.cho_solve((factor, True), b[inputs], check_finite=False))
    norm = np.sqrt(np.diag(block))
    size = len(inputs)
    _, pivots, rank, _ = lapack.dpstrf(block / np.outer(norm, norm), lower=1, tol=DEPENDENT * size * UNIT)
    weights = np.zeros((size, *b.shape[1:]))
    for many in (rank, rank // 2):
        kept = np.sort(pivots[:many] - 1)
        factor = cholesky(np.ascontiguousarray(block[np.ix_(kept, kept)]))
        if factor is not None and many:
            weights[kept] = scipy.linalg.cho_solve((factor, True), b[inputs[kept]], check_finite=False)
            break
    return weights
