"""SparseSwaps."""

from __future__ import annotations

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.methods.magnitude import magnitude
from layerbounds.methods.obs import obs
from layerbounds.methods.pruning import PruningView, finish
from layerbounds.methods.shared.masks import unit_form
from layerbounds.methods.wanda import wanda

STARTS = {"wanda": wanda, "magnitude": magnitude, "obs": obs}


def sparseswaps(view: PruningView, start: str = "wanda", iterations: int = 1000, refit: bool = False) -> Float:
    """Exchange the kept and the dropped unit that lower the error most, kept weights left as they are, while one does.

    Zimmer et al., "SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale" (arXiv 2512.10922): with the Gram
    matrix the change of the error is known exactly for all pairs, and the error never rises above the start's. The
    number of kept units stays that of the start.

    Parameters
    ----------
    view : PruningView
    start : {"wanda", "magnitude", "obs"}
        The first mask.
    iterations : int
        Most exchanges; it ends earlier where none helps.
    refit : bool
        Re-optimise the kept weights at the end, where the problem allows it; the paper does not.
    """
    one_of(start, "start", tuple(STARTS))
    if iterations < 0:
        raise InputError(f"iterations is {iterations}; pass a number of exchanges ≥ 0.")
    structure = view.structure
    begun = np.any(np.atleast_2d(STARTS[start](view)) != 0.0, axis=0)
    kept = structure.kept_units(begun[None].astype(np.float64))[0]
    matrix, linear = unit_form(view)
    diagonal = np.diag(matrix)
    # The part that keeping one more unit costs is diagonal + 2 slope, what dropping one costs diagonal − 2 slope.
    slope = matrix @ kept - linear
    least = 1e-13 * float(np.max(diagonal, initial=0.0))
    for _ in range(iterations):
        out, into = np.flatnonzero(kept), np.flatnonzero(~kept)
        if not len(out) or not len(into):
            break
        change = (
            (diagonal - 2.0 * slope)[out][:, None] + (diagonal + 2.0 * slope)[into] - 2.0 * matrix[np.ix_(out, into)]
        )
        change[structure.group[out][:, None] != structure.group[into]] = np.inf
        p, u = np.unravel_index(int(np.argmin(change)), change.shape)
        if not change[p, u] < -least:
            break
        slope += matrix[into[u]] - matrix[out[p]]
        kept[out[p]], kept[into[u]] = False, True
    return finish(view, kept[structure.unit], refit)
