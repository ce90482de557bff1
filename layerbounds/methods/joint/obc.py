"""Optimal brain compression, both halves."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.joint.view import JointView
from layerbounds.methods.obq import obq
from layerbounds.methods.obs import obs


def obc(view: JointView, damp: float = 0.01, outliers: bool = True) -> Float:
    """Remove inputs one by one by OBS, then round the others one by one by OBQ.

    Frantar & Alistarh, "Optimal Brain Compression" (NeurIPS 2022), algorithm 1 (its block form for blocks), then
    algorithm 3 on what is kept, as in their joint experiments.

    Parameters
    ----------
    view : JointView
    damp : float
        Of OBQ: fraction of the mean diagonal added before the inversion; raised tenfold while that breaks down.
    outliers : bool
        Round a weight beyond the last level by more than half of the last gap as soon as it appears.
    """
    pruned = obs(view.pruning(view.target, view.original, True))
    inputs = np.flatnonzero(pruned)
    result = np.zeros(len(pruned))
    if len(inputs):
        result[inputs] = obq(view.quantization(inputs, pruned[inputs]), damp=damp, outliers=outliers)
    return result
