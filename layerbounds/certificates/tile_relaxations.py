"""Points and diagonals for the nodes of a row of a band, for the trees of certificates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start, is_minorant, proven_minorant
from layerbounds.certificates.log import below
from layerbounds.kernels.pruning import subset_diagonal, subset_relaxation
from layerbounds.kernels.pruning.masks import relax_mask
from layerbounds.kernels.tiles import relaxation, tree
from layerbounds.search.pruning.masks import MaskSearch
from layerbounds.search.tiles.mask_row import MaskRow
from layerbounds.search.tiles.row import PricedRow

Flags = npt.NDArray[np.int8]

#: Rounds and moves of a node's relaxation; barrier weight of an improvement of its diagonal.
ROUNDS, MOVES, MU = 8, 12, 0.3


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A diagonal below the Gram matrix on what is not dropped: as kernels want it, and as it is proven."""

    d: Float
    proven: Float

    @classmethod
    def of(cls, d: Float, proven: Float, short: bool) -> Self:
        """With the numbers that a file will hold."""
        return cls(d, below(proven).astype(np.float64) if short else proven)


@dataclass(eq=False)
class Node:
    """A subproblem of a row: 1 kept, −1 dropped, 0 free; where its relaxation begins, its diagonal and its place."""

    status: Flags
    z: Float
    diagonal: Diagonal | None
    place: int


class Relaxer(Protocol):
    """Points and diagonals for the nodes of a row."""

    first: Diagonal | None
    start: Float

    def diagonal(self, status: Flags) -> Diagonal | None:
        """Some diagonal for a node that has none; None where nothing is proven."""

    def point(self, node: Node, room: Int, cut: float) -> Float:
        """A point of the space of the weights, zero where inputs are dropped; ``node.z`` moves along."""

    def sharper(self, node: Node, score: Float) -> Diagonal | None:
        """A better diagonal for a node that was relaxed last."""

    def branch(self, node: Node, score: Float) -> int:
        """Which free input of a node that was relaxed last is divided."""


class RefitRelaxer:
    """Of a row with refit, from its relaxation with some prices."""

    def __init__(self, row: PricedRow, price: Float, short: bool) -> None:
        self.row, self.n, self.short = row, row.size, short
        self.price = price * row.data.factor**2
        if np.all(row.d > 0.0):
            row.sharpen(price)
        proven = certified_minorant(row.gram, row.d)
        self.first = Diagonal.of(row.d.copy(), proven, self.short) if np.all(proven > 0.0) else None
        self.start = row.z.copy()
        n = row.size
        self.inputs, self.reduced, self.residual = np.zeros(n, dtype=np.int64), np.empty((n, n)), np.empty(n)
        self.kept = self.count = 0

    def diagonal(self, status: Flags) -> Diagonal | None:
        """A diagonal below the Gram matrix of what is not dropped."""
        index = np.flatnonzero(status >= 0)
        block = np.ascontiguousarray(self.row.gram[np.ix_(index, index)])
        d = np.diag(self.row.gram).copy()
        d[index] = 0.9 * interior_start(block)
        return Diagonal.of(d, d, self.short) if np.all(d[index] > 0.0) and is_minorant(block, d[index]) else None

    def point(self, node: Node, room: Int, cut: float) -> Float:
        """By rounds (docs/tiles.md)."""
        row, n = self.row, self.n
        assert node.diagonal is not None
        self.kept, self.count = subset_relaxation.alive(node.status, self.inputs)
        subset_relaxation.reduce(row.gram, row.data.b, self.inputs, self.kept, self.count, self.reduced, self.residual)
        left = (self.inputs, self.kept, self.count, self.reduced, self.residual)
        point, saving, edge = np.zeros(n), np.zeros(n), np.zeros((len(room), 2))
        results = (point, saving, edge, np.empty((n, n)), np.zeros(n), np.zeros(n, np.int64), np.zeros(n), np.zeros(1))
        relaxation.relax(
            row.data.layer, node.diagonal.d, row.group, room, self.price, node.status, node.z, ROUNDS,
            cut * row.data.factor**2, left, results,
        )  # fmt: skip
        return np.asarray(point / row.data.factor)

    def sharper(self, node: Node, score: Float) -> Diagonal | None:
        """One sweep of coordinate ascent on the diagonal of the free inputs, the kept ones eliminated."""
        row, kept, count = self.row, self.kept, self.count
        assert node.diagonal is not None
        d = node.diagonal.d
        alpha = np.zeros(self.n)
        mean = tree.emphasis(node.status, self.price, score * row.data.factor**2, node.z, alpha)
        free = self.inputs[kept:count]
        if not mean > 0.0 or not len(free):
            return None
        upper = np.triu(self.reduced[kept:count, kept:count])
        rest = upper + upper.T - np.diag(np.diag(upper) + d[free])
        try:
            inverse = np.linalg.inv(rest)
        except np.linalg.LinAlgError:
            return None
        values = d[free]
        subset_diagonal.ascend(np.ascontiguousarray(inverse), alpha[free], MU * mean, values)
        work, tuned = np.empty((self.n, self.n)), d.copy()
        for shrink in (1.0, 0.97, 0.8):
            tuned[free] = shrink * values
            if np.all(values > 0.0) and subset_diagonal.prove(row.gram, tuned, self.inputs, count, kept, work):
                proven = tuned.copy()
                proven[self.inputs[:kept]] *= 1e-6
                return Diagonal.of(tuned, proven, self.short)
        return None

    def branch(self, node: Node, score: Float) -> int:
        """The input whose exclusion should cost most: u²/(M⁻¹)_ii, M the relaxation's matrix."""
        inside = [p for p in range(self.kept, self.count) if node.z[self.inputs[p]] > 0.0]
        inside = [p for p in inside if node.status[self.inputs[p]] == 0]
        if not inside:
            return -1
        assert node.diagonal is not None
        index = self.inputs[inside]
        upper = np.triu(self.reduced[np.ix_(inside, inside)])
        matrix = upper + upper.T - np.diag(np.diag(upper))
        matrix[np.diag_indices(len(index))] += node.diagonal.d[index] * (1.0 / node.z[index] - 1.0)
        try:
            inverse = np.linalg.inv(matrix)
        except np.linalg.LinAlgError:
            return -1
        size = np.diag(inverse)
        if not np.all(size > 0.0):
            return -1
        u = inverse @ self.residual[inside]
        return int(index[np.argmax(u**2 / size)])


class MaskRelaxer:
    """Of a row without refit."""

    def __init__(self, row: MaskRow, price: Float, short: bool) -> None:
        self.short, self.row, self.original = short, row, row.task.allowed.original
        row.sharpen(price)
        self.search = MaskSearch(row.priced(price), row.control)
        self.start = row.z.copy()
        proven = proven_minorant(row.task.gram, row.dual[1])
        self.first = None if proven is None else Diagonal.of(row.d.copy(), proven[0] - proven[1], self.short)

    def diagonal(self, status: Flags) -> Diagonal | None:
        """None: where there is none for all inputs, the Gram matrix is not positive semidefinite."""
        return None

    def point(self, node: Node, room: Int, cut: float) -> Float:
        """By moves of an input each (docs/pruning-bounds.md)."""
        s = self.search
        assert node.diagonal is not None
        relax_mask(
            s.a, s.beta, s.energy, node.diagonal.d, s.group, room, node.status, MOVES * len(s.beta), cut, s.allowance,
            node.z, s.h, s.saving, s.edge,
        )  # fmt: skip
        return np.asarray(node.z * self.original)

    def sharper(self, node: Node, score: Float) -> Diagonal | None:
        """None: these trees have one diagonal."""
        return None

    def branch(self, node: Node, score: Float) -> int:
        """The free input that is most undecided."""
        cost = np.where(node.status == 0, np.diag(self.search.a) * node.z * (1.0 - node.z), -1.0)
        return int(np.argmax(cost)) if cost.max() > 0 else -1
