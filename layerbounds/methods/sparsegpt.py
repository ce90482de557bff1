"""SparseGPT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import InputError
from layerbounds.methods.pruning import PruningView, finish_pass, inverse_factor, single_inputs


def sparsegpt(view: PruningView, damp: float = 0.01, block_size: int = 128, refit: bool = False) -> Float:
    """Go through the inputs once; choose masks block by block, and spread each removed weight over the later ones.

    Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (ICML 2023),
    algorithm 1 for one output channel; N:M chooses each group when its first input is reached. The damping only steers
    the method; its result is scored on the undamped Gram.

    Parameters
    ----------
    view : PruningView
    damp : float
        Fraction of the mean diagonal added to the Gram matrix.
    block_size : int
        Inputs whose mask is chosen at once (unstructured); each block keeps the same fraction.
    refit : bool
        Re-optimise the kept weights at the end; the paper does not.
    """
    weights, kept = one_pass(view, "sparsegpt", damp, block_size)
    return finish_pass(view, kept, weights, refit)


def one_pass(
    view: PruningView,
    name: str,
    damp: float,
    block_size: int,
    rounded: Callable[[int, float], float] = lambda i, weight: weight,
) -> tuple[Float, Bool]:
    """The pass of a method called ``name``: weights and mask; kept weights become what ``rounded`` says."""
    single_inputs(view, name)
    if not damp >= 0 or block_size < 1:
        raise InputError(f"damp is {damp} and block_size {block_size}; pass a fraction ≥ 0 and a positive number.")
    structure, n = view.structure, len(view.target)
    upper = inverse_factor(view.gram, damp)
    weights = view.target.copy()
    kept = np.ones(n, dtype=bool)
    if len(structure.capacity) == 1:
        edges = np.arange(0, n + block_size, block_size).clip(max=n)
        # Rounded cumulatively, so that the numbers add up to the capacity.
        until = np.floor(structure.capacity[0] * edges / n + 1e-9).astype(int)
        plan = {
            int(a): (np.arange(a, b), int(v - u))
            for a, b, u, v in zip(edges, edges[1:], until, until[1:], strict=False)
        }
    else:
        plan = {}
        for group, capacity in enumerate(structure.capacity):
            members = np.flatnonzero(structure.group[structure.unit] == group)
            plan[int(members[0])] = (members, int(capacity))
    for i in range(n):
        if i in plan:
            members, capacity = plan[i]
            score = (weights[members] / np.diag(upper)[members]) ** 2
            kept[members[np.argsort(-score, kind="stable")[capacity:]]] = False
        value = rounded(i, float(weights[i])) if kept[i] else 0.0
        if value != weights[i]:
            weights[i:] -= (weights[i] - value) / upper[i, i] * upper[i, i:]
            weights[i] = value
    return weights, kept
