"""Magnitude pruning."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.methods.pruning import PruningView, finish, unit_sums


def magnitude(view: PruningView, refit: bool = True, norm: int = 2) -> Float:
    """Keep the weights of largest size, whatever the inputs are; units of several weights by their norm.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015); of units Wen et
    al., "Learning Structured Sparsity in Deep Neural Networks" (NeurIPS 2016), and PyTorch's ``ln_structured``.

    Parameters
    ----------
    view : PruningView
    refit : bool
        Re-optimise what is kept, where the problem allows it.
    norm : {1, 2}
        Which norm of the weights of a unit, those of all rows that share the mask together.
    """
    if norm not in (1, 2):
        raise InputError(f"norm is {norm}; pass 1 or 2.")
    return finish(view, view.structure.keep_largest(unit_sums(view.structure, np.abs(view.original) ** norm)), refit)
