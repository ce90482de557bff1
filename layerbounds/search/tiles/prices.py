"""Prices on what rows keep: what they cost a band, and the program that proposes the next ones (docs/tiles.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import scipy.sparse
from scipy.optimize import linprog

from layerbounds.arrays import Bool, Float
from layerbounds.problems.tiled_support import TiledSupport

#: A set that a row may keep, and its error.
Pool = Sequence[tuple[Bool, float]]


class Prices(ABC):
    """A family of prices x ≥ 0 of a band, linear in the prices of rows and inputs.

    Parameters
    ----------
    allowed : TiledSupport
    """

    def __init__(self, allowed: TiledSupport) -> None:
        self.allowed = allowed
        self.rows, self.n = allowed.original.shape

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers x has."""

    @abstractmethod
    def spread(self, x: Float) -> Float:
        """Prices of rows and inputs, shape (rows, n)."""

    @abstractmethod
    def gather(self, weight: Float) -> Float:
        """The derivative by x of Σ price · weight, weights of shape (rows, n)."""

    @abstractmethod
    def largest(self, x: Float) -> tuple[float, Float]:
        """Largest total price of an allowed mask, or more, and its derivative by x."""

    def charged(self, x: Float) -> Fraction:
        """`largest`, exactly: what comes off a proven bound."""
        return self.charged_for(self.spread(x))

    def charged_for(self, prices: Float) -> Fraction:
        """The same for prices of rows and inputs, shape (rows, n)."""
        limits = self.allowed.limits
        total = Fraction(0)
        per_input = [
            sum(sorted(map(Fraction, column.tolist()), reverse=True)[:most], Fraction(0))
            for column, most in zip(prices.T, limits.most.tolist(), strict=True)
        ]
        for group, capacity in enumerate(limits.columns.capacity.tolist()):
            inside = [per_input[i] for i in np.flatnonzero(limits.columns.group == group)]
            total += sum(sorted(inside, reverse=True)[:capacity], Fraction(0))
        return total

    @abstractmethod
    def program(self) -> tuple[Float, scipy.sparse.csr_array, int]:
        """`largest` as least cost·(x, y) over free y with A(x, y) ≤ 0: the cost, A and how many y there are."""

    def propose(self, pools: Sequence[Pool], centre: Float, reach: Float) -> tuple[Float, float] | None:
        """Prices near ``centre`` that are best for the sets known so far, and what they would prove; None if none are.

        Parameters
        ----------
        pools : sequence of list
            Of each row: the sets and their errors.
        centre, reach : ndarray
            Prices, and how far each may move.
        """
        cost, inside, extra = self.program()
        parts, right, many = [], [], self.rows
        for row, pool in enumerate(pools):
            flags = np.array([kept for kept, _ in pool])
            one = np.zeros((len(pool), many))
            one[:, row] = 1.0
            parts.append(_beside(_sparse(one), -self.rows_of(row, flags), _nothing(len(pool), extra)))
            right += [error for _, error in pool]
        if inside.shape[0]:
            parts.append(_beside(_nothing(inside.shape[0], many), inside))
            right += [0.0] * inside.shape[0]
        # Errors of far smaller size than 1 would drown in the solver's tolerances.
        scale = max(right) or 1.0
        bounds = [(None, None)] * many
        bounds += list(zip(np.maximum(centre - reach, 0.0) / scale, (centre + reach) / scale, strict=True))
        bounds += [(None, None)] * extra
        objective = np.concatenate([-np.ones(many), cost])
        found = linprog(objective, scipy.sparse.vstack(parts), np.array(right) / scale, bounds=bounds, method="highs")
        if found.x is None:
            return None
        return np.maximum(found.x[many : many + self.size], 0.0) * scale, -float(found.fun) * scale

    @abstractmethod
    def rows_of(self, row: int, flags: Bool) -> scipy.sparse.csr_array:
        """Which prices sets of a row pay, shape (sets, size)."""


class ColumnPrices(Prices):
    """One price for each input, the same in all rows: of limits by the number of rows that keep an input."""

    @property
    def size(self) -> int:
        """As many as inputs."""
        return int(self.n)

    def spread(self, x: Float) -> Float:
        """The same in all rows."""
        return np.tile(x, (self.rows, 1))

    def gather(self, weight: Float) -> Float:
        """Summed over the rows."""
        return np.asarray(weight.sum(axis=0))

    def largest(self, x: Float) -> tuple[float, Float]:
        """Every input as often as it may be kept."""
        most = np.minimum(self.allowed.limits.most, self.rows).astype(np.float64)
        return float(most @ x), most

    def program(self) -> tuple[Float, scipy.sparse.csr_array, int]:
        """Linear as it is."""
        most = np.minimum(self.allowed.limits.most, self.rows).astype(np.float64)
        return most, scipy.sparse.csr_array((0, self.n)), 0

    def rows_of(self, row: int, flags: Bool) -> scipy.sparse.csr_array:
        """The flags."""
        return scipy.sparse.csr_array(flags.astype(np.float64))


class EntryPrices(Prices):
    """A price for each row and input: of limits on the inputs that all rows together may keep."""

    @property
    def size(self) -> int:
        """Rows times inputs."""
        return int(self.rows * self.n)

    def spread(self, x: Float) -> Float:
        """As they are."""
        return x.reshape(self.rows, self.n)

    def gather(self, weight: Float) -> Float:
        """As they are."""
        return weight.ravel()

    def largest(self, x: Float) -> tuple[float, Float]:
        """In each group the inputs of largest total price, each kept by all rows."""
        total = x.reshape(self.rows, self.n).sum(axis=0)
        used = self.allowed.limits.columns.keep_largest(total)
        return float(total[used].sum()), np.tile(used.astype(np.float64), self.rows)

    def program(self) -> tuple[Float, scipy.sparse.csr_array, int]:
        """Σ capacity·λ + Σ e with e ≥ 0 and e_i ≥ Σ_r p_ri − λ of the input's group."""
        columns = self.allowed.limits.columns
        groups = len(columns.capacity)
        one = scipy.sparse.eye_array(self.n, format="csr")
        member = np.zeros((self.n, groups))
        member[np.arange(self.n), columns.group] = 1.0
        above = _beside(*[one] * self.rows, -_sparse(member), -one)
        positive = _beside(_nothing(self.n, self.size + groups), -one)
        least = _beside(_nothing(groups, self.size), -_sparse(np.eye(groups)), _nothing(groups, self.n))
        cost = np.concatenate([np.zeros(self.size), columns.capacity.astype(np.float64), np.ones(self.n)])
        return cost, scipy.sparse.csr_array(scipy.sparse.vstack([above, positive, least])), groups + self.n

    def rows_of(self, row: int, flags: Bool) -> scipy.sparse.csr_array:
        """The flags at the row's place."""
        before, after = (_nothing(len(flags), many * self.n) for many in (row, self.rows - row - 1))
        return _beside(before, _sparse(flags.astype(np.float64)), after)


def _sparse(matrix: Float) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(matrix)


def _nothing(rows: int, columns: int) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((rows, columns))


def _beside(*parts: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(scipy.sparse.hstack(parts))


def prices_of(allowed: TiledSupport) -> Prices:
    """The family of prices that the limits of a band ask for."""
    columns = allowed.limits.columns
    sizes = np.bincount(columns.group, minlength=len(columns.capacity))
    return EntryPrices(allowed) if np.any(columns.capacity < sizes) else ColumnPrices(allowed)
