"""Sums over the rows of X, one for all layers that see the same inputs."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.gram import ValidatedGram, symmetrise


class OnnxSums:
    """XᵀX and the sum of X in float64.

    Parameters
    ----------
    groups, n : int

    Attributes
    ----------
    count : int
        Rows so far.
    """

    def __init__(self, groups: int, n: int) -> None:
        self.count = 0
        self._gram: Float | None = np.zeros((groups, n, n))
        self._sum = np.zeros((groups, n))
        self._validated: ValidatedGram | None = None

    def add(self, block: Float) -> bool:
        """Add rows of shape (groups, rows, n); False where they are not finite."""
        with np.errstate(invalid="ignore"):
            total = block.sum(axis=1)
        if not np.isfinite(total).all():
            return False
        assert self._gram is not None
        self.count += block.shape[1]
        self._sum += total
        for own, rows in zip(self._gram, block, strict=True):
            own += rows.T @ rows
        return True

    def gram(self, what: str) -> ValidatedGram:
        """XᵀX/N, the same object for all layers; nothing can be added afterwards."""
        if self._validated is None:
            assert self._gram is not None and self.count
            gram, self._gram = self._gram, None
            gram /= self.count
            for own in gram:
                symmetrise(own)
            self._validated = ValidatedGram(gram, what)
        return self._validated

    def mean(self) -> Float:
        """Mean of the inputs, shape (groups, n)."""
        return self._sum / self.count
