"""The unconstrained minimiser of a layer whose compressed inputs differ from the dense ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg.lapack import dpocon

from layerbounds.arrays import Float


@dataclass(frozen=True, eq=False)
class Target:
    """The minimiser w̃ = w + u of f and what is left there.

    Attributes
    ----------
    change : ndarray of shape (out, n)
        u, the least change of the weights that minimises f.
    constant : ndarray of shape (out,)
        c = f(w̃) ≥ 0.
    residual_mean : ndarray of shape (out,)
        Mean over positions of X̂w̃ − Xw: what a re-fitted bias can repair.
    residual : float
        Largest ‖H w̃ − X̂ᵀXw/N‖ over output channels.
    """

    change: Float
    constant: Float
    residual_mean: Float
    residual: float


def solve_target(gram: Float, shift: Float, energy: Float, input_mean: Float, error_mean: Float) -> Target:
    """Minimise f(w + u) = uᵀHu − 2uᵀs + e over u, for every output channel of one group.

    With E = X − X̂ this is ‖X̂(w + u) − Xw‖²/N = ‖X̂u − Ew‖²/N. Only differences enter, so that c keeps its digits
    when X̂ is close to X, where wᵀ(XᵀX/N)w − w̃ᵀHw̃ would lose them.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        H = X̂ᵀX̂/N.
    shift : ndarray of shape (out, n)
        Rows s = X̂ᵀEw/N.
    energy : ndarray of shape (out,)
        e = ‖Ew‖²/N.
    input_mean : ndarray of shape (n,)
        Mean of X̂.
    error_mean : ndarray of shape (out,)
        Mean of Ew.

    Returns
    -------
    Target
        Where H is singular, u has the smallest norm: dead inputs keep their weights.
    """
    if not np.any(shift):
        # The weights are the minimiser already.
        return Target(np.zeros_like(shift), np.maximum(energy, 0.0), -error_mean, 0.0)
    change = least_norm_solution(gram, shift)
    image = change @ gram
    constant = np.maximum(energy + np.einsum("ij,ij->i", change, image - 2.0 * shift), 0.0)
    residual = float(np.max(np.linalg.norm(image - shift, axis=1), initial=0.0))
    return Target(change, constant, change @ input_mean - error_mean, residual)


def least_norm_solution(gram: Float, right: Float) -> Float:
    """Solve H u = b for each row b, with least norm where H is singular to working precision.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive semidefinite.
    right : ndarray of shape (m, n)
    """
    result = np.zeros_like(right)
    live = np.diag(gram) > 0
    b = right[:, live]
    n = b.shape[1]
    if n == 0 or not np.any(b):
        return result
    core = gram if live.all() else gram[np.ix_(live, live)]
    tolerance = n * np.finfo(np.float64).eps
    try:
        factor = scipy.linalg.cholesky(core, lower=True, check_finite=False)
        condition, _ = dpocon(factor, float(np.max(np.sum(np.abs(core), axis=0))), uplo="L")
    except np.linalg.LinAlgError:
        condition = 0.0
    if condition > 100.0 * tolerance:
        u = scipy.linalg.cho_solve((factor, True), b.T, check_finite=False).T
        # One step of refinement brings the residual down to rounding size.
        u += scipy.linalg.cho_solve((factor, True), (b - u @ core).T, check_finite=False).T
    else:
        values, vectors = scipy.linalg.eigh(core, check_finite=False)
        keep = values > tolerance * values[-1]
        v = vectors[:, keep]
        u = ((b @ v) / values[keep]) @ v.T
    result[:, live] = u
    return result
