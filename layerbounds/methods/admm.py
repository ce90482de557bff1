"""ADMM in the form of ALPS."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.methods.pruning import PruningView, finish, largest


def admm(view: PruningView, steps: int = 300, growth: float = 1.1) -> Float:
    """Alternate a ridge solve and the projection onto the pattern with a growing penalty; refit at the end.

    Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models" (NeurIPS
    2024), algorithm 1 with ρ raised every three steps while the mask still changes; their conjugate gradients on the
    final mask are an exact refit here. Inputs are normalised to equal energy, as there.

    Parameters
    ----------
    view : PruningView
    steps : int
        Largest number of steps.
    growth : float
        Factor of ρ.
    """
    if steps < 1 or not growth > 1:
        raise InputError(f"steps is {steps} and growth {growth}; pass a positive number and a factor above 1.")
    scale = np.sqrt(np.diag(view.gram))
    gram = view.gram / np.outer(scale, scale)
    target = view.target * scale
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0.0)
    right = target @ gram
    rho = 0.1
    sparse = target.copy()
    dual = np.zeros_like(target)
    mask = largest(view, target)
    for step in range(steps):
        dense = (((right - dual + rho * sparse) @ vectors) / (values + rho)) @ vectors.T
        shifted = dense + dual / rho
        kept = largest(view, shifted)
        sparse = np.where(kept, shifted, 0.0)
        dual = dual + rho * (dense - sparse)
        if step % 3 == 2:
            if np.array_equal(kept, mask) and np.linalg.norm(dense - sparse) < 1e-4 * np.linalg.norm(target):
                break
            mask = kept
            rho *= growth
    return finish(view, kept)
