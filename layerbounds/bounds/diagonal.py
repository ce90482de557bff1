"""Diagonal minorants 0 ⪯ D ⪯ H of a Gram matrix: the heart of every separable bound.

Maximises Σ a_i d_i over {d ≥ 0, H − D ⪰ 0} by a log-determinant barrier and damped Newton steps
(Nesterov & Nemirovskii 1994; docs/bounds.md): the gradient is a − μ diag(M⁻¹) + μ/d with M = H − D, the negative
Hessian μ (M⁻¹ ∘ M⁻¹) + μ diag(d⁻²).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import lapack

from layerbounds.arrays import Float

UNIT = float(np.finfo(np.float64).eps) / 2
#: First barrier parameter over Σ a_i d_i/n where the start is a small multiple of 1/diag(H⁻¹), and its later factors.
FAR, COOLING = 30.0, 0.3
#: Newton systems of this size and larger are solved in single precision.
SINGLE_FROM = 200


def gamma(n: int) -> float:
    """Higham's γ_n = n·u/(1 − n·u), u the unit roundoff."""
    return n * UNIT / (1 - n * UNIT)


def reciprocals(minorants: Float) -> Float:
    """Entrywise inverses, zeros left as they are."""
    return np.divide(1.0, minorants, out=np.zeros_like(minorants), where=minorants > 0)


def cholesky(matrix: Float) -> Float | None:
    """Lower Cholesky factor, or None where the factorization breaks down."""
    factor, info = lapack.dpotrf(matrix, lower=1, clean=1)
    return factor if info == 0 else None


def symmetric_inverse(factor: Float) -> Float:
    """Inverse of the matrix whose lower Cholesky factor is given."""
    inverse = np.tril(lapack.dpotri(factor, lower=1)[0])
    return np.asarray(inverse + np.tril(inverse, -1).T)


def is_positive_semidefinite(matrix: Float) -> bool:
    """Prove matrix ⪰ 0 with one floating-point Cholesky factorization; overwrites its diagonal.

    A completed factorization of A has a backward error of at most γ_{n+1}/(1−γ_{n+1})·√(a_ii a_jj) per entry (Higham,
    Accuracy and Stability, theorem 10.3), hence A ⪰ −n·γ_{n+1}/(1−γ_{n+1})·diag(A): A is shifted down by more than that
    before it is factorized (Rump, BIT 46, 2006). The slack also covers one rounding of every entry.
    """
    n = len(matrix)
    diagonal = np.diag(matrix).copy()
    if np.any(diagonal < 0):
        return False
    matrix[np.diag_indices(n)] = diagonal * (1.0 - 1.25 * (n + 1) * gamma(n + 3))
    return cholesky(matrix) is not None


def is_minorant(gram: Float, d: Float) -> bool:
    """Prove diag(d) ⪯ gram."""
    matrix = gram.copy()
    matrix[np.diag_indices(len(d))] -= d
    return is_positive_semidefinite(matrix)


def shrink_until(accepted: Callable[[Float], bool], minorant: Float) -> Float:
    """The minorant times the first factor of a falling ladder that is accepted; zeros in the worst case."""
    factor = 1.0
    for step in range(60):
        candidate = minorant * factor
        if accepted(candidate):
            return candidate
        factor = 1.0 - 1e-12 * 4.0**step if step < 19 else factor * 0.5
    return np.zeros_like(minorant)


def certified_minorant(gram: Float, d: Float) -> Float:
    """Shrink a diagonal until it is a proven minorant; zeros in the worst case."""
    return shrink_until(lambda candidate: is_minorant(gram, candidate), d)


def semidefinite_shift(gram: Float) -> tuple[Float, Float] | None:
    """A matrix gram + diag(e) proven positive semidefinite, and e: zero or a small multiple of the diagonal."""
    n = len(gram)
    if is_minorant(gram, np.zeros(n)):
        return gram, np.zeros(n)
    diagonal = np.diag(gram)
    for exponent in range(2, 40, 2):
        shift = 2.0**exponent * n * UNIT * diagonal
        shifted = gram.copy()
        shifted[np.diag_indices(n)] = (diagonal + shift) * (1.0 - 2 * UNIT)
        if is_minorant(shifted, np.zeros(n)):
            return shifted, shift
    return None


def proven_minorant(gram: Float, d: Float) -> tuple[Float, Float] | None:
    """A diagonal d' ≤ d and a shift e ≥ 0 with diag(d') ⪯ gram + diag(e) proven; None where nothing can be.

    Positive definite matrices need no shift, at most a slightly smaller diagonal.
    """
    shifted = semidefinite_shift(gram)
    return None if shifted is None else (certified_minorant(shifted[0], d), shifted[1])


def interior_start(gram: Float) -> Float:
    """A strictly feasible diagonal: a fraction of 1/diag(H⁻¹)/n, which lies below H (Cauchy–Schwarz)."""
    n = gram.shape[0]
    factor = cholesky(gram)
    if factor is None:
        return np.zeros(n)
    inverse_diagonal = np.sum(lapack.dtrtri(factor, lower=1)[0] ** 2, axis=0)
    return np.asarray(0.9 / (n * inverse_diagonal))


def maximize_minorant(
    gram: Float,
    objective: Float,
    start: Float | None = None,
    relative_gap: float = 0.2,
    max_steps: int = 80,
    stop: Callable[[], bool] | None = None,
) -> Float:
    """Approximately maximise Σ a_i d_i over the diagonals 0 ⪯ D ⪯ gram.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite.
    objective : ndarray of shape (n,)
        Coefficients a ≥ 0: the expected squared distance of each variable to its grid.
    start : ndarray of shape (n,), optional
        Strictly feasible; others are shrunk until they are.
    relative_gap : float
        Stop when the barrier's duality gap 2nμ is below this fraction of the value. A loose gap is cheaper and leaves
        D inside the cone, where it serves children better.
    max_steps : int
        Newton steps.
    stop : callable, optional
        Asked before each Newton step whether to end with what there is.

    Returns
    -------
    ndarray of shape (n,)
        A proven minorant.
    """
    n = gram.shape[0]
    scale = np.sqrt(np.diag(gram))
    matrix = gram / np.outer(scale, scale)
    a = np.maximum(objective * scale**2, 0.0)
    top = float(a.max(initial=0.0))
    a = np.ones(n) if top == 0.0 else a / top + 1e-6
    d, poor = _strictly_inside(matrix, None if start is None else start / scale**2)
    if not np.all(d > 0):
        return np.zeros(n)
    mu = (FAR if poor else 1.0) * float(a @ d) / n
    for _ in range(max_steps):
        if stop is not None and stop():
            break
        factor = cholesky(matrix - np.diag(d))
        if factor is None:
            break
        inverse = symmetric_inverse(factor)
        gradient = a - mu * np.diag(inverse) + mu / d
        hessian = mu * inverse * inverse
        hessian[np.diag_indices(n)] += mu / d**2
        step = newton_step(hessian, gradient)
        if step is None:
            break
        decrement = float(gradient @ step) / mu
        length = step_to_boundary(d, step)
        while length > 1e-9 and cholesky(matrix - np.diag(d + length * step)) is None:
            length *= 0.5
        full = length == 1.0
        moved = d + (length if full else 0.9 * length) * step
        if length <= 1e-9 or not np.all(moved > 0):
            break
        d = moved
        last = 0.5 * relative_gap * float(a @ d) / n
        if full and decrement < 1.0:
            if mu <= last:
                break
            mu *= COOLING
        # From a poor start the first μ is far too small.
        mu = max(mu, COOLING * last)
    return certified_minorant(gram, d * scale**2)


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


def _strictly_inside(matrix: Float, start: Float | None) -> tuple[Float, bool]:
    """A strictly feasible diagonal, and whether it may be far from a good one."""
    if start is not None:
        d = np.maximum(start, 0.0)
        floor = float(d.max(initial=0.0)) * 1e-6
        d = np.maximum(d, floor)
        for factor in (0.98, 0.9, 0.7, 0.4):
            if floor > 0 and cholesky(matrix - np.diag(d * factor)) is not None:
                return np.asarray(d * factor), False
    return interior_start(matrix), True
