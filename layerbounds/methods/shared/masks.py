"""Units whose weights stay as they are: the error is a quadratic form in which ones are kept."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.pruning import PruningView, unit_sums


def unit_form(view: PruningView) -> tuple[Float, Float]:
    """A and c with the error yᵀAy − 2cᵀy + constant, y = 1 for kept units, which have their original weights.

    Returns
    -------
    matrix : ndarray of shape (units, units)
        Σ H_ij Σ_r w_ri w_rj over the inputs of both units.
    linear : ndarray of shape (units,)
        Σ w_ri (Hw̃_r)_i over the inputs of the unit.
    """
    rows, units = np.atleast_2d(view.original), view.structure.unit
    matrix = view.gram * (rows.T @ rows)
    if len(view.structure.group) < len(units):
        order = np.argsort(units, kind="stable")
        begin = np.searchsorted(units[order], np.arange(len(view.structure.group)))
        matrix = np.add.reduceat(matrix[np.ix_(order, order)], begin, axis=0)
        matrix = np.add.reduceat(matrix, begin, axis=1)
    else:
        order = np.argsort(units)
        matrix = matrix[np.ix_(order, order)]
    return np.ascontiguousarray(matrix), unit_sums(view.structure, view.original * (view.target @ view.gram))
