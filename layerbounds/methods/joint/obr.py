"""Optimal brain restoration."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.factorization import cholesky
from layerbounds.kernels.successive import damped
from layerbounds.methods.base import check_damp
from layerbounds.methods.gptq import gptq
from layerbounds.methods.joint.view import JointView
from layerbounds.methods.pruning import largest
from layerbounds.problems.levels import nearest_levels


def obr(view: JointView, damp: float = 0.01, share: float = 0.5) -> Float:
    """Make up for pruned weights by the kept ones, and for the first ones rounded by the others.

    Guo et al., "Optimal Brain Restoration for Joint Quantization and Sparsification of LLMs" (arXiv 2509.11177): a
    Wanda mask, whose error the kept weights take over (δ_I = H_II⁻¹ H_IZ w_Z); then the first of the kept inputs are
    rounded to nearest, the others take over the error in the same way, and GPTQ rounds them. The paper's rotations
    make another layer.

    Parameters
    ----------
    view : JointView
    damp : float
        Fraction of the mean diagonal added to the Gram matrix; raised tenfold while factorizations break down.
    share : float
        Fraction α of the kept inputs that are rounded to nearest.
    """
    check_damp(damp)
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}; pass a fraction between 0 and 1.")
    pruning = view.pruning(view.target, view.original, True)
    mask = largest(pruning, np.abs(view.original) * np.sqrt(np.diag(view.gram)))
    kept, dropped = np.flatnonzero(mask), np.flatnonzero(~mask)
    result = np.zeros(len(mask))
    if not len(kept):
        return result
    gram = damped(view.gram, damp) if damp else view.gram
    weights = view.target[kept] + _taken_over(gram, kept, dropped, view.target[dropped])
    first = int(share * len(kept))
    head, tail = kept[:first], kept[first:]
    result[head] = nearest_levels(view.allowed.levels.values[head], weights[:first])
    if len(tail):
        left = weights[first:] + _taken_over(gram, tail, head, weights[:first] - result[head])
        result[tail] = gptq(view.quantization(tail, left), damp=damp)
    return result


def _taken_over(gram: Float, inputs: np.ndarray, others: np.ndarray, lost: Float) -> Float:
    """What inputs gain when others lose some of their weight: H_II⁻¹ H_IO e, minimum norm where that is not unique."""
    block = np.ascontiguousarray(gram[np.ix_(inputs, inputs)])
    right = gram[np.ix_(inputs, others)] @ lost
    factor = cholesky(block)
    if factor is None:
        return np.asarray(scipy.linalg.lstsq(block, right, check_finite=False)[0])
    return np.asarray(scipy.linalg.cho_solve((factor, True), right, check_finite=False))
