"""The end of a band's search: all sets of each row whose prices leave room for something better are combined."""

from __future__ import annotations

import math

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import UNIT
from layerbounds.search.tiles.band import Band
from layerbounds.search.tiles.choices import Choice, LeastChoice
from layerbounds.search.tiles.row import PricedRow, RowMinimum

#: Nodes and sets of a row, and begun choices of all rows, that the end may take; its share of the time that is left.
MOST_NODES, MOST_SETS, MOST_LOOKS, SHARE = 60000, 40000, 3_000_000, 0.5


def close(band: Band, x: Float) -> bool:
    """Try to prove or improve the incumbent by enumeration with some prices; whether the interval is closed.

    With prices x, row minima g_r and the bound L = Σ g_r − φ, masks whose row r has an error plus prices of at least
    g_r + (U − L) have an error of at least U. All others are combined from the lists of the rows' sets.
    """
    control, prices = band.control, band.prices.spread(x)
    began, left = control.elapsed(), control.remaining()
    share = SHARE if control.node_limit is None else 1.0
    until = began + share * left
    base, minima = band.solve_rows(x, MOST_NODES, share * left)
    least = [minimum.lower for minimum in minima]
    band.raise_to(base, x, least)
    if not band.lower < band.goal:
        return True
    if not math.isfinite(base) or band.spent is not None:
        return False
    allowance = rounding(band, prices)
    room = band.aim - base + 2.0 * allowance
    pools = []
    for row, minimum, price in zip(band.rows, minima, prices, strict=True):
        found = row.minimum(price, band.nodes_left(MOST_NODES), until, minimum.lower + room)
        band.nodes += found.nodes
        if not found.finished or len(found.sets) > MOST_SETS:
            return False
        pools.append(_choices(row, minimum, price, found))
    looks = [0]

    def stop() -> bool:
        looks[0] += 1
        return control.elapsed() >= until or control.remaining() <= 0 or looks[0] * 500 > MOST_LOOKS

    search = LeastChoice(pools, band.task.allowed, base - allowance, band.aim, stop)
    if not search.run():
        return False
    if search.best is not None:
        band.offer(np.array([choice.kept for choice in search.best]))
    # Everything else reaches what was aimed at, or the best choice of the lists.
    below = band.aim if search.best is None else min(search.below, band.aim)
    band.raise_to(below - allowance, x, least)
    return not band.lower < band.goal


def _choices(row: object, minimum: RowMinimum, price: Float, found: RowMinimum) -> list[Choice]:
    choices = []
    for kept in found.sets:
        error = row.error_of(kept)  # type: ignore[attr-defined]
        choices.append(Choice(kept, error, max(error + float(price[kept].sum()) - minimum.lower, 0.0)))
    return sorted(choices, key=lambda choice: choice.excess)


def rounding(band: Band, prices: Float) -> float:
    """How far sums of computed errors and prices of the rows can be from the exact ones."""
    total = 0.0
    for row, price in zip(band.rows, prices, strict=True):
        paid = 8.0 * (row.size + 8) * UNIT * float(price.sum())
        if isinstance(row, PricedRow):
            total += (row.margin + 64.0 * UNIT * row.data.energy) * row.unit + paid
        else:
            total += 2.0 * (row.form.off + 16.0 * (row.size + 8) * UNIT * row.form.size) + paid
    return total
