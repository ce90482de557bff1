"""Extreme eigenvalues of M⁻¹ diag(s) for many s at once, by Lanczos' method in the inner product of M.

They say how far a step diag(s) can go before M − θ diag(s) ceases to be positive definite: θ < 1/λ_max. A product with
M⁻¹ serves all steps, so that ten candidates cost little more than one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.arithmetic import Arithmetic

#: The method has ended for a step where a residual is below this share: what follows would be rounding.
ENDED = 1e-3
#: Share of the last residual that is added to the Ritz values, which approach the eigenvalues from within.
RESIDUAL = 0.5


def extreme_values(
    inverse: Any,
    steps: Any,
    probe: Any,
    products: int,
    arithmetic: Arithmetic,
    push: Callable[[Any, Any], Any] = operator.mul,
) -> tuple[Float, Float]:
    """Estimate the smallest and the largest eigenvalue of M⁻¹ diag(s).

    Parameters
    ----------
    inverse : array of shape (n, n)
        M⁻¹.
    steps : array of shape (n, k)
        A step in each column; or what ``push`` takes, k being the last number of its shape.
    probe : array of shape (n,)
        A random vector.
    products : int
        With M⁻¹, one more is needed to start.
    arithmetic : Arithmetic
        Where the arrays live.
    push : callable
        A step times a vector, for all columns; entrywise by default.

    Returns
    -------
    smallest, largest : ndarray of shape (k,)
        NaN where the numbers overflow.
    """
    # ``image`` is M times ``vector`` throughout, so that M itself is not needed.
    image = arithmetic.put(np.zeros((len(inverse), steps.shape[-1]))) + probe[:, None]
    vector = inverse @ image
    size = (vector * image).sum(0) ** 0.5
    vector, image = vector / size, image / size
    last_vector, last_image, beta = vector * 0.0, image * 0.0, size * 0.0
    # A comparison times a number of Python's would be in double precision, and take all that follows there.
    one = beta + 1.0
    diagonals, sides = [], []
    for _ in range(products):
        pushed = push(steps, vector)
        alpha = (pushed * vector).sum(0)
        following = inverse @ pushed
        noise = ENDED**2 * (following * pushed).sum(0)
        following = following - alpha * vector - beta * last_vector
        following_image = pushed - alpha * image - beta * last_image
        square = (following * following_image).sum(0)
        going = (square > noise) * one
        beta = (square * going).clip(1e-30) ** 0.5
        diagonals.append(arithmetic.get(alpha))
        sides.append(arithmetic.get(beta))
        last_vector, last_image = vector, image
        vector, image = following * (going / beta), following_image * (going / beta)
    smallest, largest = np.full((2, steps.shape[-1]), np.nan)
    for j, (diagonal, side) in enumerate(zip(np.array(diagonals).T, np.array(sides).T, strict=True)):
        if not (np.all(np.isfinite(diagonal)) and np.all(np.isfinite(side))):
            continue
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(side[:-1], 1) + np.diag(side[:-1], -1))
        rest = RESIDUAL * side[-1] * np.abs(vectors[-1])
        smallest[j], largest[j] = values[0] - rest[0], values[-1] + rest[-1]
    return smallest, largest
