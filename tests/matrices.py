"""Matrices, stops and comparisons that several test files share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from layerbounds.arrays import Float


def never() -> bool:
    """A stop that is never asked for."""
    return False


def correlated(rng: np.random.Generator, n: int, rank: int | None = None, strength: float = 2.0) -> Float:
    """Gram matrix of inputs that share one strong direction."""
    mixing = rng.normal(size=(n, n)) + strength * rng.normal(size=(n, 1)) @ np.ones((1, n))
    inputs = rng.normal(size=(rank or 4 * n, n)) @ mixing
    return np.asarray(inputs.T @ inputs / len(inputs))


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float = 1e-12) -> None:
    """Equal up to the rounding of sums, whatever the BLAS kernel and the number of threads.

    The tolerance is relative to the largest entry: small ones may be what is left of large terms.
    """
    scale = float(np.max(np.abs(np.asarray(expected)), initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=tolerance * scale)


def from_python(kernel: Any) -> Any:
    """A kernel that only other kernels call, callable."""
    return njit(lambda *arguments: kernel(*arguments))
