"""The distributions by name, and what else is accepted as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.theory.distributions import Continuous, Density, Distribution, Empirical, Mixture


def normal(sigma: float = 1.0) -> Continuous:
    """Normal distribution of mean 0.

    Examples
    --------
    >>> round(lb.theory.normal(2.0).expectation(2), 9)
    4.0
    """
    import scipy.stats

    sigma = _positive(sigma, "sigma")
    factor = 1.0 / (sigma * math.sqrt(2.0 * math.pi))
    return Continuous(
        scipy.stats.norm(scale=sigma),
        "normal",
        closed=True,
        pdf=lambda x: np.asarray(factor * np.exp(-0.5 * (x / sigma) ** 2)),
    )


def laplace(scale: float = 1.0) -> Continuous:
    """Laplace distribution of mean 0 with density exp(−|x|/scale)/(2·scale).

    Examples
    --------
    >>> round(lb.theory.laplace().expectation(2), 9)
    2.0
    """
    import scipy.stats

    scale = _positive(scale, "scale")
    return Continuous(
        scipy.stats.laplace(scale=scale),
        "Laplace",
        (0.0,),
        closed=True,
        pdf=lambda x: np.asarray(np.exp(-np.abs(x) / scale) / (2.0 * scale)),
    )


def logistic(scale: float = 1.0) -> Continuous:
    """Logistic distribution of mean 0.

    Examples
    --------
    >>> round(lb.theory.logistic().expectation(2), 4)
    3.2899
    """
    import scipy.stats

    scale = _positive(scale, "scale")

    def pdf(x: Float) -> Float:
        decay = np.exp(-np.abs(x) / scale)
        return np.asarray(decay / (scale * (1.0 + decay) ** 2))

    return Continuous(scipy.stats.logistic(scale=scale), "logistic", closed=True, pdf=pdf)


def uniform(limit: float = 1.0) -> Continuous:
    """Uniform distribution on [−limit, limit].

    Examples
    --------
    >>> round(lb.theory.uniform(1.0).expectation(2), 6)
    0.333333
    """
    import scipy.stats

    limit = _positive(limit, "limit")
    return Continuous(scipy.stats.uniform(loc=-limit, scale=2.0 * limit), "uniform", closed=True)


def student_t(df: float, quantile: float = 0.0, scale: float = 1.0) -> Continuous:
    """Student's t distribution, the model of weights with outliers.

    Parameters
    ----------
    df : float
        Degrees of freedom, positive. Up to 2 the variance is infinite and the tails must be truncated.
    quantile : float
        Truncated to the values between this quantile and its mirror image, in [0, 1/2); 0 truncates nothing.
    scale : float

    Examples
    --------
    >>> round(lb.theory.student_t(5.0).expectation(2), 4)
    1.6667
    """
    import scipy.special
    import scipy.stats

    df, scale = _positive(df, "df"), _positive(scale, "scale")
    frozen = scipy.stats.t(df, scale=scale)
    label = f"Student-t, {df:g} degrees of freedom"
    factor = 1.0 / (scale * math.sqrt(df) * float(scipy.special.beta(0.5, 0.5 * df)))

    def pdf(x: Float) -> Float:
        return np.asarray(factor * np.exp(-0.5 * (df + 1.0) * np.log1p((x / scale) ** 2 / df)))

    if quantile == 0:
        return Continuous(frozen, label, closed=True, pdf=pdf)
    return _cut(frozen, label, (), quantile, pdf)


def truncated(frozen: Any, quantile: float, kinks: Sequence[float] = ()) -> Continuous:
    """A continuous distribution from scipy.stats between a quantile and the one as far from the other end.

    Parameters
    ----------
    frozen : scipy.stats frozen continuous distribution
    quantile : float
        In (0, 1/2).
    kinks : sequence of float
        Where the density is not smooth.

    Examples
    --------
    >>> import scipy.stats
    >>> lb.theory.truncated(scipy.stats.norm(), 0.1).absolute_quantile(1.0) < 1.3
    True
    """
    _check_frozen(frozen)
    known = _known_kinks(frozen)
    return _cut(frozen, _name(frozen), (*kinks, *(known or ())), quantile)


def _cut(frozen: Any, label: str, kinks: Sequence[float], quantile: float, pdf: Density | None = None) -> Continuous:
    if not 0 < quantile < 0.5:
        raise InputError(f"quantile is {quantile}; pass a number in (0, 0.5), such as 1e-4.")
    limits = (float(frozen.ppf(quantile)), float(frozen.isf(quantile)))
    return Continuous(frozen, f"{label}, truncated at quantile {quantile:g}", kinks, limits, pdf=pdf)


def mixture(components: Sequence[Any], weights: ArrayLike) -> Mixture:
    """A mixture of continuous distributions.

    Parameters
    ----------
    components : sequence of Distribution or scipy.stats frozen continuous distribution
    weights : array_like of shape (components,)
        Positive; normalised to sum 1.

    Examples
    --------
    >>> both = lb.theory.mixture([lb.theory.normal(1.0), lb.theory.normal(3.0)], [0.5, 0.5])
    >>> round(both.expectation(2), 9)
    5.0
    """
    parts = [as_distribution(c) for c in components]
    shares = as_float64(weights, "weights")
    if any(isinstance(p, Empirical) for p in parts):
        raise InputError("a mixture is of continuous distributions; concatenate samples instead.")
    if shares.shape != (len(parts),) or not parts or np.any(shares <= 0):
        raise InputError(f"weights have shape {shares.shape}; pass one positive weight for each component.")
    return Mixture(parts, shares / shares.sum())


def empirical(samples: ArrayLike, label: str = "samples") -> Empirical:
    """The distribution of given samples, such as the weights of a tensor.

    Parameters
    ----------
    samples : array_like
        Any shape.
    label : str

    Examples
    --------
    >>> lb.theory.empirical(np.array([-1.0, 0.5, 1.0]), "three weights").label
    'three weights'
    """
    values = as_float64(samples, "samples").ravel()
    if values.size == 0:
        raise InputError("samples are empty; pass at least one.")
    return Empirical(values, label)


def as_distribution(value: Any, kinks: Sequence[float] = ()) -> Distribution:
    """Accept a distribution of this module, a frozen continuous one of scipy.stats, or samples.

    Parameters
    ----------
    value : Distribution, scipy.stats frozen continuous distribution, or array_like
    kinks : sequence of float
        Where the density of a scipy.stats distribution is not smooth, if it is none of those of this module.

    Raises
    ------
    InputError
        If it is none of these, or has an infinite variance.

    Examples
    --------
    >>> lb.theory.as_distribution(np.array([-1.0, 0.5, 1.0])).label
    'samples'
    """
    if isinstance(value, Distribution):
        return value
    if not hasattr(value, "dist"):
        return empirical(value)
    _check_frozen(value)
    known = _known_kinks(value)
    return Continuous(value, _name(value), (*kinks, *(known or ())), closed=known is not None)


def _check_frozen(value: Any) -> None:
    if not all(hasattr(value, name) for name in ("pdf", "cdf", "sf", "ppf", "isf", "support", "median")):
        raise InputError(
            "the distribution is not a frozen continuous one of scipy.stats; pass scipy.stats.norm(), say."
        )


def _name(frozen: Any) -> str:
    return str(getattr(getattr(frozen, "dist", None), "name", type(frozen).__name__))


def _known_kinks(frozen: Any) -> tuple[float, ...] | None:
    """Kinks of the families whose moments scipy.stats has in closed form; None for others."""
    name = _name(frozen)
    if name == "laplace":
        return (float(frozen.median()),)
    return () if name in ("norm", "logistic", "uniform", "t") else None


def _positive(value: float, what: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{what} is {value}; pass a positive number.")
    return float(value)
