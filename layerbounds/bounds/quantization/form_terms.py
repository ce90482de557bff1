"""What integer forms add to a bound at a point: their own terms, and the slopes that they take (docs/bounds.md).

Extended precision; every rounding error is charged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.bounds.quantization.cuts import certified_weights
from layerbounds.proofs import FormTerms

#: Extended precision, which type checkers have no name for.
Wide = npt.NDArray[Any]

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where the levels of a uniform grid lie: near ``scale[:, None] * (codes - zero_point[:, None])``.

    Attributes
    ----------
    codes : ndarray of shape (n, levels)
        0, 1, …; where an input has one level, 0 alone.
    scale, zero_point : ndarray of shape (n,)
    """

    codes: Float
    scale: Float
    zero_point: Float


def form_columns(forms: Float, lattice: Lattice) -> Wide:
    """U: the forms divided by the scales, shape (n, cuts)."""
    return np.asarray(forms.astype(_LONG) / lattice.scale.astype(_LONG)[:, None])


def without_forms(h: Wide, h_error: Wide, columns: Wide, multipliers: Float) -> tuple[Wide, Wide]:
    """The slopes h − Uρ that are left to the single weights, and by how much they may be off."""
    rho = multipliers.astype(_LONG)
    more = (len(rho) + 4) * _UNIT_LONG * (np.abs(columns) @ np.abs(rho) + np.abs(h))
    return h - columns @ rho, h_error + more


def form_terms(levels: Float, lattice: Lattice, split: FormTerms, columns: Wide, z: Float) -> tuple[Any, Any]:
    """Σ_j min over integers t of 2ρ_j(t − y_j) + g_j(t − y_j)² from below, and the size of what was added up.

    The levels are rounded products, so that u_jᵀq differs from the integer v_jᵀcode − v_jᵀzero by up to ``near``.

    Parameters
    ----------
    levels : ndarray of shape (n, levels)
    lattice : Lattice
    split : FormTerms
        With weights that are proven.
    columns : ndarray of longdouble, shape (n, cuts)
        As of `form_columns`.
    z : ndarray of shape (n,)
    """
    forms = split.forms.astype(_LONG)
    rho, weight = split.multipliers.astype(_LONG), split.weights.astype(_LONG)
    inverse = 1 / lattice.scale.astype(_LONG)
    zero = lattice.zero_point.astype(_LONG)
    exact = lattice.codes.astype(_LONG) - zero[:, None]
    reach = np.abs(exact).max(axis=1) + np.abs(zero)
    off = np.abs(levels.astype(_LONG) * inverse[:, None] - exact).max(axis=1) + 8 * _UNIT_LONG * reach
    y = columns.T @ z.astype(_LONG) + forms.T @ zero
    size = np.abs(columns).T @ np.abs(z).astype(_LONG) + np.abs(forms).T @ reach
    near = np.abs(forms).T @ off + 4 * (len(z) + 8) * _UNIT_LONG * size
    first, last = lattice.codes[:, :1], lattice.codes[:, -1:]
    lowest = np.minimum(forms * first, forms * last).sum(axis=0)
    highest = np.maximum(forms * first, forms * last).sum(axis=0)
    # A convex parabola: its least integer is next to its vertex, or at an end of the range.
    vertex = y - np.divide(rho, weight, out=np.zeros_like(rho), where=weight > 0)
    points = np.stack([lowest, highest, np.floor(vertex), np.ceil(vertex)]).clip(lowest, highest)
    step = points - y
    linear, square = 2 * rho * step, weight * step**2
    farthest = np.maximum(np.abs(lowest - y), np.abs(highest - y))
    charge = near * (2 * np.abs(rho) + weight * (2 * farthest + near))
    terms = (linear + square).min(axis=0) - 2 * charge
    # Where two terms cancel, their own size counts.
    rounding = (np.abs(linear) + square).max(axis=0) + (np.abs(rho) + weight * farthest) * size
    return terms.sum(), rounding.sum()


def proven_weights(gram: Float, columns: Float, units: Float, weights: Float) -> tuple[Float, Float, Float] | None:
    """Multiples B' of B and g' of g and a shift e ≥ 0 with B' + U diag(g') Uᵀ ⪯ gram + diag(e) proven, or None.

    ``units`` is B or, of shape (n,), its diagonal.
    """
    shifted = semidefinite_shift(gram)
    return None if shifted is None else (*certified_weights(shifted[0], columns, units, weights), shifted[1])


def join_forms(
    gram: Float, levels: Float, lattice: Lattice, split: FormTerms, units: Float, z: Float, h: Wide, h_error: Wide
) -> tuple[tuple[Float, Float], Any, Any, Wide, Wide] | None:
    """Forms beside a diagonal or blocks, at a point; None where nothing is proven.

    Returns the diagonal or the blocks and their shift, proven with the forms' weights, then what `form_terms` and what
    `without_forms` give.
    """
    columns = form_columns(split.forms, lattice)
    found = proven_weights(gram, columns.astype(np.float64), units, split.weights)
    if found is None:
        return None
    proven, weights, shift = found
    terms = form_terms(levels, lattice, replace(split, weights=weights), columns, z)
    return (proven, shift), *terms, *without_forms(h, h_error, columns, split.multipliers)
