"""Lower bounds of quantization problems, derived from a point, a diagonal and split cuts (docs/bounds.md).

Extended precision; every rounding error is charged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import proven_minorant
from layerbounds.bounds.quantization.form_terms import Lattice, join_forms
from layerbounds.proofs import FormTerms

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


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
        joined = join_forms(gram, levels, lattice, split, d, z, h, h_error)
        if joined is None:
            return 0.0
        proven, terms, size, h, h_error = joined
        value += terms
        magnitude += size
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
