"""The view of a channel that is pruned and quantized, and its two halves."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.methods.base import ChannelView
from layerbounds.methods.pruning import PruningView, refit_on
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.patterns import Structure


@dataclass(frozen=True, eq=False)
class JointView:
    """What a heuristic sees of one output channel to prune and quantize: live inputs only, in the layer's order.

    Attributes
    ----------
    gram : ndarray of shape (n, n)
        Undamped.
    target : ndarray of shape (n,)
        Unconstrained minimiser of the error.
    original : ndarray of shape (n,)
        Dense weights.
    allowed : LevelsOnSupport
    rng : numpy.random.Generator
        The only source of randomness.
    shared : dict
        What methods derive from the Gram matrix alone, kept for the other channels with the same one.
    """

    gram: Float
    target: Float
    original: Float
    allowed: LevelsOnSupport
    rng: np.random.Generator
    shared: dict[Hashable, Any]

    @property
    def structure(self) -> Structure:
        """Units, groups and capacities."""
        return self.allowed.structure

    def pruning(self, target: Float, original: Float, refit: bool) -> PruningView:
        """The channel with the pattern alone: kept weights are re-fitted, or ``original``."""
        return PruningView(self.gram, target, original, self.structure, refit, self.rng)

    def quantization(self, inputs: Int, target: Float) -> ChannelView:
        """Some of the inputs, with their levels alone; ``target``, shape (len(inputs),), is theirs."""
        levels = np.ascontiguousarray(self.allowed.levels.values[inputs])
        count = self.allowed.levels.count[inputs]
        whole = len(inputs) == len(self.target)
        gram = self.gram if whole else np.ascontiguousarray(self.gram[np.ix_(inputs, inputs)])
        return ChannelView(gram, target, levels, count, self.rng, self.shared if whole else {})

    def refit(self, inputs: Int) -> Float:
        """Weights of least error on some of the inputs, shape (len(inputs),)."""
        mask = np.zeros(len(self.target), dtype=np.bool_)
        mask[inputs] = True
        return refit_on(self.pruning(self.target, self.original, True), mask)[inputs]
