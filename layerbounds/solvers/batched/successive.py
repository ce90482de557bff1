"""Rounding one input after the other (GPTQ), for all rows that share a Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from layerbounds.arrays import Float, Int
from layerbounds.kernels.batched.successive import round_block
from layerbounds.kernels.factorization import is_finite_factor

#: Indices of codes.
Choice = NDArray[np.int16]

#: Inputs whose errors are passed on to the later ones at once, by a matrix product.
BLOCK = 128


@dataclass(frozen=True, eq=False)
class Shifts:
    """How errors are passed on in an order of the inputs.

    Attributes
    ----------
    order : ndarray of int64, shape (n,)
        The first one is rounded first.
    matrix : ndarray of float32, shape (n, n)
        Strictly upper triangular, in that order: row j is the move of the later centres for a unit error of input j.
    """

    order: Int
    matrix: NDArray[np.float32]


def shifts_in_order(gram: NDArray[Any], order: Int, damp: float) -> Shifts:
    """Factorize the damped Gram matrix as U D Uᵀ, where U has a diagonal of ones.

    The error is Σ_i D_i (e_i + Σ_{j<i} U_ji e_j)², so that the centre of an input moves by −U_ji e_j: what GPTQ takes
    from the inverse of the Gram matrix, without an inverse. ``damp`` is the share of the mean diagonal that is added,
    raised tenfold while the factorization, in the precision of the matrix, breaks down.
    """
    backwards = order[::-1]
    diagonal = np.diag(gram)[backwards]
    mean = float(np.mean(diagonal))
    (factorize,) = get_lapack_funcs(("potrf",), (gram,))
    while True:
        matrix = gram[np.ix_(backwards, backwards)]
        np.fill_diagonal(matrix, diagonal + damp * mean)
        # The transpose is the same matrix, in the order of LAPACK, which then works in place.
        lower, info = factorize(matrix.T, lower=1, clean=1, overwrite_a=1)
        if info == 0 and is_finite_factor(lower):
            break
        damp *= 10.0
    lower /= np.diag(lower).copy()
    upper = np.ascontiguousarray(lower[::-1, ::-1], dtype=np.float32)
    return Shifts(order, upper)


def round_in_order(
    shifts: Shifts,
    targets: Float,
    codes: Float,
    scale: Float,
    zero_point: Float,
    group: Int,
    uniform: bool,
    choice: Choice,
) -> None:
    """Fill the indices of the codes, shape (rows, n) int16; the other arrays as in `round_rows`."""
    order, n = shifts.order, len(shifts.order)
    ordered = targets[:, order].astype(np.float32)
    errors = np.empty_like(ordered)
    for begin in range(0, n, BLOCK):
        end = min(n, begin + BLOCK)
        centres = ordered[:, begin:end] + errors[:, :begin] @ shifts.matrix[:begin, begin:end]
        block = np.ascontiguousarray(shifts.matrix[begin:end, begin:end])
        passed = np.empty((len(targets), end - begin), dtype=np.float32)
        round_block(block, centres, targets, order[begin:end], codes, scale, zero_point, group, uniform, choice, passed)
        errors[:, begin:end] = passed
