"""How far weights are from the best: two figures that hold, and the words for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.proofs import OPTIMAL_RELATIVE

#: The unit of rounding of float64.
_UNIT = 2.0**-53


@dataclass(frozen=True)
class Distance:
    """How far an error is above the least one, which lies between two bounds.

    Attributes
    ----------
    at_most : float or None
        Per cent, rounded up; None where the lower bound is 0 and the error is not: nothing is known then.
    at_least : float
        Per cent, rounded down.
    """

    at_most: float | None
    at_least: float

    @property
    def optimal(self) -> bool:
        """Whether the distance is within the tolerance of ``optimal``."""
        return self.at_most is not None and self.at_most <= 100.0 * OPTIMAL_RELATIVE

    def words(self) -> str:
        """Such as ``at most 38 % above optimal, at least 9 %``; both statements hold as they are written."""
        if self.optimal:
            return "optimal"
        parts = []
        if self.at_most is not None:
            parts.append(f"at most {_above(self.at_most, up=True)}")
        least = _above(self.at_least, up=False)
        if least != _above(0.0, up=False):
            # The unit once.
            both = parts and parts[0].endswith(_PERCENT) and least.endswith(_PERCENT)
            parts.append(f"at least {least.removesuffix(_ABOVE) if both else least}")
        return ", ".join(parts) or "nothing known"

    def short(self) -> str:
        """The same two figures as an interval, such as ``9 – 38 %``."""
        if self.optimal:
            return "optimal"
        least = figure(self.at_least, up=False)
        return f"from {least} %" if self.at_most is None else f"{least} – {figure(self.at_most, up=True)} %"


def distance(error: tuple[float, float], lower: float, upper: float) -> Distance:
    """How far an error is above the least one.

    Parameters
    ----------
    error : tuple of float
        An enclosure of it.
    lower, upper : float
        Bounds of the least error.
    """
    low, high = error
    # Weights are never better than the best: an upper bound of 0 means that the error is 0, too.
    least = max(100.0 * (low / upper - 1.0), 0.0) if upper > 0 else 0.0
    if lower > 0:
        # Three operations, each within half a unit in the last place of what it gives.
        ratio = high / lower * (1.0 + 4.0 * _UNIT)
        most: float | None = max(100.0 * (ratio - 1.0), 0.0) + 400.0 * _UNIT * ratio
    else:
        most = None if high > 0 else 0.0
    return Distance(most, max(least - 400.0 * _UNIT * (1.0 + least), 0.0))


#: What is said of figures in per cent, and from so many on in multiples.
_ABOVE, _PERCENT, _MANY = " above optimal", " % above optimal", 1000.0


def _above(percent: float, up: bool) -> str:
    if percent < _MANY:
        return figure(percent, up) + _PERCENT
    ratio = Decimal(percent) / 100 + 1
    return f"{figure(float(ratio) * (1.0 + (2.0 if up else -2.0) * _UNIT), up)} times the optimum"


def figure(value: float, up: bool) -> str:
    """Per cent in two digits, from 100 on in whole numbers, rounded in one direction from the exact value."""
    if math.isinf(value):
        return "∞"
    if value <= 0:
        return "0"
    exact = Decimal(value)
    digits = max(2, exact.adjusted() + 1)
    number = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(exact)
    if number.adjusted() < -4:
        # Nobody reads more zeros.
        return "0.0001" if up else "0"
    return f"{number:f}"


def enclosed_errors(layer: Layer, weights: Float, channels: list[int]) -> tuple[Float, Float]:
    """Ends around the error of weights, shape (channels, n), of each channel, as two products of matrices give them.

    The product of deviations and the Gram matrix in float64 is off by at most γ|δ|ᵀ|H||δ|, γ = (2n + 4)u
    (docs/numerics.md), and the deviations themselves by a unit of rounding.
    """
    low, high = np.empty(len(channels)), np.empty(len(channels))
    deviation = weights - layer.target[channels]
    groups = np.array([layer.group_of(c) for c in channels])
    gamma = (2.0 * layer.in_features + 8.0) * _UNIT
    for group in np.unique(groups):
        rows, gram = groups == group, layer.gram[group]
        d, size = deviation[rows], np.abs(deviation[rows])
        error = np.maximum(np.sum((d @ gram) * d, axis=1), 0.0)
        slack = gamma * np.sum((size @ np.abs(gram)) * size, axis=1) * (1.0 + 2.0 * gamma)
        low[rows], high[rows] = np.maximum(error - slack, 0.0), error + slack
    constant = layer.constant[channels]
    return np.nextafter(low + constant, 0.0), np.nextafter(high + constant, np.inf)


def total(values: Float, towards: float) -> float:
    """A sum of ends, rounded towards 0 or infinity."""
    return math.nextafter(math.fsum(values), towards)
