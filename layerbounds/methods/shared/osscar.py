"""OSSCAR."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.methods.base import check_damp
from layerbounds.methods.pruning import PruningView, finish, room
from layerbounds.methods.shared.tableau import Tableau


def osscar(view: PruningView, damp: float = 0.01, batch: int = 1, swaps: int = 5, iterations: int = 20) -> Float:
    """Backward removal, then rounds that drop the cheapest units and keep as many of those that gain most.

    Meng et al., "OSSCAR: One-Shot Structured Pruning in Vision and Language Models with Combinatorial Optimization"
    (ICML 2024). As in the authors' code a round judges units one by one and moves several at once; after one that does
    not help the number of units is halved.

    Parameters
    ----------
    view : PruningView
    damp : float
        Fraction of the mean diagonal added for the choice; the result is refitted without it.
    batch : int
        Units dropped at a time in the backward removal.
    swaps : int
        Units that move in a round, at first.
    iterations : int
        Largest number of rounds; 0 for the removal alone.
    """
    check_damp(damp)
    if batch < 1 or swaps < 1 or iterations < 0:
        raise InputError(
            f"batch is {batch}, swaps {swaps} and iterations {iterations}; pass positive numbers and iterations ≥ 0."
        )
    table = Tableau(view, np.ones(len(view.structure.group), dtype=bool), damp)
    _remove(table, batch)
    best, value = table.kept.copy(), table.value
    for _ in range(iterations):
        many = min(swaps, int(np.count_nonzero(best)), int(np.count_nonzero(~best)))
        if not many:
            break
        table.flip(*np.argsort(table.costs(), kind="stable")[:many].tolist())
        _refill(table)
        if table.value < value * (1.0 - 1e-9):
            best, value = table.kept.copy(), table.value
        elif swaps == 1:
            break
        else:
            swaps //= 2
            table.start(best)
    return finish(view, best[view.structure.unit])


def _refill(table: Tableau) -> None:
    """Keep the units of largest gain, judged one by one, until the groups are full."""
    structure = table.structure
    left = room(structure, table.kept)
    open_units = np.flatnonzero(~table.kept & (left[structure.group] > 0))
    order = open_units[np.argsort(-table.gains()[open_units], kind="stable")]
    table.flip(*_within(structure.group[order], left, len(order), order))


def _remove(table: Tableau, batch: int) -> None:
    """Drop the cheapest units, a batch at a time, until the pattern holds."""
    structure = table.structure
    while np.any((excess := -room(structure, table.kept)) > 0):
        costs = np.where(excess[structure.group] > 0, table.costs(), np.inf)
        order = np.argsort(costs, kind="stable")[: int(np.count_nonzero(np.isfinite(costs)))]
        table.flip(*_within(structure.group[order], excess, batch, order))


def _within(group: Int, most: Int, batch: int, order: Int) -> list[int]:
    """The first units in an order, of each group no more than ``most``, and no more than a batch."""
    left = most.copy()
    chosen: list[int] = []
    for unit, g in zip(order.tolist(), group.tolist(), strict=True):
        if len(chosen) < batch and left[g] > 0:
            left[g] -= 1
            chosen.append(unit)
    return chosen
