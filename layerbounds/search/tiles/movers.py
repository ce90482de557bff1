"""Steps of the prices of a band with relaxations of its rows (docs/tiles.md)."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from layerbounds.arrays import Float
from layerbounds.search.tiles.prices import EntryPrices, Prices

#: How fast the price of an input goes to the rows that keep most of it.
RATE, SHARPNESS = 6.0, 12.0


class Mover(Protocol):
    """Proposes prices from the best ones so far and the weights that the relaxations had there."""

    def propose(self, weight: Float, room: float, share: float) -> Float:
        """Prices that might be better; ``room`` is what the bound is short of, ``share`` the length of the step."""

    def accept(self) -> None:
        """What was proposed last is the best so far."""


class SupergradientMover:
    """Along the supergradient, by Polyak's rule.

    Parameters
    ----------
    prices : Prices
    """

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.x = self.trial = np.zeros(prices.size)

    def propose(self, weight: Float, room: float, share: float) -> Float:
        """A step from the best prices."""
        slope = self.prices.gather(weight) - self.prices.largest(self.x)[1]
        # A price of 0 cannot fall.
        slope = np.where((self.x > 0.0) | (slope > 0.0), slope, 0.0)
        size = float(slope @ slope)
        self.trial = np.maximum(self.x + (share * room / size if size > 0.0 else 0.0) * slope, 0.0)
        return self.trial

    def accept(self) -> None:
        """Go on from the trial."""
        self.x = self.trial


class SharedMover:
    """Every input of a group costs the same in all; rows share this price by how much of the input they keep.

    The largest total price of a mask is then the group's price times its capacity, in place of a maximum that is flat
    in most directions.

    Parameters
    ----------
    prices : EntryPrices
    """

    def __init__(self, prices: EntryPrices) -> None:
        self.columns = prices.allowed.limits.columns
        self.price = self.next_price = np.zeros(len(self.columns.capacity))
        self.share: Float | None = None
        self.next_share: Float | None = None

    def propose(self, weight: Float, room: float, share: float) -> Float:
        """More for groups of which rows keep too many inputs, and for rows that keep most of an input."""
        group = self.columns.group
        before = _normalised(SHARPNESS * weight) if self.share is None else self.share
        self.next_share = _normalised(np.log(np.maximum(before, 1e-12)) + RATE * share * weight)
        excess = np.bincount(group, weights=(before * weight).sum(axis=0)) - self.columns.capacity
        excess = np.where((self.price > 0.0) | (excess > 0.0), excess, 0.0)
        size = float(excess @ excess)
        self.next_price = np.maximum(self.price + (share * room / size if size > 0.0 else 0.0) * excess, 0.0)
        return np.asarray((self.next_share * self.next_price[group]).ravel())

    def accept(self) -> None:
        """Go on from the trial."""
        self.price, self.share = self.next_price, self.next_share


def _normalised(exponent: Float) -> Float:
    """Shares of the rows in each input, proportional to an exponential."""
    power = np.exp(exponent - exponent.max(axis=0))
    return np.asarray(power / power.sum(axis=0))


def mover_of(prices: Prices) -> Mover:
    """How prices of a family move."""
    return SharedMover(prices) if isinstance(prices, EntryPrices) else SupergradientMover(prices)
