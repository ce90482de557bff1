"""Large-neighbourhood search with kicks around the compiled rounds."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.quantization.neighbourhood import search_neighbourhoods

#: Nodes of one exact enumeration over a subset, and calls without success before a kick.
BUDGET, STALLED = 20_000, 5


class Neighbourhoods:
    """Iterated large-neighbourhood search; its state lives on between calls.

    Rounds of exact enumeration over subsets lead to a point that none of them improves; then a few variables of the
    best point are moved by one level and the rounds start again (iterated local search, Lourenço et al. 2003).

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    table : ndarray of shape (n, levels)
        Sorted levels, padded with the last one.
    count : ndarray of int64, shape (n,)
    choice : ndarray of int64, shape (n,)
        Level indices to start from.
    value : float
        Their objective.
    rng : numpy.random.Generator
    covariance : ndarray of shape (n, n), optional
        Inverse of the Gram matrix; some subsets then gather variables related in it.

    Attributes
    ----------
    value : float
        Objective of the best point.
    best : ndarray of int64, shape (n,)
    rounds : int
        Subsets of one call of `improve`.
    """

    rounds = 25

    def __init__(
        self,
        gram: Float,
        target: Float,
        table: Float,
        count: Int,
        choice: Int,
        value: float,
        rng: np.random.Generator,
        covariance: Float | None = None,
    ) -> None:
        self.value, self.best = value, choice.astype(np.int64)
        self._gram, self._target, self._table, self._count = gram, target, np.ascontiguousarray(table), count
        self._current = self.best.copy()
        related = normalised(gram)
        self._relations = (related, related if covariance is None else normalised(covariance))
        self._size = np.array([min(16.0, float(len(target)))])
        self._stalled = 0
        self._rng = rng

    def improve(self) -> bool:
        """Work for `rounds` subsets; True when the best point improved."""
        rng = self._rng
        if self._stalled >= STALLED:
            self._kick()
        relation = self._relations[int(rng.random() < 0.3)]
        try:
            value, improvements = search_neighbourhoods(
                self._gram, self._target, relation, self._table, self._count, self._current, self._size, self.rounds,
                BUDGET, int(rng.integers(2**31)),
            )  # fmt: skip
        except ZeroDivisionError:
            # A subset of dependent variables: their Gram matrix has no inverse.
            self._current = self.best.copy()
            self._stalled += 1
            return False
        self._stalled = 0 if improvements else self._stalled + 1
        if value < self.value * (1.0 - 1e-12):
            self.value, self.best = float(value), self._current.copy()
            return True
        return False

    def adopt(self, value: float, choice: Int) -> None:
        """Continue from a better point that was found elsewhere."""
        if value < self.value:
            self.value, self.best, self._current = value, choice.copy(), choice.copy()
            self._stalled = 0

    def _kick(self) -> None:
        self._stalled = 0
        if self._rng.random() < 0.7:
            self._current = self.best.copy()
        kick(self._current, self._count, self._rng)


def kick(choice: Int, count: Int, rng: np.random.Generator) -> None:
    """Move a few variables by one level, within their numbers of levels, in place."""
    n = len(choice)
    moved = rng.choice(n, size=min(n, int(rng.integers(3, 9))), replace=False)
    steps = rng.choice([-1, 1], size=len(moved))
    choice[moved] = np.clip(choice[moved] + steps, 0, count[moved] - 1)


def normalised(matrix: Float) -> Float:
    """With a diagonal of ones."""
    norms = np.sqrt(np.diag(matrix))
    return np.asarray(matrix / np.outer(norms, norms))
