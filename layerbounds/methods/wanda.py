"""Wanda."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.pruning import PruningView, finish, largest


def wanda(view: PruningView, refit: bool = False) -> Float:
    """Keep the weights of largest |w_i|·‖X_i‖, compared within the output channel.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024).

    Parameters
    ----------
    view : PruningView
    refit : bool
        Re-optimise what is kept, where the problem allows it; the paper does not.
    """
    return finish(view, largest(view, np.abs(view.original) * np.sqrt(np.diag(view.gram))), refit)
