"""Local search of sets of inputs by exchanges, as the searches and a heuristic use it."""

from __future__ import annotations

from typing import Any

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.pruning import subset


def improved(
    gram: Float, b: Float, energy: float, group: Int, capacity: Int, chosen: Bool, kicks: int, near: Int, state: Any
) -> Bool:
    """A set with at most the error of ``chosen``, shape (n,): that itself where nearly dependent inputs divide by zero.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    b : ndarray of shape (n,)
        H w.
    energy : float
        wᵀHw.
    group, capacity
        Of the inputs' groups.
    chosen : ndarray of bool, shape (n,)
    kicks : int
        Restarts from changed sets.
    near : ndarray of int64
        Inputs that depend on each input most.
    state : ndarray
        Of the random numbers; it moves on.
    """
    result = chosen.copy()
    try:
        subset.improve(gram, b, energy, group, capacity, result, kicks, near, state)
    except ZeroDivisionError:
        return chosen
    return result
