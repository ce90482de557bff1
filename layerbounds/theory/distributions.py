"""Distributions of weights: densities that can be integrated piece by piece, and samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.theory.quadrature import TOLERANCE, integrate, integrate_tail

Density = Callable[[Float], Float]


class Distribution(ABC):
    """What expected errors are computed of.

    Attributes
    ----------
    label : str
        How tables and figures call it.

    Examples
    --------
    >>> lb.theory.normal().label
    'normal'
    """

    label: str

    @abstractmethod
    def partial(self, power: int, low: Float, high: Float, centre: Float, tolerance: float = TOLERANCE) -> Float:
        """E[(x − centre)^power; low < x < high] for each interval; ends may be infinite.

        Parameters
        ----------
        power : int
        low, high, centre : ndarray of shape (intervals,)
        tolerance : float
            Of quadrature, relative to the sum.

        Returns
        -------
        ndarray of shape (intervals,)

        Examples
        --------
        >>> ends = (np.array([-1.0]), np.array([1.0]), np.array([0.0]))
        >>> np.round(lb.theory.uniform(1.0).partial(2, *ends), 6)
        array([0.333333])
        """

    @abstractmethod
    def absolute_quantile(self, probability: float) -> float:
        """The t with P(|x| ≤ t) = probability; for samples the smallest with at least that.

        Examples
        --------
        >>> round(lb.theory.normal().absolute_quantile(0.95), 3)
        1.96
        """

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """Smallest interval with probability 1."""

    def expectation(self, power: int, centre: float = 0.0) -> float:
        """E[(x − centre)^power].

        Examples
        --------
        >>> round(lb.theory.normal(2.0).expectation(2), 9)
        4.0
        """
        whole = (np.array([-np.inf]), np.array([np.inf]))
        return float(self.partial(power, *whole, np.array([centre]))[0])

    @property
    def power(self) -> float:
        """E[x²], the signal of the signal-to-noise ratio."""
        return self.expectation(2)

    @property
    def excess_kurtosis(self) -> float:
        """E[(x − m)⁴]/E[(x − m)²]² − 3: 0 for a normal distribution; infinite where the fourth moment is."""
        mean = self.expectation(1)
        variance = self.expectation(2, mean)
        return self.expectation(4, mean) / variance**2 - 3.0 if variance > 0 else math.nan

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label}>"


class Continuous(Distribution):
    """A continuous distribution from scipy.stats, possibly truncated.

    Parameters
    ----------
    frozen : scipy.stats frozen continuous distribution
        With ``pdf``, ``cdf``, ``sf``, ``ppf``, ``isf``, ``support`` and ``stats``.
    label : str
    kinks : sequence of float
        Where the density is not smooth, inside the support.
    limits : (float, float), optional
        Truncated to this interval, and normalised.
    closed : bool
        Whether ``frozen.stats`` has the moments in closed form.
    pdf : callable, optional
        The density of ``frozen`` where a plain formula is faster.
    """

    def __init__(
        self,
        frozen: Any,
        label: str,
        kinks: Sequence[float] = (),
        limits: tuple[float, float] | None = None,
        closed: bool = False,
        pdf: Density | None = None,
    ) -> None:
        self.frozen, self.label = frozen, label
        self.pdf: Density = pdf if pdf is not None else frozen.pdf
        low, high = (float(v) for v in frozen.support())
        if limits is not None:
            low, high = max(low, limits[0]), min(high, limits[1])
        self._support = (low, high)
        self.closed = closed and limits is None
        self.mass = 1.0 if limits is None else _probability(frozen, low, high)
        if not (low < high and self.mass > 0):
            raise InputError(f"{label}: nothing is left between {low:g} and {high:g}; truncate less.")
        median = float(frozen.median())
        self.width = float(frozen.isf(0.25) - frozen.ppf(0.25)) or 1.0
        # Tails begin beyond the median at the latest.
        self.kinks = sorted({k for k in (*map(float, kinks), median) if low < k < high})
        if not (math.isfinite(low) and math.isfinite(high)) and not math.isfinite(float(frozen.var())):
            raise InputError(f"{label}: the variance is infinite, so that no error is defined; truncate the tails.")

    @property
    def support(self) -> tuple[float, float]:
        """Smallest interval with probability 1."""
        return self._support

    def density(self, points: Float) -> Float:
        """Probability density."""
        low, high = self._support
        # Far out a density underflows, which is right, or overflows on the way to 0.
        with np.errstate(over="ignore", under="ignore"):
            values = np.asarray(self.pdf(points)) / self.mass
        return values if self.mass == 1.0 else np.where((points >= low) & (points <= high), values, 0.0)

    def partial(self, power: int, low: Float, high: Float, centre: Float, tolerance: float = TOLERANCE) -> Float:
        """E[(x − centre)^power; low < x < high] by adaptive quadrature, split where the density has kinks."""

        def integrand(points: Float, about: Float) -> Float:
            return np.asarray((points - about) ** power * self.density(points))

        result = np.zeros(len(low))
        start, end = np.maximum(low, self._support[0]), np.minimum(high, self._support[1])
        owner = np.flatnonzero(start < end)
        start, end = start[owner], end[owner]
        for kink in self.kinks:
            split = (start < kink) & (kink < end)
            start = np.concatenate([start, np.full(int(split.sum()), kink)])
            end = np.concatenate([np.where(split, kink, end), end[split]])
            owner = np.concatenate([owner, owner[split]])
        finite = np.isfinite(start) & np.isfinite(end)
        parts = integrate(integrand, start[finite], end[finite], centre[owner[finite]], tolerance)
        np.add.at(result, owner[finite], parts)
        for a, b, i in zip(start[~finite], end[~finite], owner[~finite], strict=True):
            begin, width = (b, -self.width) if np.isinf(a) else (a, self.width)
            result[i] += integrate_tail(integrand, float(begin), float(centre[i]), width, tolerance)
        return result

    def expectation(self, power: int, centre: float = 0.0) -> float:
        """E[(x − centre)^power], mean and variance in closed form where scipy.stats has them."""
        if not self.closed or power > 2:
            return super().expectation(power, centre)
        shift = float(self.frozen.mean()) - centre
        return shift if power == 1 else float(self.frozen.var()) + shift**2

    @property
    def excess_kurtosis(self) -> float:
        """E[(x − m)⁴]/E[(x − m)²]² − 3: 0 for a normal distribution; infinite where the fourth moment is."""
        if not all(map(math.isfinite, self._support)):
            known = float(self.frozen.stats(moments="k"))
            if self.closed or not math.isfinite(known):
                return known if math.isfinite(known) else math.inf
        return super().excess_kurtosis

    def probability(self, low: float, high: float) -> float:
        """P(low < x < high)."""
        low, high = max(low, self._support[0]), min(high, self._support[1])
        return _probability(self.frozen, low, high) / self.mass if low < high else 0.0

    def absolute_quantile(self, probability: float) -> float:
        """The t with P(|x| ≤ t) = probability."""
        return _absolute_quantile(self, probability)


class Mixture(Distribution):
    """A mixture of distributions.

    Parameters
    ----------
    components : sequence of Distribution
    weights : ndarray of shape (components,)
        Positive, of sum 1.
    """

    def __init__(self, components: Sequence[Distribution], weights: Float) -> None:
        self.components, self.weights = tuple(components), weights
        self.label = " + ".join(f"{w:.3g}·{c.label}" for w, c in zip(weights, components, strict=True))

    @property
    def support(self) -> tuple[float, float]:
        """Smallest interval that holds all components."""
        ends = [c.support for c in self.components]
        return min(e[0] for e in ends), max(e[1] for e in ends)

    def partial(self, power: int, low: Float, high: Float, centre: Float, tolerance: float = TOLERANCE) -> Float:
        """Weighted sum over the components."""
        parts = [
            w * c.partial(power, low, high, centre, tolerance)
            for w, c in zip(self.weights, self.components, strict=True)
        ]
        return np.asarray(np.sum(parts, axis=0))

    def density(self, points: Float) -> Float:
        """Probability density."""
        parts = [
            w * c.density(points)
            for w, c in zip(self.weights, self.components, strict=True)
            if isinstance(c, (Continuous, Mixture))
        ]
        return np.asarray(np.sum(parts, axis=0))

    def expectation(self, power: int, centre: float = 0.0) -> float:
        """Weighted sum over the components."""
        return sum(float(w) * c.expectation(power, centre) for w, c in zip(self.weights, self.components, strict=True))

    def probability(self, low: float, high: float) -> float:
        """P(low < x < high)."""
        return sum(float(w) * _mass(c, low, high) for w, c in zip(self.weights, self.components, strict=True))

    def absolute_quantile(self, probability: float) -> float:
        """The t with P(|x| ≤ t) = probability."""
        return _absolute_quantile(self, probability)


class Empirical(Distribution):
    """Samples of equal probability: sums instead of integrals.

    Parameters
    ----------
    samples : ndarray of shape (n,)
    label : str
    """

    def __init__(self, samples: Float, label: str = "samples") -> None:
        self.label = label
        self.samples = np.sort(samples)
        self.magnitudes = np.sort(np.abs(samples))

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest sample."""
        return float(self.samples[0]), float(self.samples[-1])

    def partial(self, power: int, low: Float, high: Float, centre: Float, tolerance: float = TOLERANCE) -> Float:
        """Mean of (x − centre)^power over the samples with low ≤ x < high, counted as 0 elsewhere."""
        first = np.searchsorted(self.samples, low, side="left")
        last = np.searchsorted(self.samples, high, side="left")
        count = np.maximum(last - first, 0)
        # Each sample once, so that a sum over adjacent cells is one pass.
        index = np.repeat(first - np.cumsum(count) + count, count) + np.arange(int(count.sum()))
        terms = (self.samples[index] - np.repeat(centre, count)) ** power
        sums = np.bincount(np.repeat(np.arange(len(low)), count), weights=terms, minlength=len(low))
        return np.asarray(sums / len(self.samples))

    def expectation(self, power: int, centre: float = 0.0) -> float:
        """Mean of (x − centre)^power."""
        return float(np.mean((self.samples - centre) ** power))

    def absolute_quantile(self, probability: float) -> float:
        """The smallest t that at least this share of the samples does not exceed in magnitude."""
        rank = math.ceil(probability * len(self.magnitudes) - 1e-9)
        return float(self.magnitudes[rank - 1]) if rank > 0 else 0.0


def _probability(frozen: Any, low: float, high: float) -> float:
    """P(low < x < high) by the smaller tails, so that no digits are lost."""
    median = float(frozen.median())
    if low >= median:
        return float(frozen.sf(low) - frozen.sf(high))
    if high <= median:
        return float(frozen.cdf(high) - frozen.cdf(low))
    return 1.0 - float(frozen.cdf(low)) - float(frozen.sf(high))


def _absolute_quantile(distribution: Continuous | Mixture, probability: float) -> float:
    from scipy.optimize import brentq

    low, high = distribution.support
    top = max(abs(low), abs(high))
    if probability >= 1.0:
        return top
    if probability <= 0.0:
        return 0.0
    end = math.sqrt(distribution.power)
    while distribution.probability(-end, end) < probability:
        end *= 2.0

    def missing(t: float) -> float:
        return distribution.probability(-t, t) - probability

    return float(brentq(missing, 0.0, min(end, top), xtol=1e-300, rtol=8.9e-16, maxiter=500))


def _mass(component: Distribution, low: float, high: float) -> float:
    assert isinstance(component, (Continuous, Mixture))
    return component.probability(low, high)
