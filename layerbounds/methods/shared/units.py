"""Greedy choices of units and exchanges, compiled, for a view."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Bool
from layerbounds.kernels.successive import damped
from layerbounds.methods.pruning import PruningView
from layerbounds.search.shared.incumbents import UnitSearch

#: An exchange must take this share of the energy from the error: less is rounding.
GAIN = 1e-11


class Units:
    """Choices of a view's units by the error after a refit of all rows.

    Parameters
    ----------
    view : PruningView
    damp : float
        Share of the mean diagonal that is added to the diagonal.
    """

    def __init__(self, view: PruningView, damp: float = 0.0) -> None:
        self._view = view
        gram = damped(view.gram, damp) if damp else view.gram
        unit = view.structure.unit
        order = np.argsort(unit, kind="stable")
        edge = np.searchsorted(unit[order], np.arange(len(view.structure.group) + 1)).astype(np.int64)
        norm = np.sqrt(np.diag(gram))[order]
        scaled = np.ascontiguousarray(gram[np.ix_(order, order)] / norm[:, None] / norm[None, :])
        rows = np.atleast_2d(view.target)[:, order] * norm
        b = scaled @ rows.T
        self._least = GAIN * float(np.sum(rows.T * b))
        self._search = UnitSearch(scaled, rows.T @ rows, b @ b.T, edge, order, view.structure)

    def forward(self) -> Bool:
        """Keep the unit that takes most from the error, one after the other; shape (units,)."""
        return self._search.forward()

    def backward(self) -> Bool:
        """Drop the unit that adds least to the error, one after the other; shape (units,)."""
        return self._search.backward()

    def exchanged(self, kept: Bool, kicks: int = 0) -> Bool:
        """Best exchanges of single units until none helps, then kicks that are undone where they do not help."""
        state = self._view.rng.integers(1, 2**63, size=1, dtype=np.uint64)
        return self._search.improved(kept, self._least, kicks, state)
