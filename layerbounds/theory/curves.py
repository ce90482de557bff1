"""Signal-to-noise ratio of both methods against compression, and where the two cross."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from layerbounds.exceptions import InputError
from layerbounds.problems.pruning import DENSE_BITS
from layerbounds.theory.distributions import Distribution
from layerbounds.theory.families import as_distribution
from layerbounds.theory.pruning import PruningError, pruning_error
from layerbounds.theory.quantization import QuantizationError, quantization_error
from layerbounds.theory.storage import Mask, equal_density


@dataclass(frozen=True)
class Point:
    """Both errors at one compression.

    Attributes
    ----------
    bits : int
    quantization : QuantizationError
        At its optimal range.
    pruning : PruningError
        At the sparsity of equal storage.

    Examples
    --------
    >>> lb.theory.curve(lb.theory.normal(), bits=[4]).points[0].bits
    4
    """

    bits: int
    quantization: QuantizationError
    pruning: PruningError

    @property
    def advantage_db(self) -> float:
        """How many dB quantization is better."""
        return self.quantization.snr_db - self.pruning.snr_db


@dataclass(frozen=True)
class Curve:
    """Both methods at several compressions.

    Attributes
    ----------
    distribution : Distribution
    points : tuple of Point
        In the order asked for.
    mask : {"none", "bitmap", "entropy"}
    natural_zeros : bool

    Examples
    --------
    >>> lb.theory.curve(lb.theory.normal(), bits=[4]).mask
    'none'
    """

    distribution: Distribution
    points: tuple[Point, ...]
    mask: Mask
    natural_zeros: bool


def curve(
    distribution: Any, bits: Iterable[int] = range(2, 9), *, mask: Mask = "none", natural_zeros: bool = False
) -> Curve:
    """Compare quantization with magnitude pruning at equal storage.

    Parameters
    ----------
    distribution : Distribution, scipy.stats frozen continuous distribution, or array_like of samples
    bits : iterable of int
        2 to 8.
    mask : {"none", "bitmap", "entropy"}
        Storage of the mask, as in `equal_density`.
    natural_zeros : bool
        Whether zeros among the quantized weights count as not stored.

    Examples
    --------
    >>> compared = lb.theory.curve(lb.theory.normal(), bits=[4])
    >>> point = compared.points[0]
    >>> point.quantization.total < point.pruning.total
    True
    """
    values = as_distribution(distribution)
    points = []
    for b in bits:
        quantized = quantization_error(values, b)
        density = equal_density(b, mask, quantized.zeros if natural_zeros else 0.0)
        points.append(Point(int(b), quantized, pruning_error(values, 1.0 - density)))
    if not points:
        raise InputError("bits are empty; pass at least one number.")
    return Curve(values, tuple(points), mask, natural_zeros)


def crossings(compared: Curve) -> list[float]:
    """Compression ratios 16/b at which the better method changes.

    Between neighbouring numbers of bits the difference of the two ratios in dB is taken as linear.

    Returns
    -------
    list of float
        Falling; empty where one method is better throughout.

    Examples
    --------
    >>> lb.theory.crossings(lb.theory.curve(lb.theory.normal(), bits=[3, 4]))
    []
    """
    points = sorted(compared.points, key=lambda p: p.bits)
    found = []
    for first, second in itertools.pairwise(points):
        a, b = first.advantage_db, second.advantage_db
        if (a < 0) != (b < 0):
            bits = first.bits + (second.bits - first.bits) * a / (a - b)
            found.append(DENSE_BITS / bits)
    return found
