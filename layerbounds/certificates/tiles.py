"""The trees of the rows of a band with prices, found anew: what a certificate needs of a search of tiles.

Each row is divided depth-first until a dual point bounds what is left by the cut of the row; masks of which nothing is
left to divide become leaves below it (docs/certificates.md).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.log import LeafLog, TooLargeError, rounded
from layerbounds.certificates.tile_relaxations import Diagonal, Flags, MaskRelaxer, Node, RefitRelaxer, Relaxer
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import Control, Evidence, RowPrices, TiledDual
from layerbounds.search.pruning.refit import refit
from layerbounds.search.tiles.band import Row
from layerbounds.search.tiles.exact import row_task, search_exactly
from layerbounds.search.tiles.mask_row import MaskRow
from layerbounds.search.tiles.preparation import gram_data
from layerbounds.search.tiles.prices import prices_of
from layerbounds.search.tiles.row import PricedRow

#: How much of a cut bounds may lose to shorter numbers.
SHARE = 1e-5
#: Inputs up to which errors may be left to the checker's elimination; how far off are errors computed in float64, as a
#: share of the energy, and those of the best weights, which are computed to more digits.
FEW, NOISE, FINE = 64, 1e-12, 1e-9
#: Nodes of the trees of a band.
MOST_NODES = 40_000


def tile_dual(gram: Float, dual: TiledDual) -> Parts:
    """A point, a proven diagonal and prices of each row."""
    diagonals = [certified_minorant(gram, np.asarray(d, dtype=np.float64)) for d in dual.diagonals]
    return {"z": np.asarray(dual.points), "d": np.array(diagonals), "price": np.asarray(dual.prices)}


def tile_leaves(task: Task[TiledSupport], evidence: Evidence, lower: float) -> Parts:
    """A tree for each row; nothing where these grow large.

    Parameters
    ----------
    task : Task
    evidence : Evidence
        With the prices of the search, or of a dual point.
    lower : float
        The claimed lower end without the constant.
    """
    control = Control(math.inf, 0.0, MOST_NODES, 0, 1, threading.Event())
    data, single = gram_data(task), [row_task(task, r) for r in range(len(task.targets))]
    rows: list[Row] = [PricedRow(o, control, data) if task.allowed.refit else MaskRow(o, control) for o in single]
    solved = _solved(task, rows, evidence)
    if solved is None:
        return {}
    base = sum(map(Fraction, solved.least.tolist()), Fraction(0)) - prices_of(task.allowed).charged_for(solved.prices)
    # All sets of a row that have this much more than its least one come after the lower end.
    room = max(float(Fraction(lower) - base), 0.0) * (1.0 + 1e-12) + 1e-15 * task.energy
    left, parts = MOST_NODES, {"price": solved.prices}
    try:
        for r, (row, price, least) in enumerate(zip(rows, solved.prices, solved.least, strict=True)):
            leaves = RowLeaves(row, price, float(least) + room)
            if not leaves.run(left):
                return {}
            left -= leaves.nodes
            parts |= {f"row.{r}.{name}": part for name, part in leaves.log.tensors().items()}
    except (TooLargeError, np.linalg.LinAlgError):
        return {}
    return parts


def _solved(task: Task[TiledSupport], rows: list[Row], evidence: Evidence) -> RowPrices | None:
    """What a search knew of its rows, or what is found anew of few inputs or with the prices of a dual point."""
    if evidence.proof is not None and evidence.proof.rows is not None:
        return evidence.proof.rows
    if not isinstance(evidence.dual, TiledDual) or not all(row.bounded for row in rows):
        again = search_exactly(task, rows[0].control)
        return None if again is None or again.proof is None else again.proof.rows
    prices = np.asarray(evidence.dual.prices, dtype=np.float64)
    most = MOST_NODES // len(rows)
    found = [row.minimum(price, most, math.inf).lower for row, price in zip(rows, prices, strict=True)]
    return RowPrices(prices, np.array(found)) if np.all(np.isfinite(found)) else None


@dataclass(frozen=True, eq=False)
class Bound:
    """What a point and a diagonal say about a node.

    Attributes
    ----------
    value : float
        A lower bound of error plus prices, computed in float64.
    score : ndarray of shape (n,)
        What keeping an input saves beside its price.
    below, above : ndarray of shape (n,)
        For each input the largest score that its group leaves out, and the smallest one that it takes; at least 0.
    """

    value: float
    score: Float
    below: Float
    above: Float


class RowLeaves:
    """The tree of a row, written down.

    Parameters
    ----------
    row : Row
    price : ndarray of shape (n,)
        In the units of the task.
    cut : float
        What closes a node; masks of less error plus prices become leaves of their own.
    """

    def __init__(self, row: Row, price: Float, cut: float) -> None:
        task = row.task
        self.gram, self.target, self.price, self.cut, self.energy = task.gram, task.target, price, cut, task.energy
        self.wide = task.gram.astype(np.longdouble)
        # Single precision takes that share off savings, which are of the size of the energy.
        short = SHARE * cut > 1e-7 * task.energy
        self.log = LeafLog(short)
        self.original = None if task.allowed.refit else task.allowed.original
        structure = task.allowed.structure
        self.group, self.capacity = structure.group[structure.unit], structure.capacity
        self.relaxer: Relaxer = (
            RefitRelaxer(row, price, short) if isinstance(row, PricedRow) else MaskRelaxer(row, price, short)
        )
        size = int(np.bincount(self.group).max(initial=1))
        #: The inputs of each group, n where it has fewer.
        self.members = np.full((len(self.capacity), size), len(price))
        for g in range(len(self.capacity)):
            own = np.flatnonzero(self.group == g)
            self.members[g, : len(own)] = own
        same: dict[bytes, list[int]] = {}
        for i, line in enumerate(self.gram if self.original is None else ()):
            same.setdefault(line.tobytes(), []).append(i)
        self.copies = [np.array(members) for members in same.values() if len(members) > 1]
        self.minorants: dict[Diagonal, int] = {}
        self.nodes = 0

    def run(self, most: int) -> bool:
        """Write the whole tree down; False where it has more than so many nodes."""
        first = self.relaxer.first
        stack = [Node(np.zeros(len(self.price), dtype=np.int8), self.relaxer.start.copy(), first, 0)]
        while stack and self.nodes < most:
            self.nodes += 1
            stack += self._expand(stack.pop())
        return not stack

    def _expand(self, node: Node) -> list[Node]:
        """Bound a node, fix what it can, divide it; returns what is left to do."""
        room = self._settle(node.status)
        if node.diagonal is None and np.any(node.status == 0):
            node.diagonal = self.relaxer.diagonal(node.status)
        if not np.any(node.status == 0):
            self._decide(node, room)
            return []
        if node.diagonal is None:
            left = node.status >= 0
            error = self._best(left)[1] - float(self.price[node.status == 0].sum())
            if left.sum() <= FEW and error * (1.0 - NOISE) - NOISE * self.energy >= self.cut:
                self.log.close(node.place)
                return []
            return self._divide(node, self.target**2 * np.diag(self.gram), -1)
        best = node.diagonal
        point, bound = self._relaxed(node, best, room)
        if bound.value < self.cut:
            diagonal = self.relaxer.sharper(node, bound.score)
            if diagonal is not None:
                trial = Node(node.status, node.z.copy(), diagonal, node.place)
                better = self._relaxed(trial, diagonal, room)
                if better[1].value > bound.value:
                    node, (point, bound), best = trial, better, diagonal
                else:
                    self.relaxer.point(node, room, self.cut)
        if bound.value >= self.cut:
            self._close([node.place], point, best)
            return []
        branch = self.relaxer.branch(node, bound.score)
        wrong = self._fix(node, bound)
        if wrong:
            self._close(wrong, point, best)
        return self._divide(node, np.abs(bound.score), branch) if np.any(node.status == 0) else [node]

    def _settle(self, status: Flags) -> Int:
        """Drop copies of kept inputs, and what full groups have no room for; returns the room of each group."""
        for members in self.copies:
            kept = members[status[members] > 0]
            if len(kept):
                status[members] = -1
                status[kept[0]] = 1
        room = self.capacity - np.bincount(self.group[status > 0], minlength=len(self.capacity))
        status[(status == 0) & (room <= 0)[self.group]] = -1
        return room

    def _divide(self, node: Node, size: Float, branch: int) -> list[Node]:
        """Both children, of an input or of the free one of largest size."""
        free = node.status == 0
        if branch < 0 or not free[branch]:
            branch = int(np.argmax(np.where(free, size, -1.0)))
        children = []
        for place, choice in zip(self.log.split(node.place, branch), (-1, 1), strict=True):
            child = Node(node.status.copy(), node.z.copy(), node.diagonal, place)
            child.status[branch] = choice
            children.append(child)
        return children

    def _decide(self, node: Node, room: Int) -> None:
        """A node of which nothing is left to divide: its best weights."""
        kept = node.status > 0
        if self.original is not None:
            if node.diagonal is None:
                raise np.linalg.LinAlgError
            self._close([node.place], np.where(kept, self.original, 0.0), node.diagonal)
            return
        z, value = self._best(kept)
        if node.diagonal is not None:
            bound = self._bound(node.status, z, node.diagonal.proven, room).value
            if bound >= value * (1.0 - FINE) or kept.sum() > FEW:
                self._close([node.place], z, node.diagonal)
                return
        self.log.close(node.place)

    def _best(self, left: Bool) -> tuple[Float, float]:
        """The best weights on some inputs, to nearly all digits, and their error plus prices of all of them."""
        z, inputs, wide = np.zeros(len(left)), np.flatnonzero(left), self.wide
        for _ in range(2 if len(inputs) else 0):
            rest = (wide @ (self.target - z)).astype(np.float64)
            z[inputs] += refit(self.gram, rest, inputs)
        away = (z - self.target).astype(np.longdouble)
        return z, float(away @ wide @ away) + float(self.price[left].sum())

    def _close(self, places: list[int], z: Float, diagonal: Diagonal) -> None:
        """Bound leaves by a point and a diagonal."""
        if diagonal not in self.minorants:
            self.minorants[diagonal] = self.log.minorant(diagonal.proven)
        evidence = self.log.evidence(z, self.minorants[diagonal])
        for place in places:
            self.log.close(place, evidence)

    def _relaxed(self, node: Node, diagonal: Diagonal, room: Int) -> tuple[Float, Bound]:
        """A point for a node, and its bound."""
        point = rounded(self.relaxer.point(node, room.copy(), self.cut))
        return point, self._bound(node.status, point, diagonal.proven, room)

    def _bound(self, status: Flags, z: Float, d: Float, room: Int) -> Bound:
        """What certification would say, up to the rounding of float64, which is taken off."""
        away = z - self.target
        h = self.gram @ away
        drop = np.where(status < 0, 0.0, z * (d * z - 2.0 * h))
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.original is None:
                saving = np.where(status < 0, 0.0, (d * z - h) ** 2 / d)
            else:
                step = self.original - z
                saving = drop - step * (2.0 * h + d * step)
        score = np.where(status < 0, 0.0, saving - self.price)
        free = np.append(np.where(status == 0, np.maximum(score, 0.0), 0.0), 0.0)
        ranked = -np.sort(-free[self.members], axis=1)
        taken = np.arange(ranked.shape[1]) < room[:, None]
        padded = np.concatenate([ranked, np.zeros((len(room), 1))], axis=1)
        width, groups = ranked.shape[1], np.arange(len(room))
        below = padded[groups, np.minimum(room, width)]
        above = np.where(room > 0, padded[groups, np.minimum(room, width + 1) - 1], 0.0)
        value = float(away @ h) + float(drop.sum() - score[status > 0].sum() - ranked[taken].sum())
        size = float(np.abs(away) @ np.abs(h) + np.abs(drop).sum() + np.abs(score).sum() + self.price.sum())
        value = value - 8.0 * (len(z) + 8) * UNIT * size
        return Bound(value if np.isfinite(value) else -np.inf, score, below[self.group], above[self.group])

    def _fix(self, node: Node, bound: Bound) -> list[int]:
        """Decide inputs whose other choice reaches the cut, as the point says; returns the leaves that are cut off."""
        taken = (bound.score > 0.0) & (bound.score >= bound.above)
        lost = np.where(taken, bound.score - bound.below, bound.above - bound.score)
        wrong = []
        for i in np.flatnonzero((node.status == 0) & (bound.value + lost * (1.0 - 8.0 * UNIT) >= self.cut)):
            dropped, kept = self.log.split(node.place, int(i))
            node.place, other = (kept, dropped) if taken[i] else (dropped, kept)
            node.status[i] = 1 if taken[i] else -1
            wrong.append(other)
        return wrong
