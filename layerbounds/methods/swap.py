"""Swap local search."""

from __future__ import annotations

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.kernels.pruning.masks import descend_mask
from layerbounds.methods.magnitude import magnitude
from layerbounds.methods.obs import obs
from layerbounds.methods.pruning import PruningView, finish
from layerbounds.methods.shared.forward import forward
from layerbounds.methods.shared.masks import unit_form
from layerbounds.methods.shared.units import Units
from layerbounds.methods.wanda import wanda
from layerbounds.search.pruning.correlated_inputs import nearest_inputs
from layerbounds.search.pruning.exchanges import improved

STARTS = {"magnitude": magnitude, "wanda": wanda, "obs": obs, "forward": forward}


def swap(view: PruningView, start: str = "obs", kicks: int = 100) -> Float:
    """Exchange a kept unit for a dropped one while that helps; then random exchanges, kept where they help.

    Exchanges: Beale, Kendall & Mann, "The discarding of variables in multivariate analysis" (Biometrika 1967), each
    judged on the full sweep tableau. Kicks: iterated local search, Lourenço, Martin & Stützle (2003), of any
    inputs and, where units are single inputs of one channel, in turn walks of kicks of correlated ones. A mask-only
    problem is searched without kicks.

    Parameters
    ----------
    view : PruningView
    start : {"obs", "magnitude", "wanda", "forward"}
    kicks : int
    """
    one_of(start, "start", tuple(STARTS))
    structure = view.structure
    begun = np.any(np.atleast_2d(STARTS[start](view)) != 0.0, axis=0)
    kept = structure.kept_units(begun[None].astype(np.float64))[0]
    if not view.refit:
        descend_mask(*unit_form(view), structure.group, structure.capacity, kept, 100 * len(kept))
        return finish(view, kept[structure.unit])
    if view.target.ndim == 1 and len(structure.group) == len(structure.unit):
        group, capacity = structure.group[structure.unit], structure.capacity
        state = view.rng.integers(1, 2**63, size=1, dtype=np.uint64)
        gram = np.ascontiguousarray(view.gram)
        b = gram @ view.target
        energy = max(float(view.target @ b), 0.0)
        return finish(view, improved(gram, b, energy, group, capacity, begun, int(kicks), nearest_inputs(gram), state))
    return finish(view, Units(view).exchanged(kept, int(kicks))[structure.unit])
