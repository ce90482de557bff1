"""Arrays of the open nodes of a row, as the kernel wants them."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.search.node_arrays import NodeArrays
from layerbounds.search.pruning.subset_search import Flags

#: Nodes for which there is room at first.
ROOM = 1024


class Nodes(NodeArrays):
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

    per_node = ("status", "z", "room", "bound", "turn", "row", "open")

    def __init__(self, status: Flags, z: Float, room: Int, bound: float, d: Float) -> None:
        size, n = ROOM, len(z)
        self.status, self.z, self.d = np.zeros((size, n), dtype=np.int8), np.zeros((size, n)), np.zeros((size, n))
        self.room, self.bound = np.zeros((size, len(room)), dtype=np.int64), np.zeros(size)
        self.status[0], self.z[0], self.d[0], self.room[0], self.bound[0] = status, z, d, room, bound
        self.number(1, size)
        self.counts = np.array([1, size - 1, size - 1, 1, 0])

    @property
    def expanded(self) -> int:
        """Nodes expanded."""
        return int(self.counts[4])
