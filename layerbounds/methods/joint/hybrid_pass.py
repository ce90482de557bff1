"""SparseGPT with rounding in the same pass."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.joint.view import JointView
from layerbounds.methods.sparsegpt import one_pass
from layerbounds.problems.levels import nearest_levels


def sparsegpt_joint(view: JointView, damp: float = 0.01, block_size: int = 128) -> Float:
    """Go through the inputs once; drop or round each, and spread its error over the later ones.

    Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (ICML 2023), section
    3.5: masks as without rounding, and the error of a kept weight's rounding is passed on together with those of the
    removed ones.

    Parameters
    ----------
    view : JointView
    damp : float
        Fraction of the mean diagonal added to the Gram matrix.
    block_size : int
        Inputs whose mask is chosen at once (unstructured); each block keeps the same fraction.
    """
    levels = view.allowed.levels.values

    def rounded(i: int, weight: float) -> float:
        return float(nearest_levels(levels[i : i + 1], np.array([weight]))[0])

    pruning = view.pruning(view.target, view.original, True)
    return one_pass(pruning, "sparsegpt_joint", damp, block_size, rounded)[0]
