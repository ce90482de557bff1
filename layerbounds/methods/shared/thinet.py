"""ThiNet."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.pruning import PruningView, finish, room
from layerbounds.methods.shared.masks import unit_form


def thinet(view: PruningView, refit: bool = True) -> Float:
    """Drop one more unit, the one with which the output of all dropped ones is smallest, until the pattern holds.

    Luo, Wu & Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression" (ICCV 2017), algorithm 1
    on the whole Gram matrix in place of sampled positions. Their least squares afterwards have one factor for each
    kept unit; here all kept weights are re-fitted.

    Parameters
    ----------
    view : PruningView
    refit : bool
        Re-optimise what is kept, where the problem allows it.
    """
    structure = view.structure
    matrix, linear = unit_form(view)
    kept = np.ones(len(linear), dtype=bool)
    # With all units kept the slope is that of the dense weights: 0 unless the layer is fitted to other inputs.
    slope = 2.0 * (linear - matrix.sum(axis=1))
    while np.any((over := room(structure, kept) < 0)[structure.group] & kept):
        change = np.where(kept & over[structure.group], np.diag(matrix) + slope, np.inf)
        unit = int(np.argmin(change))
        kept[unit] = False
        slope += 2.0 * matrix[unit]
    return finish(view, kept[structure.unit], refit)
