"""Eigenvalues of Gram matrices."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError


def spectrum(gram: ArrayLike) -> Float:
    """Eigenvalues of a Gram matrix in rising order; those that are rounding, at most n·2⁻⁵²·(the largest), are 0.

    Parameters
    ----------
    gram : array_like of shape (n, n)
        Symmetric and positive semidefinite up to rounding.

    Returns
    -------
    ndarray of shape (n,)

    Raises
    ------
    InputError
        If it is not a square matrix.
    """
    matrix = as_float64(gram, "gram")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"gram has shape {matrix.shape}; pass a square matrix.")
    peak = float(np.max(np.abs(matrix), initial=0.0))
    if peak == 0.0:
        return np.zeros(len(matrix))
    # A power of 2 keeps huge and tiny matrices in range, and changes no digit.
    power = math.frexp(peak)[1]
    try:
        values = np.linalg.eigvalsh(np.ldexp(matrix, -power))
    except np.linalg.LinAlgError as error:
        raise InputError(f"eigenvalues of gram cannot be computed ({error}); check that it is symmetric.") from error
    values[values <= len(values) * np.finfo(np.float64).eps * values[-1]] = 0.0
    return np.ldexp(values, power)
