"""Yardstick: how well the points of a lattice can approximate a typical target. No certificate: targets are not random.

On a uniform grid of steps s the errors (v − w)ᵀH(v − w) are squared distances to a lattice of the volume
√det(SHS) = √det(H)·Π sᵢ, S = diag(s). The errors of targets that are uniformly distributed modulo the grid are those in
its Voronoi cell, which has this volume, too, and no body of a given volume has a smaller second moment than a ball
(Zador, IEEE Trans. Inform. Theory 28 (1982); Conway and Sloane, "Sphere Packings, Lattices and Groups", chapter 2).
Finitely many levels can only raise the errors.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import real_number
from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.theory.spectra import spectrum


def typical_error(gram: ArrayLike, scale: ArrayLike) -> float | None:
    """What the mean of the least error over targets uniform modulo a grid is at least.

    With V_n the volume of the unit ball, E min f ≥ n/(n + 2)·(√det(SHS)/V_n)^(2/n).

    Parameters
    ----------
    gram : array_like of shape (n, n)
        H, of the live inputs.
    scale : array_like of shape () or (n,)
        Step of each weight; signs do not matter.

    Returns
    -------
    float or None
        None where H is singular up to rounding (`spectrum`): the points of the grid are then dense in general, at
        least where there are infinitely many, and nothing can be said. 0 without inputs.

    Raises
    ------
    InputError

    Examples
    --------
    >>> round(lb.theory.typical_error(np.eye(2), 1.0), 4)
    0.1592
    """
    return error_of_lattice(spectrum(gram), scale)


def chance_below(gram: ArrayLike, scale: ArrayLike, error: float) -> float | None:
    """What the probability that the least error is at most ``error`` is at most, over the same targets.

    P(min f ≤ r²) ≤ V_n·rⁿ/√det(SHS): the part of the Voronoi cell that lies in a ball is no larger than the ball.

    Parameters
    ----------
    gram, scale : as in `typical_error`
    error : float
        r² ≥ 0.

    Returns
    -------
    float or None
        At most 1; None where H is singular up to rounding.

    Raises
    ------
    InputError

    Examples
    --------
    >>> round(lb.theory.chance_below(np.eye(2), 1.0, 0.01), 4)
    0.0314
    """
    values = spectrum(gram)
    real_number(error, "error", 0.0)
    volume = _log_volume(values, scale)
    if volume is None:
        return None
    if error == 0.0:
        return 0.0 if len(values) else 1.0
    return math.exp(min(0.0, _log_ball(len(values)) + 0.5 * len(values) * math.log(error) - volume))


def error_of_lattice(eigenvalues: Float, scale: ArrayLike) -> float | None:
    """`typical_error` from the eigenvalues of H.

    Parameters
    ----------
    eigenvalues : ndarray of shape (n,)
        As `spectrum` gives them.
    scale : array_like of shape () or (n,)
    """
    n = len(eigenvalues)
    volume = _log_volume(eigenvalues, scale)
    if volume is None or n == 0:
        return volume
    exponent = 2.0 / n * (volume - _log_ball(n))
    return n / (n + 2) * math.exp(exponent) if exponent < 709.0 else math.inf


def _log_volume(eigenvalues: Float, scale: ArrayLike) -> float | None:
    """Logarithm of √det(SHS); None where it is −∞."""
    n = len(eigenvalues)
    steps = np.abs(as_float64(scale, "scale"))
    if steps.shape not in ((), (n,)) or not np.all(steps > 0.0):
        raise InputError(f"scale has shape {steps.shape}; pass one step or {n} steps, none of them 0.")
    if not np.all(eigenvalues > 0.0):
        return None
    return float(0.5 * np.log(eigenvalues).sum() + np.log(np.broadcast_to(steps, n)).sum())


def _log_ball(n: int) -> float:
    """Logarithm of the volume of the unit ball in n dimensions."""
    return 0.5 * n * math.log(math.pi) - math.lgamma(0.5 * n + 1.0)
