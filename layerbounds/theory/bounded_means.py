"""Confidence bounds for the mean of a random number in [0, 1], from few independent draws."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import real_number
from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError

#: The stakes that the bound averages over, dense near 1: what few draws of similar values need.
STAKES: Float = 1.0 - ((np.arange(64) + 0.5) / 64) ** 4


def mean_at_least(values: ArrayLike, confidence: float = 0.95) -> float:
    """A number that the mean of the distribution exceeds or equals, with at least the given probability.

    Whoever starts with 1 and stakes the share θ of it on every draw, a fair game if the mean is m, ends with
    Π (1 − θ + θ·xᵢ/m), whose expectation is 1. So does the average K(m) over fixed shares, and by Markov's inequality
    K(m) ≥ 1/α has at most the probability α. K falls with m: the bound is where it is 1/α (Waudby-Smith and Ramdas,
    "Estimating means of bounded random variables by betting", JRSS B 86 (2024); of a single θ = 1 it is the
    Kaplan–Markov bound of auditing). It needs no more than values ≥ 0, adapts to their spread, and rises with every
    value: it therefore also holds for the mean of other numbers that are nowhere smaller than those given.

    Parameters
    ----------
    values : array_like of shape (draws,)
        Independent draws, ≥ 0.
    confidence : float
        In (0, 1).

    Returns
    -------
    float
        From 0 to the mean of the values.

    Raises
    ------
    InputError
        If a value is negative or not finite, or there is none.
    """
    x = _checked(values)
    wanted = -math.log1p(-check_confidence(confidence))
    peak = float(x.max())
    if peak == 0.0:
        return 0.0
    x = x / peak
    high = float(x.mean())
    low = high / 2.0
    while _log_wealth(x, low) < wanted:
        low, high = low / 2.0, low
    # The lower end is always refused, so that halving may stop anywhere.
    for _ in range(50):
        middle = low + 0.5 * (high - low)
        if _log_wealth(x, middle) >= wanted:
            low = middle
        else:
            high = middle
    return low * peak


def mean_at_most(values: ArrayLike, confidence: float = 0.95) -> float:
    """The same from above, for values in [0, 1]; it rises with every value, too.

    Parameters
    ----------
    values : array_like of shape (draws,)
    confidence : float

    Returns
    -------
    float
        From the mean of the values to 1.

    Raises
    ------
    InputError
        If a value is outside [0, 1], or there is none.
    """
    x = _checked(values)
    if np.any(x > 1.0):
        raise InputError(f"a value is {float(x.max()):g}; a bound from above needs values in [0, 1].")
    return 1.0 - mean_at_least(1.0 - x, confidence)


def check_confidence(confidence: float) -> float:
    """A probability between 0 and 1, ends excluded.

    Raises
    ------
    InputError
        If it is something else.
    """
    value = real_number(confidence, "confidence", 0.0, 1.0)
    if value in (0.0, 1.0):
        raise InputError(f"confidence is {value:g}; nothing is said with 0, and nothing known with 1: pass 0.95, say.")
    return value


def _checked(values: ArrayLike) -> Float:
    x = as_float64(values, "values")
    if x.ndim != 1 or x.size == 0 or np.any(x < 0.0):
        raise InputError(f"values of shape {x.shape} are no draws; pass a list of at least one number ≥ 0.")
    return x


def _log_wealth(x: Float, mean: float) -> float:
    """Logarithm of K(mean)."""
    logs = np.log((1.0 - STAKES)[:, None] + STAKES[:, None] * (x / mean)).sum(axis=1)
    most = float(logs.max())
    return most + math.log(float(np.mean(np.exp(logs - most))))
