"""Yardstick: what no code of so many bits can beat on average, for random weights. No certificate.

For independent normal weights of variance σ² the vector H^(1/2)w has independent normal coordinates of variances σ²λᵢ
in the eigenbasis of H, and the mean of (v − w)ᵀH(v − w) over the weights is, for every set of 2^B vectors v and every
way to choose among them, at least Shannon's distortion–rate function at B bits: Σ min(θ, σ²λᵢ) with the water level θ
at which Σ ½·log₂⁺(σ²λᵢ/θ) = B (Kolmogorov 1956; Cover and Thomas, "Elements of Information Theory", theorem 10.3.3).
WaterSIC (Lifar, Savkin, Ordentlich and Polyanskiy, arXiv 2603.04956) measures quantizers of linear layers by it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import real_number
from layerbounds.arrays import Float, as_float64
from layerbounds.theory.spectra import spectrum


def normal_variance(weights: ArrayLike) -> float:
    """Variance of the normal distribution of mean 0 that fits weights best: their mean square; 0 of none.

    Parameters
    ----------
    weights : array_like
    """
    values = as_float64(weights, "weights")
    peak = float(np.max(np.abs(values), initial=0.0))
    return float(np.mean(np.square(values / peak))) * peak * peak if peak > 0.0 else 0.0


def least_distortion(gram: ArrayLike, weights: ArrayLike, bits: float) -> float:
    """What the mean error of random weights like the given ones is at least, with so many bits a weight.

    Parameters
    ----------
    gram : array_like of shape (n, n)
        H, of the live inputs; singular ones are no exception.
    weights : array_like
        A normal distribution of mean 0 is fitted to them (`normal_variance`).
    bits : float
        B/n ≥ 0, all that tells the n weights apart: levels, and masks where there are any.

    Returns
    -------
    float

    Raises
    ------
    InputError

    Examples
    --------
    >>> round(lb.theory.least_distortion(np.eye(2), np.array([1.0, -1.0]), 2.0), 4)
    0.125
    """
    real_number(bits, "bits", 0.0)
    values = spectrum(gram)
    return normal_variance(weights) * distortion_of_spectrum(values, bits * len(values))


def distortion_of_spectrum(eigenvalues: Float, bits: float) -> float:
    """Reverse water-filling: the least mean squared error of a normal vector with given variances, with so many bits.

    Parameters
    ----------
    eigenvalues : ndarray of shape (n,)
        Variances ≥ 0 of the coordinates, in any order.
    bits : float
        B, of all coordinates together.
    """
    falling = np.sort(eigenvalues[eigenvalues > 0.0])[::-1]
    if not len(falling):
        return 0.0
    logs = np.log2(falling)
    # The level if the k largest coordinates are coded; the right k is the largest whose last one is above it.
    levels = (np.cumsum(logs) - 2.0 * bits) / np.arange(1, len(logs) + 1)
    above = np.flatnonzero(levels < logs)
    coded = int(above[-1]) + 1 if len(above) else 0
    level = 2.0 ** float(levels[coded - 1]) if coded else 0.0
    with np.errstate(over="ignore"):
        return coded * level + float(falling[coded:].sum())
