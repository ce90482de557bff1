"""Lower bounds of quantization problems, derived from a point, a diagonal and split cuts (docs/bounds.md).

Extended precision; every rounding error is charged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import proven_minorant
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


def tangent_bound(
    gram: Float, target: Float, levels: Float, z: Float, d: Float, lattice: Lattice, split: FormTerms | None
) -> float:
    """Lower bound on (q − w)ᵀH(q − w) over the grid, from any z and any diagonal, with split cuts or without.

    With h = H(z − w), columns u_j = v_j/scale for the integer forms v_j, any multipliers ρ and weights g ≥ 0,

        f(q) ≥ f(z) + Σ_i min_v [2 (h − Uρ)_i (v − z_i) + d_i (v − z_i)²]
                    + Σ_j min_t [2 ρ_j (t − y_j) + g_j (t − y_j)²],

    t over the integers that v_jᵀcode can be and y_j its value at z, after diag(d) + U diag(g) Uᵀ ⪯ H + diag(e) is
    proven for a shift e as small as possible, and Σ e_i max_v (v − z_i)² is charged: a singular stored Gram matrix
    has eigenvalues of rounding size on both sides of zero. Entries of d may be negative.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    levels : ndarray of shape (n, levels)
    z, d : ndarray of shape (n,)
    lattice : Lattice
        Used with ``split``.
    split : FormTerms or None

    Returns
    -------
    float
        0 where nothing can be proven.
    """
    n = len(target)
    wide = gram.astype(_LONG)
    deviation = z.astype(_LONG) - target.astype(_LONG)
    h = wide @ deviation
    spread = np.abs(wide) @ np.abs(deviation)
    h_error = (n + 4) * _UNIT_LONG * spread
    value: Any = deviation @ h
    magnitude: Any = np.abs(deviation) @ spread
    if split is None:
        proven = proven_minorant(gram, d)
    else:
        columns = split.forms.astype(_LONG) / lattice.scale.astype(_LONG)[:, None]
        found = proven_weights(gram, columns.astype(np.float64), d, split.weights)
        proven = None if found is None else (found[0], found[2])
        if found is not None:
            terms, size = _form_terms(levels, lattice, replace(split, weights=found[1]), columns, z)
            value += terms.sum()
            magnitude += size
        rho = split.multipliers.astype(_LONG)
        h_error += (len(rho) + 4) * _UNIT_LONG * (np.abs(columns) @ np.abs(rho) + np.abs(h))
        h = h - columns @ rho
    if proven is None:
        return 0.0
    d, shift = proven
    step = levels.astype(_LONG) - z.astype(_LONG)[:, None]
    linear = 2 * h[:, None] * step
    single = linear + d[:, None] * step**2 - 2 * h_error[:, None] * np.abs(step)
    single -= shift[:, None].astype(_LONG) * (step**2).max(axis=1)[:, None] * (1 + 8 * _UNIT_LONG)
    low = single.min(axis=1)
    value += low.sum()
    magnitude += np.abs(linear).max(axis=1).sum() + np.abs(low).sum()
    return float(np.nextafter(float(value - 2 * (n + 8) * _UNIT_LONG * magnitude), -np.inf))


def proven_weights(gram: Float, columns: Float, d: Float, weights: Float) -> tuple[Float, Float, Float] | None:
    """A diagonal d' ≤ d, weights' ≤ weights and a shift, proven; see `proven_minorant`."""
    shifted = semidefinite_shift(gram)
    if shifted is None:
        return None
    matrix, shift = shifted
    return *certified_weights(matrix, columns, d, weights), shift


def _form_terms(levels: Float, lattice: Lattice, split: FormTerms, columns: Wide, z: Float) -> tuple[Wide, Any]:
    """The forms' terms from below, and the size of what was added up.

    The levels are rounded products, so that u_jᵀq differs from the integer v_jᵀcode − v_jᵀzero by up to ``near``.
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
    return terms, rounding.sum()
