"""What two certified intervals say about each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from layerbounds.arrays import Float


class Verdict(StrEnum):
    """Which of two methods has the smaller best error.

    Examples
    --------
    >>> lb.versus(layer, bits=[3], channels=[0], time_limit=1).levels[0].verdicts
    [<Verdict.QUANTIZATION: 'quantization'>]
    """

    #: The upper bound of quantization lies below the lower bound of pruning.
    QUANTIZATION = "quantization"
    #: The other way round.
    PRUNING = "pruning"
    #: Both optima are proven to be the same number; in practice zero.
    EQUAL = "equal"
    #: The intervals overlap.
    OPEN = "open"


def decide(quantization: tuple[float, float], pruning: tuple[float, float]) -> Verdict:
    """Compare two certified intervals (lower, upper) of errors; better is smaller.

    Parameters
    ----------
    quantization, pruning : tuple of float
        Lower and upper bound.
    """
    if quantization[1] < pruning[0]:
        return Verdict.QUANTIZATION
    if pruning[1] < quantization[0]:
        return Verdict.PRUNING
    if quantization[0] >= pruning[1] and pruning[0] >= quantization[1]:
        return Verdict.EQUAL
    return Verdict.OPEN


def decide_all(quantization: Float, pruning: Float) -> list[Verdict]:
    """`decide` for each row of two arrays of intervals, shape (errors, 2)."""
    return [
        decide((float(q[0]), float(q[1])), (float(p[0]), float(p[1])))
        for q, p in zip(quantization, pruning, strict=True)
    ]


def grouped(intervals: Float, members: Sequence[Sequence[int]]) -> Float:
    """Intervals of sums of some of the errors, shape (groups, 2), rounded outward; those of single ones as they are.

    Parameters
    ----------
    intervals : ndarray of shape (errors, 2)
    members : sequence of sequence of int
        Which errors are summed.
    """
    if all(len(part) == 1 for part in members):
        return intervals[[part[0] for part in members]]
    return np.array([intervals[part[0]] if len(part) == 1 else summed(intervals[list(part)]) for part in members])


def summed(intervals: Float) -> tuple[float, float]:
    """Interval of the sum of errors that lie in given intervals, shape (errors, 2), rounded outward."""
    return _outward(intervals[:, 0], -math.inf), _outward(intervals[:, 1], math.inf)


def _outward(values: Iterable[float], direction: float) -> float:
    terms = [float(v) for v in values]
    total = math.fsum(terms)
    # fsum rounds the exact sum once; 0 and infinity are exact.
    return total if total == 0.0 or math.isinf(total) else float(np.nextafter(total, direction))
