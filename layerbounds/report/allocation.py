"""Allocations as tables for terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from layerbounds.allocation import Allocation, FrontPoint
from layerbounds.display.outward import ends
from layerbounds.report.tables import MISSING, _number, _table, _text

#: Rows of the table of a front.
_ROWS = 32


def allocation_table(allocation: Allocation) -> Table:
    """A row for each layer: what is chosen, its bits, and its part of the error.

    Parameters
    ----------
    allocation : Allocation
    """
    table = _table(f"{allocation.bits_per_weight:.4g} of {allocation.budget:.4g} bits per weight")
    _text(table, "layer")
    _text(table, "choice")
    for heading in ("bits", "error", "share %"):
        _number(table, heading)
    whole = allocation.error[1]
    for layer in allocation.layers:
        option, part = allocation.option(layer.name), allocation.interval(layer.name)
        known = math.isfinite(whole) and whole > 0
        table.add_row(
            layer.name,
            option.name,
            f"{option.storage / layer.weights:.4g}" if layer.weights else MISSING,
            ends(part, 3),
            f"{100.0 * part[1] / whole:.1f}" if known else MISSING,
        )
    return table


def front_table(points: Sequence[FrontPoint], weights: int) -> Table:
    """Some points of a Pareto front, evenly spaced in bits.

    Parameters
    ----------
    points : sequence of FrontPoint
    weights : int
        Of all layers.
    """
    table = _table("least error for bits per weight")
    for heading in ("bits", "error"):
        _number(table, heading)
    first, last = points[0].storage, points[-1].storage
    shown = -1
    for row in range(_ROWS + 1):
        budget = first + (last - first) * row // _ROWS
        place = max(i for i, point in enumerate(points) if point.storage <= budget)
        if place != shown:
            point = points[place]
            table.add_row(f"{point.storage / max(weights, 1):.4g}", ends((point.lower, point.upper), 3))
            shown = place
    return table
