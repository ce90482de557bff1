"""Optimal brain surgeon, greedy."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.base import check_damp
from layerbounds.methods.pruning import PruningView, damped_inverse, finish
from layerbounds.methods.shared.units import Units


def obs(view: PruningView, damp: float = 0.0) -> Float:
    """Remove the unit whose removal costs least after the others are re-optimised, until the pattern holds.

    Hassibi & Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (NeurIPS 1992); per output
    channel and exact as in Frantar & Alistarh, "Optimal Brain Compression" (NeurIPS 2022), algorithm 1 and its block
    form; of units that several channels share as in Kurtic, Frantar & Alistarh, "ZipLM" (NeurIPS 2023).

    Parameters
    ----------
    view : PruningView
    damp : float
        Fraction of the mean diagonal added for the choice of the mask; the result is refitted without it.
    """
    check_damp(damp)
    structure = view.structure
    if view.target.ndim > 1:
        return finish(view, Units(view, damp).backward()[structure.unit])
    inverse = damped_inverse(view.gram, damp)
    weights = view.target.copy()
    units = len(structure.group)
    members = [np.flatnonzero(structure.unit == g) for g in range(units)]
    kept = np.ones(units, dtype=bool)
    excess = np.bincount(structure.group, minlength=len(structure.capacity)) - structure.capacity
    single = units == len(weights)
    while np.any(excess > 0):
        open_units = np.flatnonzero(kept & (excess[structure.group] > 0))
        if single:
            loss = weights[open_units] ** 2 / np.maximum(np.diag(inverse)[open_units], 1e-300)
        else:
            loss = np.array(
                [weights[m] @ np.linalg.pinv(inverse[np.ix_(m, m)]) @ weights[m] for m in _at(members, open_units)]
            )
        unit = int(open_units[np.argmin(loss)])
        m = members[unit]
        columns = np.linalg.pinv(inverse[np.ix_(m, m)]) @ inverse[m]
        weights -= columns.T @ weights[m]
        inverse -= inverse[:, m] @ columns
        kept[unit] = False
        excess[structure.group[unit]] -= 1
        weights[m] = 0.0
        inverse[m] = 0.0
        inverse[:, m] = 0.0
    return finish(view, kept[structure.unit])


def _at(members: list[np.ndarray], units: np.ndarray) -> list[np.ndarray]:
    return [members[u] for u in units]
