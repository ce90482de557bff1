"""Wanda."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.pruning import PruningView, finish, largest


def wanda(view: PruningView, refit: bool = False) -> Float:
    """Keep the weights of largest |w_i|·‖X_i‖, compared within the output channel; units by the norm of these.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024); of units that several
    channels share the variant of An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models"
    (AAAI 2024).

    Parameters
    ----------
    view : PruningView
    refit : bool
        Re-optimise what is kept, where the problem allows it; the paper does not.
    """
    return finish(view, largest(view, np.abs(view.original) * np.sqrt(np.diag(view.gram))), refit)
