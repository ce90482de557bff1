"""Certified minima over masks of tiles (docs/tiles.md).

Each row is bounded on its own, with a price on what it keeps; what the prices of an allowed mask can be together comes
off the sum. Extended precision; every rounding error is charged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant, is_minorant
from layerbounds.bounds.pruning.dual import rounded_down, value_at
from layerbounds.bounds.pruning.savings import best_sum_of_units
from layerbounds.exceptions import CertificationError
from layerbounds.problems.patterns.tile_limits import TileLimits
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import TiledDual

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def tiles(gram: Float, target: Float, allowed: TiledSupport, dual: TiledDual) -> float:
    """From a point, a diagonal and prices of each row.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n), or (n,) for one row
    allowed : TiledSupport
    dual : TiledDual

    Returns
    -------
    float
        −inf where nothing is proven about the matrix.
    """
    targets = np.atleast_2d(target)
    if np.shape(dual.points) != targets.shape:
        raise CertificationError("the backend returned a dual point of another number of rows.")
    total = _LONG(0)
    size = _LONG(0)
    for row, w in enumerate(targets):
        d = certified_minorant(gram, np.asarray(dual.diagonals[row], dtype=np.float64))
        if not np.any(d) and not is_minorant(gram, d):
            return -np.inf
        original = None if allowed.refit else allowed.original[row]
        least = _row_bound(gram, w, allowed, original, dual.points[row], d, dual.prices[row])
        total += least
        size += abs(least)
    prices = most_prices(allowed.limits, np.asarray(dual.prices, dtype=np.float64))
    # The additions here, each of a relative rounding.
    bound = total - prices - 2 * (len(targets) + 4) * _UNIT_LONG * (size + prices)
    return float(np.nextafter(float(bound), -np.inf)) if np.isfinite(bound) else -np.inf


def most_prices(limits: TileLimits, prices: Float) -> Any:
    """At least the largest total price that the limits allow: each input for as many rows as may keep it.

    Parameters
    ----------
    limits : TileLimits
    prices : ndarray of shape (rows, n)
        Not negative.
    """
    ordered = -np.sort(-prices, axis=0).astype(_LONG)
    inside = np.arange(len(prices))[:, None] < limits.most
    per_input = np.sum(np.where(inside, ordered, 0), axis=0)
    total = best_sum_of_units(limits.columns, per_input)
    return total * (1 + 4 * (prices.size + 8) * _UNIT_LONG)


def _row_bound(
    gram: Float, target: Float, allowed: TiledSupport, original: Float | None, point: Float, d: Float, prices: Float
) -> float:
    """Lower bound on the error of a row plus the prices of what it keeps."""
    z, p = np.asarray(point, dtype=np.float64).astype(_LONG), np.asarray(prices, dtype=np.float64).astype(_LONG)
    wide = d.astype(_LONG)
    value, h, h_error, magnitude = value_at(gram, target, np.asarray(point, dtype=np.float64))
    drop = -2 * h * z + wide * z**2 - 2 * h_error * np.abs(z)
    size = (2 * np.abs(h * z) + np.abs(wide) * z**2 + p).sum()
    if original is None:
        c = np.abs(wide * z - h) + h_error + 8 * _UNIT_LONG * (np.abs(wide * z) + np.abs(h))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Over the reals nothing bounds a concave term.
            saving = np.where(wide < 0, np.inf, np.where(c == 0, 0, c**2 / wide)) * (1 + 16 * _UNIT_LONG)
        size += saving.sum()
    else:
        step = original.astype(_LONG) - z
        saving = drop - (2 * h * step + wide * step**2 - 2 * h_error * np.abs(step))
        size += (2 * np.abs(h * step) + np.abs(wide) * step**2).sum()
    if not np.all(np.isfinite(saving)):
        return -np.inf
    kept = best_sum_of_units(allowed.structure, saving - p)
    return rounded_down(value + drop.sum(), kept, magnitude + size, len(target))


LEAST = {(TiledSupport, TiledDual): tiles}
