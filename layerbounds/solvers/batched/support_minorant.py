"""The diagonal minorant of a pruned layer: Newton's method on a barrier whose weights follow a sample of the rows.

The bound's growth in log d_i, or in d_i for masks, is that of the sample's mean (docs/batched-pruning.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float
from layerbounds.kernels.arithmetic import Arithmetic
from layerbounds.kernels.factorization import cholesky, symmetric_inverse

#: Iterations of conjugate gradients for a step, and the residual at which they end, relative to the first one.
SOLVES, RESIDUAL = 30, 1e-2
#: Matrix products for the largest eigenvalue of a step, and what is added to that for safety.
PRODUCTS, SAFETY = 12, 1.05
#: Share of the way to the boundary that a step goes, and of an entry that it may take away.
REACH, LESS = 0.85, 0.9
#: A smaller weight of the barrier is taken where its step reaches the boundary after this share of it at least.
SHORTEST = 0.5
#: Weights that are tried after a step of full length, and after another one.
SMALLER, NEARBY = (0.1, 0.3, 0.6, 1.0), (0.6, 1.0)
#: Shares of a diagonal that only single precision takes for feasible, and steps in double precision after that.
FACTORS, SHARPENING = (0.99, 0.97, 0.9, 0.7, 0.4, 0.1), 3


class Ascent:
    """A strictly feasible diagonal of a matrix with unit diagonal, and the inverse of what is left above it.

    Parameters
    ----------
    there : array
        The matrix in single precision, where the arithmetic's arrays live.
    exact : callable
        Makes the matrix in double precision: asked for where single precision breaks down.
    arithmetic : Arithmetic
    raised : float
        Added to the diagonal; then all work is in double precision.

    Attributes
    ----------
    d : ndarray of shape (n,)
        Zeros where the matrix is singular: then there is no positive one.
    mu : float
        Weight of the barrier; falls.
    length : float
        Of the last step, 1 for a whole one.
    """

    def __init__(self, there: Any, exact: Callable[[], Float], arithmetic: Arithmetic, raised: float = 0.0) -> None:
        self.there, self.arithmetic = there, arithmetic
        self.mu = self.length = 1.0
        self._exact, self._raised = exact, raised
        self._matrix: Float | None = exact() if raised else None
        self.d = np.zeros(len(there))
        inverse: Any = self._inverse(self.d)
        if inverse is None and self._matrix is None:
            self._matrix = exact()
            inverse = self._inverse(self.d)
        self._t: Any = inverse
        if inverse is not None:
            d = 1.0 / self._diagonal()
            d *= 0.5 / max(SAFETY * self._largest(d), 1.0)
            while not self._move_to(d) and float(d.max()) > 0.0:
                d = 0.5 * d

    def sharpen(self, accepted: Callable[[Float], bool], log_weight: Float, weight: Float | None) -> None:
        """A few steps in double precision from where an exact test accepts the diagonal; else it stays as it is.

        Parameters
        ----------
        accepted : callable
            Whether a diagonal is proven.
        log_weight, weight : ndarray of shape (n,)
            See `step`.
        """
        if accepted(self.d):
            return
        before, self._t = self.d, None
        self._matrix = self._exact()
        if not any(self._move_to(factor * before) for factor in FACTORS):
            self.d = before
            return
        for _ in range(SHARPENING):
            self.step(log_weight, weight)

    @property
    def usable(self) -> bool:
        """Whether there is a positive diagonal."""
        return bool(np.all(self.d > 0))

    def step(self, log_weight: Float, weight: Float | None = None) -> None:
        """A Newton step of Σ a_i log d_i + Σ b_i d_i + μ logdet(H − D) for the smallest μ that allows a long one.

        Parameters
        ----------
        log_weight : ndarray of shape (n,)
            a > 0, with a mean of about 1.
        weight : ndarray of shape (n,), optional
            b; then μ is the weight of the logarithms, too.
        """
        diagonal = self._diagonal()
        square = self._t * self._t
        for factor in SMALLER if self.length > SHORTEST else NEARBY:
            mu = self.mu * factor
            a = mu * log_weight if weight is not None else log_weight
            gradient = a / self.d - mu * diagonal
            if weight is not None:
                gradient = gradient + weight
            step = self._solve(square, diagonal, a / self.d**2, gradient, mu)
            largest = SAFETY * self._largest(step)
            length = 1.0 if largest <= REACH else REACH / largest
            down = step < 0
            if np.any(down):
                length = min(length, LESS * float(np.min(-self.d[down] / step[down])))
            if length >= SHORTEST:
                break
        self.mu = mu
        del square
        for _ in range(30):
            if self._move_to(self.d + length * step):
                break
            length *= 0.5
        self.length = length

    def _move_to(self, d: Float) -> bool:
        """Take a diagonal if it is feasible; small pivots in single precision look like none at all."""
        inverse = self._inverse(d)
        if inverse is None:
            return False
        self.d, self._t = d, inverse
        return True

    def _inverse(self, d: Float) -> Any | None:
        """Of H − D."""
        if self._matrix is not None:
            matrix = self._matrix.copy()
            matrix[np.diag_indices(len(d))] += self._raised - d
            factor = cholesky(matrix)
            return None if factor is None else symmetric_inverse(factor)
        return shifted_inverse(self.there, -d, self.arithmetic)

    def _diagonal(self) -> Float:
        """Of the inverse."""
        flat = self._t.reshape(-1)[:: len(self.d) + 1]
        return np.array(flat) if self._matrix is not None else self.arithmetic.get(flat)

    def _times(self, matrix: Any, vector: Float) -> Float:
        """A product with one of the large matrices."""
        if self._matrix is not None:
            return np.asarray(matrix @ vector, dtype=np.float64)
        return self.arithmetic.get(matrix @ self.arithmetic.put(vector))

    def _solve(self, square: Any, diagonal: Float, own: Float, right: Float, mu: float) -> Float:
        """Conjugate gradients for (μ T∘T + diag(own)) x = right, preconditioned by the diagonal."""
        scale = mu * diagonal**2 + own
        x, r = np.zeros_like(right), right
        y = r / scale
        p, last = y, float(r @ y)
        first = last
        for _ in range(SOLVES):
            if last <= RESIDUAL**2 * first or not last > 0:
                break
            product = mu * self._times(square, p) + own * p
            length = last / float(p @ product)
            x, r = x + length * p, r - length * product
            y = r / scale
            now = float(r @ y)
            p, last = y + now / last * p, now
        return x

    def _largest(self, step: Float) -> float:
        """The largest eigenvalue of T·diag(step), by Lanczos' method in the inner product of M = T⁻¹.

        Vectors v and M v are kept side by side, so that M itself is not needed.
        """
        image = np.random.default_rng(0).normal(size=len(step))
        vector = self._times(self._t, image)
        norm = math.sqrt(max(float(vector @ image), 1e-300))
        vector, image = vector / norm, image / norm
        before, image_before, beta = np.zeros_like(step), np.zeros_like(step), 0.0
        alphas: list[float] = []
        betas: list[float] = []
        for _ in range(min(PRODUCTS, len(step))):
            following_image = step * vector
            following = self._times(self._t, following_image)
            alpha = float(following @ image)
            following = following - alpha * vector - beta * before
            following_image = following_image - alpha * image - beta * image_before
            alphas.append(alpha)
            beta = math.sqrt(max(float(following @ following_image), 0.0))
            if beta <= 1e-6 * max(map(abs, alphas)):
                break
            betas.append(beta)
            before, image_before = vector, image
            vector, image = following / beta, following_image / beta
        values = scipy.linalg.eigh_tridiagonal(np.array(alphas), np.array(betas[: len(alphas) - 1]), eigvals_only=True)
        # What is left to find lies within the last residual.
        return float(values[-1])


def shifted_inverse(matrix: Any, shift: Float, arithmetic: Arithmetic) -> Any | None:
    """Of a symmetric matrix plus a diagonal; None where the sum is not numerically positive definite."""
    result = matrix * 1.0
    flat = result.reshape(-1)
    flat[:: len(shift) + 1] = flat[:: len(shift) + 1] + arithmetic.put(shift)
    return arithmetic.inverse(result)
