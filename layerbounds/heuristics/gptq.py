"""GPTQ."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.bounds.diagonal import cholesky
from layerbounds.exceptions import InputError
from layerbounds.heuristics.base import ChannelView
from layerbounds.kernels.rounding import successive_rounding


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


def gptq(view: ChannelView, damp: float = 0.01, act_order: bool = False) -> Float:
    """Round weights one after the other and spread each error over the weights still free.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (ICLR 2023),
    algorithm 1. Without clipping it is Babai's nearest plane in the reverse order (arXiv 2507.18553). The damping
    only steers the method; its result is scored on the undamped Gram.

    Parameters
    ----------
    view : ChannelView
    damp : float
        Fraction of the mean diagonal added before the factorization; raised tenfold while that breaks down.
    act_order : bool
        Quantize the inputs of largest energy first.
    """
    if not 0 <= damp < np.inf:
        raise InputError(f"damp is {damp}; pass a finite fraction of the mean diagonal ≥ 0.")
    n = len(view.target)
    # The paper quantizes the first column first; the kernel fixes the last variable first.
    order: Int = np.arange(n)[::-1]
    if act_order:
        order = np.argsort(np.diag(view.gram), kind="stable")
    ordered = np.ascontiguousarray(view.gram[np.ix_(order, order)])
    fraction = damp
    while (factors := factorize(damped(ordered, fraction) if fraction else ordered)) is None:
        fraction = max(10.0 * fraction, 1e-10)
    choice = np.zeros(n, dtype=np.int64)
    successive_rounding(
        factors[1], view.target[order], np.ascontiguousarray(view.levels[order]), view.count[order], choice
    )
    result = np.empty(n)
    result[order] = view.levels[order, choice]
    return result
