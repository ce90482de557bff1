"""Optimal brain surgeon, greedy."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.pruning import PruningView, damped_inverse, finish


def obs(view: PruningView, damp: float = 0.0) -> Float:
    """Remove the unit whose removal costs least after the others are re-optimised, until the pattern holds.

    Hassibi & Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (NeurIPS 1992); per output
    channel and exact as in Frantar & Alistarh, "Optimal Brain Compression" (NeurIPS 2022), algorithm 1 and its block
    form.

    Parameters
    ----------
    view : PruningView
    damp : float
        Fraction of the mean diagonal added for the choice of the mask; the result is refitted without it.
    """
    structure = view.structure
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
