"""Magnitude pruning."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.pruning import PruningView, finish, largest


def magnitude(view: PruningView, refit: bool = True) -> Float:
    """Keep the weights of largest size, whatever the inputs are.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015).

    Parameters
    ----------
    view : PruningView
    refit : bool
        Re-optimise what is kept, where the problem allows it.
    """
    return finish(view, largest(view, np.abs(view.original)), refit)
