"""Nodes of a best-first tree in arrays, as compiled trees want them: nodes that share their minorants, and a heap."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from layerbounds.arrays import Float, Int


class NodeArrays:
    """What `layerbounds.kernels.pruning.subset_tree` and `layerbounds.kernels.tiles.tree` have in common.

    Attributes
    ----------
    per_node : tuple of str
        Names of the arrays that have a row for each node.
    bound : ndarray of shape (room for nodes,)
    d : ndarray of shape (room for minorants, n)
    turn, row, open : ndarray of int64
        The age of each node and the row of its minorant; the heap of open nodes.
    uses : ndarray of int64
        How many nodes share each row of ``d``.
    spare, spare_rows : ndarray of int64
        Stacks of unused nodes and rows.
    counts : ndarray of int64
        Open nodes, spare nodes, spare rows, turns, nodes expanded, and what else a kernel counts.
    """

    per_node: ClassVar[tuple[str, ...]]
    bound: Float
    d: Float
    turn: Int
    row: Int
    open: Int
    uses: Int
    spare: Int
    spare_rows: Int
    counts: Int

    def number(self, many: int, size: int) -> None:
        """The first ``many`` of ``size`` nodes are open, by ascending bounds: a sorted array is a heap."""
        self.turn, self.row, self.open = np.arange(size), np.arange(size), np.arange(size)
        self.uses = (np.arange(size) < many).astype(np.int64)
        self.spare, self.spare_rows = np.arange(size)[::-1].copy(), np.arange(size)[::-1].copy()

    @property
    def opened(self) -> float:
        """Smallest bound of the open nodes."""
        return float(self.bound[self.open[0]]) if self.counts[0] else math.inf

    def grow(self) -> None:
        """Twice the room for nodes or for minorants, whichever is used up."""
        if self.counts[1] < 1:
            size = len(self.bound)
            for name in self.per_node:
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
