"""Single inputs and integer forms with fixed weights: the best multipliers on any box of codes, and its bound.

The method of layerbounds.bounds.minorants.alternating, compiled: only the box differs, so that all share one inverse.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.alternating import RELAXATION, WITH_FORMS, penalized_inverse
from layerbounds.bounds.quantization.cuts import by_columns
from layerbounds.bounds.quantization.split_relaxation import SplitWeights
from layerbounds.kernels.factorization import UNIT
from layerbounds.kernels.quantization.box_tree import bound, iterate


class SplitBoxes:
    """What bounds boxes. A state is y and u of the units, then of the forms, in one array.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    origin : ndarray of shape (n,)
        w.
    split : SplitWeights
        Proven.

    Attributes
    ----------
    usable : bool
        False where a matrix cannot be factorized.
    """

    #: Iterations at the root, at a node, and more of them where a child is no better than its parent.
    first, each, more = 400, 20, 40

    def __init__(self, gram: Float, origin: Float, split: SplitWeights) -> None:
        self._gram, self._origin, self._split = gram, origin, split
        self._columns = by_columns(split.forms)
        inverse = penalized_inverse(gram, split.units, csr_array(split.forms), split.weights, WITH_FORMS, WITH_FORMS)
        self.usable = inverse is not None
        self._inverse = np.zeros((0, 0)) if inverse is None else np.ascontiguousarray(inverse)
        self._pull = gram @ origin

    def start(self, z: Float) -> Float:
        """At a point of the box."""
        return np.concatenate([z, np.zeros(len(z)), z @ self._split.forms, np.zeros(len(self._split.weights))])

    def iterate(self, low: Float, high: Float, state: Float, z: Float, count: int) -> None:
        """So many steps on a box; state and z change."""
        split = self._split
        iterate(
            self._inverse, self._pull, split.units, split.weights, *self._columns, low, high, WITH_FORMS, RELAXATION,
            state, z, count,
        )  # fmt: skip

    def bound(self, low: Float, high: Float, state: Float, z: Float, cut: float) -> float:
        """The bound of a box; end levels at which it reaches the cut are dropped from the box."""
        split = self._split
        return float(
            bound(
                self._gram, self._origin, split.units, split.weights, *self._columns, low, high, WITH_FORMS, UNIT,
                state, z, cut,
            )
        )  # fmt: skip

    def multipliers(self, state: Float, z: Float) -> Float:
        """Of the forms, at a state and a point."""
        of_forms = state[2 * len(z) + len(self._split.weights) :]
        return np.asarray(self._split.weights * (z @ self._split.forms - WITH_FORMS * of_forms))

    def set_multipliers(self, state: Float, z: Float, multipliers: Float) -> None:
        """Make a state one with these multipliers at a point."""
        forms, weights = self._split.forms, self._split.weights
        at = np.divide(multipliers, weights, out=np.zeros(len(weights)), where=weights > 0)
        state[2 * len(z) + len(weights) :] = (z @ forms - at) / WITH_FORMS
