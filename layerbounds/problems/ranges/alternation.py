"""Scales and codes in turn: round well at given scales, take the best scales for the codes, and begin again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import cholesky
from layerbounds.kernels.quantization.neighbourhood import search_neighbourhoods
from layerbounds.kernels.quantization.rounding import beam, coordinate_descent
from layerbounds.kernels.successive import damped, elimination_order, factors_in_order, rounding_order

#: Passes over the scale groups when scales are fitted to codes.
_PASSES = 4
#: Inputs up to which every rounding ends with moves of pairs: beyond that they take longer than all the rest.
_PAIRS = 128
#: Share of the mean diagonal that gives a singular matrix a V-BLAST order, mostly.
_DAMP = 1e-9
#: Nodes for each subset of weights.
_BUDGET = 1000


class Inputs:
    """The Gram matrix of some live inputs, and what rounding needs of it."""

    def __init__(self, gram: Float) -> None:
        self.gram = np.ascontiguousarray(gram)
        self.orders: list[tuple[Int, Float, Float]] = []
        # Inputs with the most energy first; and V-BLAST, which is better for some matrices and worse for others.
        for order in (rounding_order(self.gram, True), elimination_order(_positive_definite(self.gram), 0.0)):
            self.orders.append((order, *factors_in_order(self.gram, order, 0.0)))
        size = np.sqrt(np.diag(self.gram))
        self.relation: Float = np.abs(self.gram) / np.outer(size, size)


def _positive_definite(gram: Float) -> Float:
    """The matrix, damped as far as its factorization needs."""
    fraction = _DAMP
    while cholesky(matrix := damped(gram, fraction)) is None:
        fraction *= 10.0
    return matrix


@dataclass(frozen=True, eq=False)
class Channel:
    """The weights of one channel on its live inputs.

    Attributes
    ----------
    inputs : Inputs
    target : ndarray of shape (n,)
    codes : ndarray of shape (n, levels)
        Sorted, zero points subtracted.
    group : ndarray of int64, shape (n,)
        The scale of each input.
    """

    inputs: Inputs
    target: Float
    codes: Float
    group: Int

    def levels(self, scale: Float) -> Float:
        """What each weight may be at given scales."""
        return np.ascontiguousarray(scale[self.group][:, None] * self.codes)

    def chosen(self, choice: Int) -> Float:
        """The codes of a choice."""
        return self.codes[np.arange(len(choice)), choice]

    def error(self, scale: Float, choice: Int) -> float:
        """Output error of a choice, without the constant."""
        deviation = scale[self.group] * self.chosen(choice) - self.target
        return float(deviation @ (self.inputs.gram @ deviation))

    def rounded(self, scale: Float, width: int) -> Int:
        """Choice of codes by a beam search, the best of two orders."""
        levels = self.levels(scale)
        count = np.full(len(levels), levels.shape[1], dtype=np.int64)
        found = []
        for order, pivots, shifts in self.inputs.orders:
            ordered, choice = np.zeros(len(levels), dtype=np.int64), np.zeros(len(levels), dtype=np.int64)
            target, table = np.ascontiguousarray(self.target[order]), np.ascontiguousarray(levels[order])
            beam(width, pivots, shifts, target, table, count, ordered)
            choice[order] = ordered
            found.append(choice)
        return min(found, key=lambda choice: self.error(scale, choice))

    def descended(self, scale: Float, choice: Int, pairs: bool) -> Int:
        """A choice improved by single codes, and by pairs."""
        levels, better = self.levels(scale), choice.copy()
        count = np.full(len(levels), levels.shape[1], dtype=np.int64)
        coordinate_descent(self.inputs.gram, self.target, levels, count, better, pairs, 100 * len(levels))
        return better

    def searched(self, scale: Float, choice: Int, subsets: int, seed: int) -> Int:
        """A choice improved by pairs, and by exact enumeration over subsets of the weights."""
        levels, better = self.levels(scale), self.descended(scale, choice, True)
        count = np.full(len(levels), levels.shape[1], dtype=np.int64)
        size = np.array([12.0])
        search_neighbourhoods(
            self.inputs.gram, self.target, self.inputs.relation, levels, count, better, size, subsets, _BUDGET, seed
        )  # fmt: skip
        return better


@dataclass(frozen=True, eq=False)
class Found:
    """Scales, the choice of codes of each channel, and their error in all."""

    error: float
    scale: Float
    choices: list[Int]


class Alternation:
    """Channels that share their scales."""

    def __init__(self, channels: Sequence[Channel], powers_of_two: bool) -> None:
        self.channels = channels
        self.powers_of_two = powers_of_two

    def glance(self, scale: Float, width: int) -> Found:
        """Round at given scales by a beam search alone; the scales found are the best ones for the codes."""
        return self.rescaled(scale, [channel.rounded(scale, width) for channel in self.channels])

    def round(self, scale: Float, width: int) -> Found:
        """Round at given scales, and take the best scales for the codes."""
        choices = [c.descended(scale, c.rounded(scale, width), len(c.target) <= _PAIRS) for c in self.channels]
        return self.rescaled(scale, choices)

    def follow(self, scale: Float, width: int, rounds: int) -> Found:
        """Round and re-scale in turn until nothing is gained."""
        found = self.round(scale, width)
        for _ in range(rounds - 1):
            following = self.round(found.scale, width)
            if not following.error < found.error * (1.0 - 1e-9):
                break
            found = following
        return found

    def improve(self, found: Found, subsets: int, seed: int) -> Found:
        """Search subsets of the weights at the scales found, and fit the scales again."""
        choices = [c.searched(found.scale, q, subsets, seed) for c, q in zip(self.channels, found.choices, strict=True)]
        better = self.rescaled(found.scale, choices)
        return better if better.error < found.error else found

    def rescaled(self, scale: Float, choices: list[Int]) -> Found:
        """The best scales for given codes, one group after the other: s = uᵀH(w − rest)/uᵀHu.

        Scales stay positive: where the best one of a group is not, it stays as it is.
        """
        scale = scale.copy()
        square, product = np.zeros((len(scale), len(scale))), np.zeros(len(scale))
        for channel, choice in zip(self.channels, choices, strict=True):
            own = np.zeros((len(choice), len(scale)))
            own[np.arange(len(choice)), channel.group] = channel.chosen(choice)
            gradient = channel.inputs.gram @ own
            square += own.T @ gradient
            product += channel.target @ gradient
        for _ in range(_PASSES if len(scale) > 1 else 1):
            for k in range(len(scale)):
                rest = product[k] - square[k] @ scale + square[k, k] * scale[k]
                scale[k] = self._moved(float(scale[k]), float(rest), float(square[k, k]))
        return Found(self.error(scale, choices), scale, choices)

    def error(self, scale: Float, choices: Sequence[Int]) -> float:
        """Output error of choices in all, without the constants."""
        return sum(channel.error(scale, choice) for channel, choice in zip(self.channels, choices, strict=True))

    def _moved(self, scale: float, product: float, square: float) -> float:
        """The minimiser of square·s² − 2·product·s that is allowed, or the present scale where there is none."""
        best = product / square if square > 0.0 else 0.0
        # A tiny scale for codes that hardly matter would leave nothing of the grid.
        if not 2.0**-10 < best / scale < 2.0**10:
            return scale
        if not self.powers_of_two:
            return best
        below = 2.0 ** np.floor(np.log2(best))
        return float(min((scale, below, 2.0 * below), key=lambda s: square * s * s - 2.0 * product * s))
