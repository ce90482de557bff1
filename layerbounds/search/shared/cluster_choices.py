"""All choices of units in each cluster, as padded arrays: weights, inverses and sums over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.pruning.savings import Block

#: Part of each cluster's weight that is spread evenly, so that no input is without one.
EVEN = 1e-6
#: Halvings of the range of prices, and how large they may be beside logits.
HALVINGS, LARGEST = 40, 60.0
#: Share of the smoothing by which a round's logits move, at most; what a loss leaves of it; its growth after a gain.
MOVE, LOSS, GAIN = 1.5, 0.7, 1.1


class Choices:
    """Weights of all choices, by mirror descent with an entropy.

    Parameters
    ----------
    blocks : list of Block
    capacity : ndarray of int64, shape (groups,)

    Attributes
    ----------
    size : ndarray of int64, shape (clusters,)
    logit : ndarray of shape (clusters, choices)
        −inf in the padding.
    """

    def __init__(self, blocks: Sequence[Block], capacity: Int) -> None:
        self.size = np.array([len(b.members) for b in blocks])
        widest, many = int(self.size.max()), max(len(b.sets) for b in blocks)
        sets = np.zeros((len(blocks), many, widest), dtype=bool)
        self._count = np.zeros((len(blocks), many))
        self._valid = np.zeros((len(blocks), many), dtype=bool)
        for k, b in enumerate(blocks):
            sets[k, : len(b.sets), : len(b.members)] = b.sets
            self._count[k, : len(b.sets)] = b.count if b.group >= 0 else 0.0
            self._valid[k, : len(b.sets)] = True
        self._pair = sets[:, :, :, None] & sets[:, :, None, :]
        inside = np.arange(widest) < self.size[:, None]
        self._padding = np.where(inside[:, :, None] & inside[:, None, :], 0.0, np.eye(widest))
        self._group = np.maximum(np.array([b.group for b in blocks]), 0)
        self._capacity = capacity
        self._move = MOVE
        self.logit = np.where(self._valid, 0.0, -np.inf)

    def padded(self, blocks: Sequence[Float]) -> Float:
        """Blocks of the clusters with the identity in the padding."""
        result = self._padding.copy()
        for k, block in enumerate(blocks):
            result[k, : len(block), : len(block)] = block
        return result

    def gather(self, values: Float, members: Sequence[Int]) -> Float:
        """Rows of a matrix by clusters, zero in the padding."""
        result = np.zeros((len(members), self._pair.shape[2], values.shape[1]))
        for k, m in enumerate(members):
            result[k, : len(m)] = values[m]
        return result

    def inverses(self, blocks: Float) -> Float:
        """(B_AA)⁻¹ of all choices, zero outside of A, shape (clusters, choices, m, m)."""
        systems = np.where(self._pair, blocks[:, None], np.eye(blocks.shape[1]))
        return np.where(self._pair, np.linalg.inv(systems), 0.0)

    def inverse_mean(self, weight: Float, inverses: Float) -> Float:
        """(Σ w_A (B_AA)⁻¹)⁻¹ of each cluster."""
        mean = np.einsum("gs,gsij->gij", weight, inverses)
        back = np.linalg.inv(mean + self._padding)
        return np.asarray(0.5 * (back + back.transpose(0, 2, 1)))

    def weights(self) -> Float:
        """Softmax of the logits less a price for each kept unit, at which the mean numbers fill the capacities."""
        groups = len(self._capacity)
        low, high = np.full(groups, -LARGEST), np.full(groups, LARGEST)
        for _ in range(HALVINGS):
            price = 0.5 * (low + high)
            x = self.logit - price[self._group, None] * self._count
            w = np.exp(x - x.max(axis=1, keepdims=True))
            w /= w.sum(axis=1, keepdims=True)
            mean = np.bincount(self._group, weights=np.sum(w * self._count, axis=1), minlength=groups)
            over = mean > self._capacity
            low, high = np.where(over, price, low), np.where(over, high, price)
        self.logit = x
        even = EVEN * self._valid / self._valid.sum(axis=1, keepdims=True)
        return np.asarray((1.0 - EVEN) * w + even)

    def damp(self, gained: bool) -> None:
        """Shorter moves after a loss, longer ones after a gain."""
        self._move = min(GAIN * self._move, MOVE) if gained else LOSS * self._move

    def update(self, saving: Float, weight: Float, tau: float) -> None:
        """Move the logits towards savings over ``tau`` times the mean saving of a kept unit."""
        kept = float(np.sum(weight * self._count))
        mean = float(np.sum(weight * saving)) / (kept if kept > 0.0 else len(weight))
        step = min(1.0, self._move * tau)
        if mean > 0.0:
            self.logit = np.where(self._valid, (1.0 - step) * self.logit + step * saving / (tau * mean), -np.inf)
