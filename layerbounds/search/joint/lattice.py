"""The levels of every input in units in which they are integers plus an offset, where the grid allows that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import UNIT
from layerbounds.search.joint.units import JointUnits

#: Gaps between the levels of one input that differ by no more than this are those of a uniform grid.
_EVEN = 1e-9


@dataclass(frozen=True, eq=False)
class Lattice:
    """Levels other than zero.

    Attributes
    ----------
    values : ndarray of shape (n, longest)
        As in the problem's units, sorted, padded with the last one.
    count : ndarray of int64, shape (n,)
    step, offset : ndarray of shape (n,)
        Levels are near step·(offset + integer), the offset at most ½ in magnitude; steps of 1 without uniform grids.
    levels : ndarray of shape (n, longest)
        Levels over steps.
    error : ndarray of shape (n,)
        By how much step·level can differ from the value.
    uniform : bool
        Whether they are all offset plus integer.
    """

    values: Float
    count: Int
    step: Float
    offset: Float
    levels: Float
    error: Float
    uniform: bool


def lattice_of(units: JointUnits) -> Lattice:
    """Uniform where the levels of every input are, with or without zero among them."""
    n = units.size
    rows = [row[:count][row[:count] != 0.0] for row, count in zip(units.values, units.count, strict=True)]
    count = np.array([len(row) for row in rows], dtype=np.int64)
    values = np.zeros((n, max(int(count.max()), 1)))
    step, offset = np.ones(n), np.zeros(n)
    uniform = True
    for i, row in enumerate(rows):
        if not len(row):
            continue
        values[i, : len(row)] = row
        values[i, len(row) :] = row[-1]
        spacing = _spacing(np.union1d(row, 0.0)) or _spacing(row)
        if spacing is None:
            uniform = False
            break
        step[i] = spacing
        first = float(row[0]) / spacing
        offset[i] = first - np.rint(first)
        if abs(offset[i]) < _EVEN * max(1.0, abs(first)):
            offset[i] = 0.0
    if not uniform:
        for i, row in enumerate(rows):
            values[i, : len(row)] = row
            values[i, len(row) :] = row[-1] if len(row) else 0.0
        return Lattice(values, count, np.ones(n), np.zeros(n), values.copy(), np.zeros(n), False)
    levels = np.rint(values / step[:, None] - offset[:, None]) + offset[:, None]
    error = np.max(np.abs(values - step[:, None] * levels) + 4.0 * UNIT * np.abs(values), axis=1)
    return Lattice(values, count, step, offset, levels, error, True)


def _spacing(row: Float) -> float | None:
    """The gap of evenly spaced values, None for others and for a single one of zero."""
    if len(row) == 1:
        return None
    gaps = np.diff(row)
    if float(gaps.max()) - float(gaps.min()) > _EVEN * float(gaps.min()):
        return None
    return float(row[-1] - row[0]) / (len(row) - 1)
