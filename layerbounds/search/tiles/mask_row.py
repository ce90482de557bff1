"""One row of a band whose weights stay as they are, with prices on its inputs: a binary quadratic problem."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.masks.form import MaskForm, unit_form
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control
from layerbounds.search.frontier import Frontier
from layerbounds.search.pruning.masks import MaskNode, MaskSearch
from layerbounds.search.tiles.row import RowMinimum

#: Masks below a cut that are collected, at most.
MOST_SETS = 5000


class MaskRow:
    """A row without refit: what `layerbounds.search.tiles.row.PricedRow` is with it.

    With prices p, f + pᵀz is the same quadratic form with p/2 less in its linear term.

    Parameters
    ----------
    task : Task
        Of the row alone.
    control : Control
    """

    bounded = True

    def __init__(self, task: Task[Support], control: Control) -> None:
        self.task, self.control = task, control
        self.size = len(task.target)
        self.form = unit_form(task.gram, task.target[None], task.allowed.original[None], task.allowed.structure)
        self.z, self.value, self.d = np.zeros(self.size), 0.0, np.zeros(self.size)
        self._node: MaskNode | None = None
        #: Errors of the masks that were met, by their flags.
        self.known: dict[bytes, float] = {}

    @property
    def dual(self) -> tuple[Float, Float]:
        """The present relaxation as a point and a diagonal below the Gram matrix, in the space of the weights."""
        weights = self.task.allowed.original
        diagonal = np.divide(self.d, weights**2, out=np.zeros(self.size), where=weights != 0)
        return self.z * weights, diagonal

    def restart(self, z: Float) -> None:
        """Let the next relaxation begin with these weights."""
        if self._node is not None:
            self._node.z = z.copy()

    def error_of(self, kept: Bool) -> float:
        """The error of a mask as computed; it is known from now on."""
        key = kept.tobytes()
        if key not in self.known:
            self.known[key] = max(self.form.value(kept), 0.0)
        return self.known[key]

    def relax(self, price: Float, rounds: int) -> float:
        """Bound of the whole row with its diagonal, by so many moves of an input each."""
        if self._node is None:
            return self.sharpen(price)
        search = MaskSearch(self.priced(price), self.control)
        search.d = self.d
        node = self._node.copy()
        self.value = search.relax(node, math.inf, rounds)
        self.z = self._node.z = node.z
        return self.value

    def sharpen(self, price: Float, steps: int = 0, until: float = math.inf) -> float:
        """The diagonal for some prices; returns the bound."""
        self._root(self._search(price, self.control))
        return self.value

    def minimum(self, price: Float, most: int, until: float, cut: float | None = None) -> RowMinimum:
        """Branch and bound from the root; see `layerbounds.search.tiles.row.PricedRow.minimum`."""
        control = self.control
        seconds = max(min(until, control.elapsed() + control.remaining()), 0.0)
        limit = None if control.node_limit is None else most
        own = replace(control, time_limit=seconds, gap=0.0, threads=1, node_limit=limit)
        search = self._search(price, own)
        root = self._root(search)
        charge = 2.0 * search.allowance
        if cut is not None:
            sets = search.collect(root, cut + charge, MOST_SETS)
            for mask in sets or ():
                self.error_of(mask)
            lower = -math.inf if sets is None else cut
            return RowMinimum(lower, search.incumbent.weights > 0, 0, sets is not None, sets or [])
        frontier: Frontier[MaskNode] = Frontier(
            search, own, max(search.energy, 0.0), root, search.root_bound, 1.0, 0.0, charge=charge
        )
        frontier.run()
        kept = np.asarray(search.incumbent.weights > 0)
        self.error_of(kept)
        return RowMinimum(frontier.lower - charge, kept, frontier.nodes, not frontier.lower < frontier.cut, [])

    def priced(self, price: Float) -> MaskForm:
        """The form with prices; their sums are rounded. Units whose weights are zero pay nothing, dropped."""
        beta = np.where(self.form.idle, 0.0, self.form.beta - 0.5 * price)
        off = 4.0 * (self.size + 8) * UNIT * float(np.abs(self.form.beta).sum() + price.sum())
        return replace(self.form, beta=beta, off=self.form.off + off)

    def _search(self, price: Float, control: Control) -> MaskSearch:
        """A search whose first incumbent is the known mask that is best for these prices."""
        start = np.zeros(self.size, dtype=bool)
        if self.known:
            flags = np.frombuffer(b"".join(self.known), dtype=bool).reshape(len(self.known), -1)
            values = np.fromiter(self.known.values(), dtype=np.float64) + flags @ price
            start = flags[int(np.argmin(values))].copy()
        search = MaskSearch(self.priced(price), control, [start])
        search.offer(start)
        return search

    def _root(self, search: MaskSearch) -> MaskNode:
        """The root; its diagonal and point are kept."""
        node = search.root()
        self.d, self.z, self.value = search.d, node.z.copy(), search.root_bound
        self._node = node.copy()
        return node
