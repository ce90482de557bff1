"""The bound of a binary quadratic form from a point and a diagonal, every rounding error charged."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.masks.form import MaskForm
from layerbounds.bounds.minorants.diagonal import certified_minorant, is_minorant
from layerbounds.bounds.pruning.savings import best_sum_of_units
from layerbounds.exceptions import CertificationError
from layerbounds.problems.patterns import Structure

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)
#: Rows of the matrix that are taken to extended precision at once.
STRIPE = 512


def mask_bound(form: MaskForm, z: Float, d: Float) -> float:
    """Lower bound on the error over all masks, −inf where diag(d) ⪯ A is not proven.

    With h = Az − β, f(y) = f(z) + 2hᵀ(y − z) + (y − z)ᵀA(y − z) ≥ f(z) + Σ [2h_g(y_g − z_g) + d_g(y_g − z_g)²].
    Dropping unit g adds −2h_g z_g + d_g z_g², and keeping it saves d_g(2z_g − 1) − 2h_g.

    Parameters
    ----------
    form : MaskForm
    z, d : ndarray of shape (units,)
        Any; of a diagonal that is no minorant of A a part is used that is.

    Raises
    ------
    CertificationError
        If there are more or fewer numbers than units.
    """
    if len(z) != len(form.beta):
        raise CertificationError("the backend returned a dual point with another number of units.")
    active = np.flatnonzero(~form.idle)
    form, z, d = form.restricted(active), z[active], d[active]
    units = len(z)
    d = certified_minorant(form.a, d)
    if not np.any(d) and not is_minorant(form.a, d):
        return -np.inf
    value, h, reach = value_at_point(form, z)
    point, diagonal = z.astype(_LONG), d.astype(_LONG)
    value += np.sum(-2 * h * point + diagonal * point**2)
    saving = diagonal * (2 * point - 1) - 2 * h
    kept = best_sum_of_units(Structure(np.arange(units), form.group, form.capacity), saving)
    size = abs(form.energy) + np.sum(reach * (4 * np.abs(point) + 2) + np.abs(diagonal) * (1 + np.abs(point)) ** 2)
    bound = value - kept - 4 * (units + 16) * _UNIT_LONG * (size + np.abs(kept)) - form.off * (1 + _UNIT_LONG)
    return float(np.nextafter(float(bound), -np.inf)) if np.isfinite(bound) else -np.inf


def value_at_point(form: MaskForm, z: Float) -> tuple[Any, Any, Any]:
    """f(z), h = Az − β and Σ|a_gh z_h| + |β_g|, in extended precision."""
    point, beta = z.astype(_LONG), form.beta.astype(_LONG)
    h, reach = np.empty((2, len(z)), dtype=_LONG)
    for begin in range(0, len(z), STRIPE):
        stripe = form.a[begin : begin + STRIPE].astype(_LONG)
        h[begin : begin + STRIPE] = stripe @ point
        reach[begin : begin + STRIPE] = np.abs(stripe) @ np.abs(point)
    h, reach = h - beta, reach + np.abs(beta)
    return form.energy + np.sum(point * (h - beta)), h, reach
