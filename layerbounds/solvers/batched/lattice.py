"""The levels of all rows of a layer in single precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float
from layerbounds.kernels.arithmetic import Single
from layerbounds.problems.levels import Levels


@dataclass(frozen=True, eq=False)
class LevelRows:
    """Levels ``scale·(codes − zero point)`` and targets of many rows.

    Attributes
    ----------
    unit : ndarray of shape (rows,)
        The numbers of a row are in units of this one, so that single precision suits them.
    origin : ndarray of float32, shape (rows, n)
        Targets in units of the codes.
    scale : ndarray of float32, shape (rows, 1) or (rows, n)
    codes : ndarray of float32, shape (lists, levels)
        The lists of codes that occur.
    which : ndarray of int8, shape (1, n) or (rows, n)
        The list of each weight.
    uniform : bool
        Whether codes are consecutive numbers.
    """

    unit: Float
    origin: Single
    scale: Single
    codes: Single
    which: npt.NDArray[np.int8]
    uniform: bool

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.origin)

    @property
    def share(self) -> Float:
        """What a row's error counts beside that of others, shape (rows,)."""
        return np.asarray((self.unit / self.unit.max()) ** 2)

    def part(self, rows: Any) -> LevelRows:
        """Some of the rows."""
        which = self.which if len(self.which) == 1 else self.which[rows]
        return LevelRows(self.unit[rows], self.origin[rows], self.scale[rows], self.codes, which, self.uniform)


def level_rows(allowed: Sequence[Levels], targets: Float) -> LevelRows:
    """Gather the levels of all rows.

    Parameters
    ----------
    allowed : sequence of Levels
        Of each row.
    targets : ndarray of shape (rows, n)
    """
    rows, n = targets.shape
    origin, scale = (np.empty((rows, n), dtype=np.float32) for _ in range(2))
    which = np.zeros((rows, n), dtype=np.int8)
    lists: list[bytes] = []
    unit = np.empty(rows)
    uniform = True
    for r in range(rows):
        levels = allowed[r]
        uniform &= levels.uniform
        unit[r] = np.median(levels.scale)
        with np.errstate(over="ignore"):
            scale[r] = levels.scale / unit[r]
            origin[r] = targets[r] / levels.scale + levels.zero_point
        same = bool(np.all(levels.codes == levels.codes[:1]))
        for rows_of_list, codes in _distinct(levels.codes[:1] if same else levels.codes):
            key = codes.tobytes()
            if key not in lists:
                lists.append(key)
            which[r, slice(None) if same else rows_of_list] = lists.index(key)
    tables = np.stack([np.frombuffer(key) for key in lists]).astype(np.float32)
    if np.all(scale == scale[:, :1]):
        scale = np.ascontiguousarray(scale[:, :1])
    if np.all(which == which[:1]):
        which = np.ascontiguousarray(which[:1])
    return LevelRows(unit, origin, scale, tables, which, uniform)


def _distinct(codes: Float) -> list[tuple[Any, Float]]:
    """The lists of codes among the rows of an array, and where each is."""
    if len(codes) == 1:
        return [(slice(None), codes[0])]
    lists, place = np.unique(codes, axis=0, return_inverse=True)
    return [(np.flatnonzero(np.ravel(place) == k), np.ascontiguousarray(row)) for k, row in enumerate(lists)]
