"""Matrices and stops that several test files of bounds share."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float


def never() -> bool:
    """A stop that is never asked for."""
    return False


def correlated(rng: np.random.Generator, n: int, rank: int | None = None, strength: float = 2.0) -> Float:
    """Gram matrix of inputs that share one strong direction."""
    mixing = rng.normal(size=(n, n)) + strength * rng.normal(size=(n, 1)) @ np.ones((1, n))
    inputs = rng.normal(size=(rank or 4 * n, n)) @ mixing
    return np.asarray(inputs.T @ inputs / len(inputs))
