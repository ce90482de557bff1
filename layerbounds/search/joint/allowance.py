"""How much rounding can have hidden from an enumeration of supports and levels (derivation: docs/numerics.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import UNIT


@dataclass(frozen=True, eq=False)
class StartOfNode:
    """The point from which a node's search starts, the free inputs in the order of the search.

    Attributes
    ----------
    value : float
        f̂(x), computed in float64.
    size : float
        Σ ν_i|x_i − w_i| over all inputs.
    inputs : int
        Number of all inputs, the fixed ones included.
    z, gradient : ndarray of shape (m,)
        The free part of x, and of H(x − w).
    norm : ndarray of shape (m,)
        ν.
    low, high : ndarray of shape (m,)
        Ends of the lists, zero included where it is allowed.
    level_error : ndarray of shape (m,)
        By how much a level of the search can differ from the weight.
    shift : ndarray of shape (m,)
        What the diagonal of the Gram matrix was raised by.
    d : ndarray of shape (m,)
        The largest entry of the minorants of all depths.
    covariance, shift_error : ndarray of shape (m,)
        As computed by `factors_of_node`.
    """

    value: float
    size: float
    inputs: int
    z: Float
    gradient: Float
    norm: Float
    low: Float
    high: Float
    level_error: Float
    shift: Float
    d: Float
    covariance: Float
    shift_error: Float

    @property
    def psi(self) -> float:
        """f̂ − 2hᵀz."""
        return self.value - 2.0 * float(self.gradient @ self.z)

    @property
    def most(self) -> Float:
        """Largest magnitude of each weight."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def radius(self, cut: float) -> float:
        """R²: for points below the cut, the squared distance to a node's centre in the norm of the Gram matrix."""
        floor = self.psi + 2.0 * float(np.sum(np.minimum(self.gradient * self.low, self.gradient * self.high)))
        size = abs(cut) + abs(self.value) + 2.0 * float(np.abs(self.gradient) @ (self.most + np.abs(self.z)))
        return 1.125 * (max(cut - floor, 0.0) + 2.0**-20 * size)

    def allowance(self, cut: float, price: float, reach: Float) -> float:
        """Bound on f̂ − f for every point of the node whose exact objective is below the cut.

        Parameters
        ----------
        cut : float
            The largest one that the search has had.
        price : float
            The largest price of the capacity.
        reach : ndarray of shape (m,)
            Largest move of each input from its centre.

        Returns
        -------
        float
            Infinite where rounding is beyond what the derivation covers.
        """
        m = len(self.z)
        squared = self.radius(cut)
        radius = float(np.sqrt(squared))
        most = self.most
        farthest = np.maximum(np.abs(self.low - self.z), np.abs(self.high - self.z))
        size = np.abs(self.gradient)
        # The start: f̂(x), its gradient, the shift, levels as multiples of steps, psi.
        n = self.inputs
        start = 4.0 * (n + 16) * UNIT * self.size**2
        start += 4.0 * (n + 16) * UNIT * self.size * float(self.norm @ farthest)
        start += 1.0001 * float(self.shift @ farthest**2)
        moved = float(self.norm @ self.level_error)
        start += 2.0 * float(size @ self.level_error) + 2.0 * radius * moved + moved**2
        start += 8.0 * UNIT * (m + 8) * (abs(self.value) + 2.0 * float(size @ np.abs(self.z)))
        # The path: inexact shifts, rounded centres, partial sums.
        inexact = 2.0 * radius * float(self.shift_error @ reach)
        extent = most + radius * np.sqrt(self.covariance)
        rounding = 8.0 * UNIT * float(self.norm @ extent)
        centres = (m + 1) * (2.0 * radius * rounding + rounding**2)
        tilts = 2.0 * float(size @ most)
        partial = abs(cut) + tilts + 2.0 * squared
        levels = float(np.sqrt(self.d @ most**2))
        away = levels + radius
        terms = (away + levels) ** 2 + tilts + 2.0 * m * price
        sums = 8.0 * UNIT * m * partial + 16.0 * UNIT * (m + 16) * (partial + terms)
        total = 2.0 * (start + inexact + centres + sums)
        return total if total <= squared / 9.0 else np.inf
