"""Whether decoded weights look like the dense ones with rows or columns scaled: a reason to doubt, not a proof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float

#: Factors of rows or columns count as more than quantization does by chance where they explain this share of the
#: difference between two matrices, so much more the shorter a row or column is, and so many times what they explain of
#: the dense weights rounded to the same grid (docs/score.md).
_SHARE, _BY_CHANCE, _ROUNDED = 0.1, 2.0, 1.5
#: Rows or columns shorter than this say nothing.
_SHORTEST = 8


@dataclass(frozen=True)
class Scaled:
    """How much factors of each row, or each column, explain.

    Attributes
    ----------
    share : float
        Of the squared difference, 0 to 1, beyond one factor of all.
    length : int
        Entries of a column, or row.
    smallest, largest : float
        The 5th and 95th percentile of the factors.
    """

    share: float
    length: int
    smallest: float
    largest: float

    def beyond(self, rounded: Scaled | None = None) -> bool:
        """Whether it is too much for quantization.

        Parameters
        ----------
        rounded : Scaled, optional
            The same of the dense weights, rounded to the grid: coarse ones lose small columns, for example.
        """
        least = _SHARE + _BY_CHANCE / max(self.length, 1)
        return self.share > least + (0.0 if rounded is None else _ROUNDED * rounded.share)


def column_factors(weights: Float, dense: Float) -> Scaled:
    """Least-squares factors of the columns that bring dense weights, shape (out, n), nearest to others."""
    out = dense.shape[0]
    square, mixed = np.sum(dense * dense, axis=0), np.sum(weights * dense, axis=0)
    used = square > 0
    if out < _SHORTEST or not used.any():
        return Scaled(0.0, out, 1.0, 1.0)
    factors = mixed[used] / square[used]
    common = float(mixed[used].sum() / square[used].sum())
    left = float(np.sum(weights[:, used] ** 2) - 2.0 * common * mixed[used].sum() + common**2 * square[used].sum())
    gain = float(np.sum((factors - common) ** 2 * square[used]))
    share = gain / left if left > 0 else 0.0
    low, high = np.quantile(factors, [0.05, 0.95])
    return Scaled(min(share, 1.0), out, float(low), float(high))


def row_factors(weights: Float, dense: Float) -> Scaled:
    """The same for the rows."""
    return column_factors(weights.T, dense.T)


def alike(weights: Float, dense: Float) -> float:
    """The cosine between two matrices."""
    size = float(np.linalg.norm(weights) * np.linalg.norm(dense))
    return float(np.vdot(weights, dense)) / size if size > 0 else 1.0
