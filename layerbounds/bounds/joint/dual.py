"""Lower bounds of joint problems, derived from a point and a diagonal (docs/joint-bounds.md).

For any z and any diagonal D ⪯ H, with h = H(z − w),

    f(v) ≥ f(z) + Σ drop_i − (largest total, over the units that the capacities allow, of Σ (drop_i − keep_i)),

where drop_i = −2h_i z_i + d_i z_i² is the term of the weight 0 and keep_i the least term 2h_i(v − z_i) + d_i(v − z_i)²
of the weights that a kept input may have, zero among them. Extended precision; every rounding error is charged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import proven_minorant
from layerbounds.bounds.pruning.dual import rounded_down, value_at
from layerbounds.bounds.pruning.savings import best_sum_of_units
from layerbounds.problems.patterns import Structure

#: Extended precision, which type checkers have no name for.
Wide = npt.NDArray[Any]

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def diagonal_bound(gram: Float, target: Float, values: Float, structure: Structure, z: Float, d: Float) -> float:
    """Lower bound on (v − w)ᵀH(v − w) over levels on a support, from any z and any diagonal.

    diag(d) ⪯ H + diag(e) is proven for a shift e as small as possible, and diag(d − e) ⪯ H is what counts: a singular
    stored Gram matrix has eigenvalues of rounding size on both sides of zero. Entries of d may be negative.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
        w.
    values : ndarray of shape (n, levels)
        The levels of each input with zero among them, in any order.
    structure : Structure
    z, d : ndarray of shape (n,)

    Returns
    -------
    float
        0 where nothing can be proven.
    """
    proven = proven_minorant(gram, d)
    if proven is None:
        return 0.0
    value, h, h_error, magnitude = value_at(gram, target, z)
    drop, saving, size = level_savings(values, z, h, h_error, *proven)
    kept = best_sum_of_units(structure, saving)
    bound = rounded_down(value + drop.sum(), kept, magnitude + size, len(target))
    return bound if np.isfinite(bound) else 0.0


def level_savings(values: Float, z: Float, h: Wide, h_error: Wide, d: Float, shift: Float) -> tuple[Wide, Wide, Any]:
    """Per input: the term of the weight zero, how far the least of all terms is below it, and the size of the terms."""
    step = values.astype(_LONG) - z.astype(_LONG)[:, None]
    linear, square = 2 * h[:, None] * step, step**2
    term = linear + d[:, None] * square - 2 * h_error[:, None] * np.abs(step)
    term -= shift[:, None].astype(_LONG) * square * (1 + 8 * _UNIT_LONG)
    drop = np.take_along_axis(term, np.argmax(values == 0.0, axis=1)[:, None], axis=1)[:, 0]
    size = np.abs(linear) + (np.abs(d) + shift)[:, None] * square
    return drop, drop - term.min(axis=1), size.max(axis=1).sum()
