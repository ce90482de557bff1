"""Arrays of the open nodes of a row, as the kernel wants them."""

from __future__ import annotations

import math

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.search.pruning.subset_search import Flags

#: Nodes for which there is room at first.
ROOM = 1024


class Nodes:
    """See `layerbounds.kernels.tiles.tree.run`; the first row is the root.

    Parameters
    ----------
    status : ndarray of int8, shape (n,)
        Of the root.
    z : ndarray of shape (n,)
    room : ndarray of int64, shape (groups,)
    bound : float
    d : ndarray of shape (n,)
    """

    def __init__(self, status: Flags, z: Float, room: Int, bound: float, d: Float) -> None:
        size, n = ROOM, len(z)
        self.status, self.z, self.d = np.zeros((size, n), dtype=np.int8), np.zeros((size, n)), np.zeros((size, n))
        self.room, self.bound = np.zeros((size, len(room)), dtype=np.int64), np.zeros(size)
        self.status[0], self.z[0], self.d[0], self.room[0], self.bound[0] = status, z, d, room, bound
        self.turn, self.row, self.open = np.arange(size), np.arange(size), np.arange(size)
        self.uses = (np.arange(size) < 1).astype(np.int64)
        self.spare, self.spare_rows = np.arange(size)[::-1].copy(), np.arange(size)[::-1].copy()
        #: Open nodes, spare nodes, spare rows, turns, nodes expanded.
        self.counts = np.array([1, size - 1, size - 1, 1, 0])

    @property
    def expanded(self) -> int:
        """Nodes expanded."""
        return int(self.counts[4])

    @property
    def opened(self) -> float:
        """Smallest bound of the open nodes."""
        return float(self.bound[self.open[0]]) if self.counts[0] else math.inf

    def grow(self) -> None:
        """Twice the room for nodes or for diagonals, whichever is used up."""
        if self.counts[1] < 1:
            size = len(self.bound)
            for name in ("status", "z", "room", "bound", "turn", "row", "open"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
            self.spare = np.concatenate([np.arange(size, 2 * size), np.zeros(size, np.int64)])
            self.counts[1] = size
        if self.counts[2] < 1:
            size = len(self.d)
            self.d = np.concatenate([self.d, np.zeros_like(self.d)])
            self.uses = np.concatenate([self.uses, np.zeros_like(self.uses)])
            self.spare_rows = np.concatenate([np.arange(size, 2 * size), np.zeros(size, np.int64)])
            self.counts[2] = size
