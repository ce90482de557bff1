"""Errors of a layer whose weights are zero on some inputs, from a problem on the other inputs (docs/numerics.md)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.objective import objective_interval
from layerbounds.kernels import exact
from layerbounds.layers.layer import Layer

_LONG = np.longdouble
_UNIT = float(np.finfo(_LONG).eps)


def error_interval(layer: Layer, channel: int, weights: Float) -> tuple[float, float]:
    """The error f of given weights of an output channel, shape (n,), enclosed."""
    low, high = objective_interval(layer.channel_gram(channel), layer.target[channel], weights)
    constant = Fraction(float(layer.constant[channel]))
    return exact.float_below(Fraction(low) + constant), exact.float_above(Fraction(high) + constant)


def lower_bound_on_kept(layer: Layer, channel: int, kept: Layer, row: int, lower: float, levels: Float) -> float:
    """What a lower bound of a problem on kept inputs says about the layer's own error.

    With U the target of the problem, G its Gram matrix, c' its constant, r = H(U − w) and d = v − U,

        f(v) = dᵀGd + dᵀ(H − G)d + 2dᵀr + f(U) ≥ lower − c' − Σ|H − G|_ij m_i m_j − 2 Σ m_i|r_i| + f(U)

    for all v whose kept weights are levels, m_i being the largest |level − U_i|, and which are zero elsewhere. H − G is
    zero there unless the smaller matrix was repaired, and r is what rounding has left of the normal equations.

    Parameters
    ----------
    layer : Layer
    channel : int
    kept : Layer
        From `layerbounds.orders.kept.kept_inputs`.
    row : int
        The channel in it.
    lower : float
        Certified for the error of ``kept``.
    levels : ndarray of shape (n, levels)
        Of each weight that is kept; rows of zeros elsewhere.

    Returns
    -------
    float
        Never less than the constant of the layer.
    """
    gram, target = layer.channel_gram(channel).astype(_LONG), layer.target[channel].astype(_LONG)
    centre = kept.target[row]
    reach = np.max(np.abs(levels.astype(_LONG) - centre.astype(_LONG)[:, None]), axis=1)
    deviation = centre.astype(_LONG) - target
    slope = np.abs(gram @ deviation) + (len(gram) + 4) * _UNIT * (np.abs(gram) @ np.abs(deviation))
    difference = np.abs(gram - kept.channel_gram(row).astype(_LONG))
    charge = 2.0 * (reach @ slope) + reach @ (difference @ reach)
    # More than the roundings of the charge itself.
    charge = float(charge * (1.0 + 16.0 * (len(gram) + 4) * _UNIT)) * (1.0 + 1e-15)
    at_centre = Fraction(objective_interval(layer.channel_gram(channel), layer.target[channel], centre)[0])
    constant = Fraction(float(layer.constant[channel]))
    bound = Fraction(lower) - Fraction(float(kept.constant[row])) - Fraction(charge) + at_centre + constant
    return max(exact.float_below(bound), float(layer.constant[channel]))
