"""Inputs that depend on others, exactly or nearly: what passing them over can hide (docs/pruning-bounds.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels import exact

#: Powers of two whose reciprocals are tried as a share of the diagonal that lies below the Gram matrix.
POWERS = (24, 32, 40, 46, 50, 52, 54, 58, 64, 72)

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def is_dependent(rows: list[list[int]], kept: Sequence[int], other: int) -> bool:
    """Whether an input of a Gram matrix of integers is exactly a combination of others."""
    members = [*kept, other]
    block = [[rows[i][j] for j in members] for i in members]
    previous = 1
    while len(block) > 1:
        pivot, following = block[0][0], exact.eliminate(block, 0, previous)
        if following is None:
            return False
        block, previous = following, pivot
    return not block[0][0]


def vanishes(rows: list[list[int]], members: Sequence[int]) -> bool:
    """Whether Hy = 0 for some y that has all members as its nonzeros, in a Gram matrix of integers.

    Then f(v + sy) = f(v) for every v and s, whatever the signs of the matrix's eigenvalues.
    """
    # H y = 0 with y = 1 at the last one: a system with a row for each input.
    system = [[Fraction(row[i]) for i in members] for row in rows]
    count = len(members) - 1
    for column in range(count):
        pivot = next((x for x in range(column, len(system)) if system[x][column]), None)
        if pivot is None:
            return False
        system[column], system[pivot] = system[pivot], system[column]
        top = [value / system[column][column] for value in system[column]]
        system[column] = top
        for x, row in enumerate(system):
            if x != column and row[column]:
                factor = row[column]
                system[x] = [a - factor * b for a, b in zip(row, top, strict=True)]
    return all(row[count] for row in system[:count]) and not any(row[count] for row in system[count:])


def share_below(gram: Float) -> float | None:
    """A share of its diagonal that lies below a Gram matrix, by exact arithmetic; None where none does."""
    for power in POWERS:
        if exact.is_positive_semidefinite(gram, power):
            return math.ldexp(1.0, -power)
    return None


def slope(gram: Float, kept: Sequence[int], other: int) -> float:
    """Largest |(Hy)_j|/ν_j for the combination y that nearly vanishes, relative to the input's own norm.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the others are dependent themselves.
    """
    members = list(kept)
    wide = gram.astype(_LONG)
    y = np.zeros(len(gram), dtype=_LONG)
    y[other] = 1.0
    block = gram[np.ix_(members, members)]
    for _ in range(4):
        y[members] -= np.linalg.solve(block, (wide[members] @ y).astype(np.float64))
    error = 2 * (len(gram) + 4) * _UNIT_LONG * (np.abs(wide) @ np.abs(y))
    rho = (np.abs(wide @ y) + error).astype(np.float64)
    return float(np.max(rho / np.sqrt(np.diag(gram)))) / math.sqrt(gram[other, other]) * (1.0 + 1e-9)
