"""Which scales have to be searched: cells of the ray of a box, up to where all others are excluded at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.box import box_multipliers
from layerbounds.kernels.factorization import gamma
from layerbounds.search.scale.allowance import farthest
from layerbounds.search.scale.rays import Ray

#: Logarithmic width of a cell.
WIDTH = 0.2
#: Cells beyond these are given up: a cut next to f(0) excludes small scales only far out.
MOST_CELLS = 400


def largest_scale(ray: Ray, target: Float, cut: float, limit: float) -> float:
    """No larger scale gives an error below the cut, but for codes that are all 0 (f(0) is above the cut).

    Weights below it are at most `farthest`, and one of them, or all where no code is 0, at least the scale times the
    smallest code.

    Parameters
    ----------
    ray : Ray
    target : ndarray of shape (n,)
        w in the order of the search.
    cut : float
        In the units of the Gram matrix.
    limit : float
        The largest weight that is allowed.
    """
    sizes = np.abs(ray.codes[ray.codes != 0.0])
    if not sizes.size:
        return 0.0
    reach = farthest(ray.prep, target, cut, limit)
    most = np.max(reach) if len(sizes) < len(ray.codes) else np.min(reach)
    return float(most) * (1.0 + 1e-9) / float(sizes.min())


def least_of_smaller(ray: Ray, t: float) -> float:
    """A lower bound on the error at all scales of 1/t or less, in units of (the scale at t = 1)².

    Where 0 lies between the codes, the boxes of smaller scales lie in those of larger ones: the least error over the
    box, bounded by its dual, only grows. Else √f(sq) ≥ √f(0) − s‖q‖.
    """
    low, high = float(ray.codes[0]), float(ray.codes[-1])
    gram, n = ray.prep.gram, ray.size
    if not low <= 0.0 <= high:
        norm = max(abs(low), abs(high)) * float(np.sum(np.sqrt(np.diag(gram))))
        energy = float(ray.target @ (gram @ ray.target))
        energy -= gamma(2 * n + 8) * float(np.abs(ray.target) @ (np.abs(gram) @ np.abs(ray.target)))
        root = np.sqrt(max(energy, 0.0)) - norm / t * (1.0 + 1e-12)
        return float(max(root, 0.0) ** 2 * (1.0 - 1e-12))
    target = t * ray.target
    h, _ = box_multipliers(ray.prep.covariance, target, np.full(n, low), np.full(n, high), np.zeros(n, dtype=np.int64))
    # (z − tω)ᵀH(z − tω) + 2hᵀ(q − z) is a bound for h = H(z − tω) and any z.
    deviation = ray.prep.covariance @ h
    pull = gram @ deviation
    ends = np.where(pull > 0.0, low, high)
    value = float(deviation @ pull) + 2.0 * float(pull @ (ends - target - deviation))
    size = np.abs(gram) @ np.abs(deviation)
    bulk = max(abs(low), abs(high)) + np.abs(target) + 2.0 * np.abs(deviation)
    value -= 4.0 * gamma(2 * n + 8) * float(size @ bulk)
    return float(max(value, 0.0) / t**2 * (1.0 - 1e-12))


def cells(ray: Ray, target: Float, unit: float, cut: float, limit: float, powers: bool) -> Float | None:
    """Least and largest t of the cells that are to be searched, shape (cells, 2), by increasing t.

    Parameters
    ----------
    ray : Ray
    target : ndarray of shape (n,)
        w in the order of the search.
    unit : float
        The scale at t = 1, which is the middle of a cell.
    cut : float
        In the units of the Gram matrix.
    limit : float
    powers : bool
        Whether scales are powers of two; then ``unit`` is one, and every cell is one scale.

    Returns
    -------
    ndarray or None
        None where some scales cannot be excluded.
    """
    most = largest_scale(ray, target, cut, limit)
    return layout(most, lambda t: least_of_smaller(ray, t) > cut / unit**2, unit, powers)


def layout(most: float, excludes_smaller: Callable[[float], bool], unit: float, powers: bool) -> Float | None:
    """The cells from the largest scale that counts to the first t from which on all smaller scales are excluded.

    Parameters
    ----------
    most : float
        No larger scale counts.
    excludes_smaller : callable
        Whether no scale of 1/t or less counts.
    unit, powers
        As in `cells`.
    """
    width, end = (float(np.log(2.0)), 0.0) if powers else (WIDTH, 0.5)
    if not np.isfinite(most):
        return None
    last = 0
    # The upper end of the last cell, as it is returned.
    while not excludes_smaller(2.0**last if powers else float(np.exp((last + end) * width))):
        last += 1
        if last > MOST_CELLS:
            return None
    first = 0
    if most > 0.0:
        first = min(int(np.floor(np.log(unit / most) / width + end)), 0)
        if first < -MOST_CELLS:
            return None
    if powers:
        t = 2.0 ** np.arange(first, last + 1)
        return np.stack([t, t], axis=1)
    edges = np.exp((np.arange(first, last + 2) - 0.5) * width)
    return np.stack([edges[:-1], edges[1:]], axis=1)
