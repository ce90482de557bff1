"""Swap local search."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.pruning.masks import descend_mask
from layerbounds.methods.magnitude import magnitude
from layerbounds.methods.obs import obs
from layerbounds.methods.pruning import PruningView, finish, single_inputs
from layerbounds.methods.wanda import wanda
from layerbounds.search.pruning.correlated_inputs import nearest_inputs
from layerbounds.search.pruning.exchanges import improved

STARTS = {"magnitude": magnitude, "wanda": wanda, "obs": obs}


def swap(view: PruningView, start: str = "obs", kicks: int = 100) -> Float:
    """Exchange one kept input for a dropped one while that helps; then random exchanges, kept where they help.

    Exchanges: Beale, Kendall & Mann, "The discarding of variables in multivariate analysis" (Biometrika 1967), each
    judged in O(1) on the full sweep tableau. Kicks: iterated local search, Lourenço, Martin & Stützle (2003), of any
    inputs and, in turn, walks of kicks of correlated ones. A mask-only problem is searched without kicks.

    Parameters
    ----------
    view : PruningView
    start : {"obs", "magnitude", "wanda"}
    kicks : int
    """
    single_inputs(view, "swap")
    if start not in STARTS:
        raise InputError(f"start is {start!r}; choose {', '.join(map(repr, STARTS))}.")
    chosen = STARTS[start](view) != 0.0
    group, capacity = view.structure.group[view.structure.unit], view.structure.capacity
    b = view.gram @ view.target
    if not view.refit:
        a = np.ascontiguousarray(view.gram * np.outer(view.original, view.original))
        descend_mask(a, view.original * b, group, capacity, chosen, 100 * len(chosen))
        return finish(view, chosen)
    state = view.rng.integers(1, 2**63, size=1, dtype=np.uint64)
    energy = max(float(view.target @ b), 0.0)
    gram = np.ascontiguousarray(view.gram)
    chosen = improved(gram, b, energy, group, capacity, chosen, int(kicks), nearest_inputs(gram), state)
    return finish(view, chosen)
