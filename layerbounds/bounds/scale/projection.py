"""Real zero points: the Gram matrix after the best shift of all weights of a group, from below.

min over o of f(v + o·1) = (v − w)ᵀP(v − w) with P = H − a aᵀ/τ, a = H1 and τ = 1ᵀH1, one group after the other. P1 = 0,
so that one input of each group can be left out: v and w are counted from its weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import UNIT

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def counted_from(gram: Float, group: Int) -> tuple[int, ...]:
    """The input of each group from whose weight the others are counted: the one of most energy."""
    diagonal = np.diag(gram)
    groups = range(int(group.max()) + 1)
    return tuple(int(np.argmax(np.where(group == g, diagonal, -np.inf))) for g in groups)


def project(gram: Float, group: Int, dropped: tuple[int, ...]) -> tuple[Float, Int] | None:
    """A matrix proven below the projected Gram matrix of the inputs that are left, and their numbers.

    P is computed in extended precision with a bound on the error of every entry; rounded, its diagonal is lowered by
    the sums of the errors of the rows, as |E| ≤ F entrywise implies E ⪰ −diag(row sums of F).

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    group : ndarray of int64, shape (n,)
    dropped : tuple of int
        One input of each group, in the order of the groups.

    Returns
    -------
    tuple or None
        Matrix of shape (left, left) and the inputs left; None where rounding hides whether 1ᵀH1 is positive.
    """
    n = len(gram)
    matrix: npt.NDArray[Any] = gram.astype(_LONG)
    error: Float = np.zeros((n, n))
    for member in range(len(dropped)):
        inside = group == member
        size = np.abs(matrix).astype(np.float64) * (1 + 4 * UNIT)
        a = matrix[:, inside].sum(axis=1)
        off = (error + n * _UNIT_LONG * size)[:, inside].sum(axis=1) * (1 + 4 * n * UNIT)
        tau = a[inside].sum()
        tau_off = float(off[inside].sum() + n * _UNIT_LONG * np.abs(a[inside]).sum()) * (1 + 4 * n * UNIT)
        least = float(tau) * (1 - 4 * UNIT) - tau_off
        if not least > 0:
            return None
        reach = np.abs(a).astype(np.float64) * (1 + 4 * UNIT)
        matrix = matrix - np.outer(a, a / tau)
        crossed = np.outer(reach, off)
        product = np.outer(reach, reach) / least
        error = error + (crossed + crossed.T + np.outer(off, off)) / least + product * (tau_off / least)
        error += 8 * _UNIT_LONG * (size + product)
        error *= 1 + 32 * UNIT
    left = np.setdiff1d(np.arange(n), dropped)
    block = np.ix_(left, left)
    rounded = matrix[block].astype(np.float64)
    rounded = (rounded + rounded.T) / 2
    # Rounding to the nearest, and of the mean of the two halves.
    hidden = error[block] + error[block].T + 4 * UNIT * np.abs(rounded)
    lowered = np.diag(rounded) - hidden.sum(axis=1) * (1 + 4 * n * UNIT)
    rounded[np.diag_indices(len(left))] = lowered - 4 * UNIT * np.abs(lowered)
    return rounded, left
