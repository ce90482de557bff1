"""The inputs of a pruning pattern in the order of its groups and units, scaled to a unit diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.problems.patterns import Structure

#: A precision.
Real = TypeVar("Real", np.float32, np.float64)

#: Rows of a matrix that are scaled at a time.
STRIPE = 256


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the inputs of a structure stand.

    Attributes
    ----------
    order : ndarray of int64, shape (n,)
        The input at each place: sorted by group, then by unit.
    inputs : ndarray of int64, shape (units + 1,)
        Unit u has the places ``inputs[u]:inputs[u + 1]``.
    units : ndarray of int64, shape (groups + 1,)
        Group g has the units ``units[g]:units[g + 1]``.
    capacity : ndarray of int64, shape (groups,)
    """

    order: Int
    inputs: Int
    units: Int
    capacity: Int

    @property
    def unit(self) -> Int:
        """The unit at each place, shape (n,)."""
        return np.repeat(np.arange(len(self.inputs) - 1), np.diff(self.inputs))


def lay_out(structure: Structure) -> Layout:
    """The order in which units and groups are slices."""
    group = structure.group[structure.unit]
    order = np.lexsort((structure.unit, group))
    unit = structure.unit[order]
    begins = np.flatnonzero(np.diff(unit, prepend=-1))
    size = np.bincount(structure.group, minlength=len(structure.capacity))
    return Layout(
        order.astype(np.int64),
        np.append(begins, len(order)).astype(np.int64),
        np.concatenate([[0], np.cumsum(size)]).astype(np.int64),
        np.minimum(structure.capacity, size).astype(np.int64),
    )


def unit_diagonal(gram: Float, norm: Float, order: Int, precision: type[Real]) -> npt.NDArray[Real]:
    """The matrix in another order, scaled to the diagonal 1.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    norm : ndarray of shape (n,)
        Roots of its diagonal, in the new order.
    order : ndarray of int64, shape (n,)
    precision : type
        Of the result.
    """
    n = len(norm)
    scaled = np.empty((n, n), dtype=precision)
    for begin in range(0, n, STRIPE):
        part = slice(begin, begin + STRIPE)
        scaled[part] = gram[order[part]][:, order] / np.outer(norm[part], norm)
    return scaled
