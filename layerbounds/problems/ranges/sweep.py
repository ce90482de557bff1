"""The exact scale for weights that are rounded to the nearest level: all breakpoints, in one sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int

#: Breakpoints between two exact updates of H times the codes.
_CHUNK = 64
#: Share of a scale by which the best one keeps away from a breakpoint, where rounding could go either way.
_INSIDE = 1e-12


@dataclass(frozen=True, eq=False)
class Row:
    """Weights of one output channel that share a scale with those of other rows.

    The output error of levels v = s·q is a constant + qᵀHq s² − 2 linearᵀq s.

    Attributes
    ----------
    weights : ndarray of shape (n,)
        What is rounded.
    linear : ndarray of shape (n,)
    gram : ndarray of shape (n, n)
    """

    weights: Float
    linear: Float
    gram: Float


def best_scale(rows: Sequence[Row], codes: Float) -> tuple[float, float] | None:
    """The scale s > 0 of least output error when each weight w takes the code nearest to w/s.

    The codes change at the breakpoints s = w/(middle between two codes) only. Between two of them the error is a
    parabola in s, whose coefficients are carried from one to the next.

    Parameters
    ----------
    rows : sequence of Row
    codes : ndarray of shape (levels,)
        Sorted, the zero point subtracted.

    Returns
    -------
    (scale, value) or None
        The value is the error without the constant; None where no scale is better than levels of 0.
    """
    middles = 0.5 * (codes[1:] + codes[:-1])
    at, row, index, step = [], [], [], []
    products: list[Float] = []
    first, second = 0.0, 0.0
    for r, part in enumerate(rows):
        w = part.weights
        start = np.where(w > 0, np.searchsorted(middles, 0.0, side="right"), np.searchsorted(middles, 0.0))
        q = codes[start]
        product = part.gram @ q
        products.append(product)
        first += float(q @ part.linear)
        second += float(q @ product)
        # For s from infinity to 0 a weight moves away from 0 over all middles on its side.
        for sign in (1.0, -1.0):
            inputs = np.flatnonzero(sign * w > 0)
            gaps = np.flatnonzero(sign * middles > 0)
            i, j = (side.ravel() for side in np.meshgrid(inputs, gaps, indexing="ij"))
            at.append(w[i] / middles[j])
            row.append(np.full(len(i), r))
            index.append(i)
            step.append(sign * (codes[j + 1] - codes[j]))
    breaks = np.concatenate(at)
    order = np.argsort(-breaks, kind="stable")
    breaks = breaks[order]
    a, b = _coefficients(
        rows, products, np.concatenate(row)[order], np.concatenate(index)[order], np.concatenate(step)[order]
    )
    a, b = first + np.concatenate(([0.0], a)), second + np.concatenate(([0.0], b))
    high = np.concatenate(([np.inf], breaks)) * (1.0 - _INSIDE)
    low = np.concatenate((breaks, [0.0])) * (1.0 + _INSIDE)
    usable = (b > 0) & (a > 0) & (low <= high)
    if not usable.any():
        return None
    scale = np.clip(a[usable] / b[usable], low[usable], high[usable])
    value = scale * (scale * b[usable] - 2.0 * a[usable])
    best = int(np.argmin(value))
    return (float(scale[best]), float(value[best])) if value[best] < 0 else None


def _coefficients(rows: Sequence[Row], products: list[Float], row: Int, index: Int, step: Float) -> tuple[Float, Float]:
    """What Σ linearᵀq and Σ qᵀHq have gained after each change of one code; ``products`` hold H q."""
    linear = np.array([part.linear for part in rows])
    diagonal = np.array([np.diag(part.gram) for part in rows])
    first = np.cumsum(step * linear[row, index])
    second = step * step * diagonal[row, index]
    for begin in range(0, len(step), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        for r in np.unique(row[chunk]):
            mine = begin + np.flatnonzero(row[chunk] == r)
            i, moved, gram = index[mine], step[mine], rows[r].gram
            rows_of_gram = gram[i]
            # Those before in the same chunk have moved the product already.
            earlier = np.tril(rows_of_gram[:, i], -1) @ moved
            second[mine] += 2.0 * moved * (products[r][i] + earlier)
            products[r] += moved @ rows_of_gram
    return first, np.cumsum(second)
