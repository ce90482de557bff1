"""Iterative hard thresholding."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.methods.pruning import PruningView, finish, largest


def hard_thresholding(view: PruningView, steps: int = 300) -> Float:
    """Gradient steps of length 1/λ_max, each followed by the projection onto the pattern; refit at the end.

    Blumensath & Davies, "Iterative hard thresholding for compressed sensing" (2009); for best subset selection
    Bertsimas, King & Mazumder, "Best subset selection via a modern optimization lens" (2016), algorithm 1. Inputs are
    normalised to equal energy.

    Parameters
    ----------
    view : PruningView
    steps : int
        Largest number of steps.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; pass a positive number.")
    scale = np.sqrt(np.diag(view.gram))
    gram = view.gram / np.outer(scale, scale)
    target = view.target * scale
    length = 1.0 / float(np.linalg.eigvalsh(gram)[-1])
    mask = largest(view, target)
    point = np.where(mask, target, 0.0)
    for _ in range(steps):
        moved = point - length * ((point - target) @ gram)
        kept = largest(view, moved)
        new = np.where(kept, moved, 0.0)
        if np.array_equal(kept, mask) and np.allclose(new, point, rtol=1e-6, atol=0.0):
            break
        point, mask = new, kept
    return finish(view, mask)
