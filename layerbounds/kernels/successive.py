"""Factorizations for methods that fix one weight after the other and spread its error over those still free."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import cholesky, symmetric_inverse


def factorize(gram: Float) -> tuple[Float, Float] | None:
    """Squared pivots and centre shifts of a Gram matrix whose last variable is fixed first.

    Returns
    -------
    pivots : ndarray of shape (n,)
    shifts : ndarray of shape (n, n)
        Row k: move of the centre of the first k variables for a unit move of variable k.
        None instead of both where the matrix is not numerically positive definite.
    """
    lower = cholesky(gram)
    if lower is None:
        return None
    inverse = scipy.linalg.solve_triangular(lower, np.eye(len(gram)), lower=True, check_finite=False).T
    return np.diag(lower) ** 2, np.ascontiguousarray(np.tril((inverse / np.diag(inverse)).T, -1))


def damped(gram: Float, fraction: float) -> Float:
    """The Gram matrix with a fraction of its mean diagonal added to the diagonal."""
    return gram + fraction * float(np.mean(np.diag(gram))) * np.eye(len(gram))


def factors_in_order(gram: Float, order: Int, damp: float) -> tuple[Float, Float]:
    """Pivots and shifts of the reordered, damped Gram matrix; the damping is raised tenfold while that breaks down."""
    ordered = np.ascontiguousarray(gram[np.ix_(order, order)])
    fraction = damp
    while (factors := factorize(damped(ordered, fraction) if fraction else ordered)) is None:
        fraction = max(10.0 * fraction, 1e-10)
    return factors


def rounding_order(gram: Float, act_order: bool, reverse: bool = False) -> Int:
    """Order of the inputs for kernels that fix the last one first: GPTQ quantizes the first column first."""
    order = np.argsort(np.diag(gram), kind="stable") if act_order else np.arange(len(gram))[::-1]
    return np.asarray(order[::-1] if reverse else order)


def elimination_order(gram: Float, exponent: float, between: Callable[[], None] | None = None) -> Int:
    """Greedy order: the variable fixed next has the largest H_ii^λ times its Schur complement.

    λ = 0 is the V-BLAST order (Wolniansky et al. 1998); larger λ suits active boxes.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite.
    exponent : float
        λ.
    between : callable, optional
        Called before each step.

    Returns
    -------
    ndarray of shape (n,)
        ``order[-1]`` is fixed first.
    """
    n = gram.shape[0]
    factor = cholesky(gram)
    assert factor is not None
    covariance = symmetric_inverse(factor)
    tiny = float(np.finfo(np.float64).tiny)
    weight = (np.diag(gram) / np.max(np.diag(gram))) ** exponent
    free = np.ones(n, dtype=np.bool_)
    order = np.empty(n, dtype=np.int64)
    for position in range(n - 1, -1, -1):
        if between is not None:
            between()
        score = np.where(free, weight / np.maximum(np.diag(covariance), tiny), -1.0)
        pick = int(np.argmax(score))
        order[position] = pick
        free[pick] = False
        column = covariance[:, pick].copy()
        if column[pick] > 0:
            covariance -= np.outer(column, column / column[pick])
    return order
