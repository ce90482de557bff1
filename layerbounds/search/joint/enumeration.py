"""Depth-first enumeration of one node's supports and levels: arrays around the compiled kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.minorants.diagonal import STEEP
from layerbounds.kernels.factorization import UNIT, cholesky
from layerbounds.kernels.joint.enumeration import enumerate_kept
from layerbounds.kernels.joint.preparation import factors_of_node, minorants_by_depth, order_of_node, start_of_node
from layerbounds.search.joint.allowance import StartOfNode
from layerbounds.search.joint.lattice import Lattice, lattice_of
from layerbounds.search.joint.units import JointUnits
from layerbounds.search.quantization.preparation import regularizations

#: Barrier weights of the sweeps over the minorant of every depth.
SWEEPS = np.array([0.3, 0.1, 0.03])
#: Shares of the diagonal, in units of its rounding, by which a node's matrix is raised until it can be factorized.
_SHIFTS = (0.0, 2.0**12, 2.0**16, 2.0**20, 2.0**26)
#: Nodes after which the minorants are raised for every depth.
FIRST_PART = 1000
#: Smallest price of the capacity, as a share of the largest.
_CHEAPEST = 1e-9


@dataclass(frozen=True, eq=False)
class NodeLists:
    """What the inputs of a node may be, where every unit is one input.

    Attributes
    ----------
    first, last : ndarray of int64, shape (n,)
        The levels ``values[i, first[i]]`` to ``values[i, last[i]]`` of `JointUnits`, without zero; none where
        first > last.
    zero : ndarray of bool, shape (n,)
        Whether the weight may be zero, too. Where it may not, the input is kept.
    room : ndarray of int64, shape (groups,)
        How many of the inputs that may be zero may be other than zero; kept inputs do not count.
    """

    first: Int
    last: Int
    zero: Bool
    room: Int


def whole_lists(units: JointUnits) -> NodeLists:
    """Those of the root."""
    n = units.size
    return NodeLists(np.zeros(n, dtype=np.int64), units.count - 1, np.ones(n, dtype=bool), units.capacity.copy())


class EnumerationBasis:
    """What all nodes of a channel share: the levels in units of steps, and the norms of the columns.

    Parameters
    ----------
    units : JointUnits
        Every unit a single input.

    Attributes
    ----------
    lattice : Lattice
    shift : ndarray of shape (n,)
        What the diagonal has to be raised by before the Gram matrix can be factorized.
    norm : ndarray of shape (n,)
        ν with |H_ij| ≤ ν_i ν_j for the stored entries.
    """

    def __init__(self, units: JointUnits) -> None:
        self.units = units
        self.lattice: Lattice = lattice_of(units)
        self.shift = _shift(units.gram)
        scale = np.sqrt(np.diag(units.gram))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(units.gram) / np.outer(scale, scale)
        self.norm = scale * (1.0 + 1e-9) * float(np.sqrt(max(np.nanmax(ratio, initial=1.0), 1.0)))


def _shift(gram: Float) -> Float:
    """The first of `regularizations` with which the matrix is far enough from singular."""
    for shift in regularizations(gram):
        shifted = gram + np.diag(shift)
        lower = cholesky(shifted)
        if lower is not None and np.all(np.diag(lower) ** 2 > 1024 * len(gram) * UNIT * np.diag(shifted)):
            break
    return shift


class Enumeration:
    """Search of one node for everything below a cut; resumable.

    Parameters
    ----------
    basis : EnumerationBasis
    lists : NodeLists
    z : ndarray of shape (n,)
        The relaxation's point: the search is tilted by the gradient there. Any point gives a valid search.
    d : ndarray of shape (n,)
        diag(d) ⪯ H + diag(shift) proven for the inputs that the lists leave free; 0 ≤ d.
    price : float, or ndarray of shape (groups,)
        Of the capacities: what the search of one group begins with, and what says how undecided inputs are.
    cut : float
        In the units of ``basis.units``.
    shift : ndarray of shape (n,), optional
        What the diagonal was raised by for the proof of d, by default nothing.
    """

    def __init__(
        self,
        basis: EnumerationBasis,
        lists: NodeLists,
        z: Float,
        d: Float,
        price: float | Float,
        cut: float,
        shift: Float | None = None,
    ) -> None:
        units, lattice = basis.units, basis.lattice
        self._units = units
        n = units.size
        # Positions in the lists without zero.
        first = lists.first - (lists.first > units.zero)
        count = lists.last - (lists.last >= units.zero) - first + 1
        count = np.maximum(count, 0)
        choices = count + lists.zero
        self.nodes = 0
        self.first_cut = cut
        self.finished = bool(np.any(choices == 0) or np.any(lists.room < 0))
        self._start: StartOfNode | None = None
        self._fixed = np.zeros(n)
        if self.finished:
            self._inputs = np.zeros(0, dtype=np.int64)
            self._charge = 0.0
            self._best_value = np.inf
            return
        columns = np.minimum(first, np.maximum(lattice.count - 1, 0))
        single = np.where(count > 0, lattice.values[np.arange(n), columns], 0.0)
        is_free = choices > 1
        x = np.where(is_free, z, single)
        self._fixed = x
        gradient = np.empty(n)
        value, size = start_of_node(units.gram, basis.norm, units.target, x, gradient)
        self._inputs = np.flatnonzero(is_free)
        self._best_value = np.inf
        if not len(self._inputs):
            self.finished = True
            self._charge = 8.0 * (n + 16) * UNIT * size**2
            if value < cut:
                self._best_value = value
            return
        prices = np.broadcast_to(np.asarray(price, dtype=np.float64), len(units.capacity))
        self._prepare(basis, lists, x, gradient, d, prices, shift, first, count, value, size, cut)
        self._open(lists, prices[0], cut)

    def _prepare(
        self,
        basis: EnumerationBasis,
        lists: NodeLists,
        x: Float,
        gradient: Float,
        d: Float,
        prices: Float,
        shift: Float | None,
        first: Int,
        count: Int,
        value: float,
        size: float,
        cut: float,
    ) -> None:
        """Order, factors, minorants, and what the rounding allowance needs."""
        units, lattice = basis.units, basis.lattice
        longest = max(int(count[self._inputs].max()), 1)
        places = np.minimum(first[:, None] + np.arange(longest), (first + np.maximum(count, 1) - 1)[:, None])
        places = np.clip(places, 0, lattice.values.shape[1] - 1)
        inputs = self._inputs
        order = np.arange(len(inputs))
        order_of_node(
            units.gram, inputs, d[inputs], x[inputs], gradient[inputs], lattice.values[inputs[:, None], places[inputs]],
            count[inputs], lists.zero[inputs].astype(np.float64), prices[units.group[inputs]], value, cut, order,
        )  # fmt: skip
        inputs = inputs[order]
        self._inputs = inputs
        m = len(inputs)
        diagonal = np.diag(units.gram)[inputs]
        least = np.zeros(m) if shift is None else shift[inputs]
        matrix, factor, shifts = np.empty((m, m)), np.empty((m, m)), np.empty((m, m))
        pivots, error, covariance = np.empty(m), np.empty(m), np.empty(m)
        proven = False
        for share in _SHIFTS:
            added = np.maximum(np.maximum(least, basis.shift[inputs]), share * units.size * UNIT * diagonal)
            # Upward, so that the sum is not rounded below what the minorant was proven for.
            added = np.where(added > 0.0, added + 2.0 * UNIT * (diagonal + added), 0.0)
            norm = np.sqrt(basis.norm[inputs] ** 2 + added) * (1.0 + 4.0 * UNIT)
            proven = factors_of_node(units.gram, inputs, added, norm, matrix, factor, pivots, shifts, error, covariance)
            if proven:
                break
        self._proven = proven
        step = lattice.step[inputs]
        self._step = step
        count, places = count[inputs], places[inputs]
        self._values = lattice.values[inputs[:, None], places]
        self._levels = np.ascontiguousarray(lattice.levels[inputs[:, None], places])
        self._count = count
        may_zero = lists.zero[inputs]
        least_value = np.where(may_zero, np.minimum(self._values[:, 0], 0.0), self._values[:, 0])
        most_value = np.where(may_zero, np.maximum(self._values[:, -1], 0.0), self._values[:, -1])
        none = count == 0
        self._doubled = 2.0 * gradient[inputs] * step
        self._matrix, self._d = matrix, d[inputs]
        self._gap = (most_value - least_value) / np.maximum(count + may_zero - 1, 1)
        self._set_minorants(np.broadcast_to(self._d, (m + 1, m)))
        self._start = StartOfNode(
            value=value, size=size, inputs=units.size, z=x[inputs], gradient=gradient[inputs], norm=norm,
            low=np.where(none, 0.0, least_value), high=np.where(none, 0.0, most_value),
            level_error=lattice.error[inputs], shift=added * (1.0 + 4.0 * UNIT) + 2.0 * UNIT * diagonal * (added > 0),
            d=self._d, covariance=covariance, shift_error=error,
        )  # fmt: skip
        self._pivots = pivots * step**2 * (1.0 - 4.0 * UNIT)
        self._shifts = shifts * (step[:, None] / step)
        self._offset = lattice.offset[inputs]
        self._tables = not lattice.uniform

    def _set_minorants(self, rows: Float) -> None:
        """Take a proven minorant for every depth."""
        self._weights = rows * self._step**2 * (1.0 - 4.0 * UNIT)
        half = 0.5 * self._doubled
        steep = np.broadcast_to(half * STEEP, rows.shape).copy()
        slack = np.divide(half, self._weights, out=steep, where=self._weights > 0.0)
        self._slack = np.clip(slack, -STEEP, STEEP)

    def _raise_minorants(self) -> None:
        """Better minorants for every depth, and a search from the beginning."""
        start = self._start
        assert start is not None
        m = len(self._inputs)
        rows = np.zeros((m + 1, m))
        rows[m] = self._d
        minorants_by_depth(self._matrix, self._gap**2, SWEEPS, rows)
        self._set_minorants(rows)
        self._start = replace(start, d=np.maximum(start.d, rows.max(axis=0)))
        self._first_part = False
        # Bounds of open nodes belong to the minorants with which they were computed.
        self._position[0] = m
        self._left[:] = self._room_of_groups

    def _open(self, lists: NodeLists, price: float, cut: float) -> None:
        """The state of the search, at its root."""
        start = self._start
        assert start is not None
        inputs, step = self._inputs, self._step
        m = len(inputs)
        units = self._units
        may_zero = lists.zero[inputs]
        self._free = may_zero.astype(np.float64)
        self._ceiling = np.where(may_zero, 0.0, np.inf)
        self._below = np.concatenate([[0], np.cumsum(may_zero)]).astype(np.int64)
        # Groups in the order of their first inputs, those without any last.
        group = units.group[inputs]
        groups = len(lists.room)
        begin = np.full(groups, m)
        np.minimum.at(begin, group[may_zero], np.flatnonzero(may_zero))
        rank = np.argsort(begin, kind="stable")
        place = np.empty(groups, dtype=np.int64)
        place[rank] = np.arange(groups)
        self._group = place[group]
        width = int(np.bincount(self._group[may_zero], minlength=1).max())
        self._member = np.full((groups, max(width, 1)), m, dtype=np.int64)
        filled = np.zeros(groups, dtype=np.int64)
        for i in np.flatnonzero(may_zero) if groups > 1 else ():
            self._member[self._group[i], filled[self._group[i]]] = i
            filled[self._group[i]] += 1
        self._room_of_groups = lists.room[rank].astype(np.int64)
        self._left, self._most_room = self._room_of_groups.copy(), int(lists.room.max())
        self._z = np.zeros((m + 1, m))
        self._z[m] = start.z / step
        self._psi = np.zeros(m + 1)
        self._psi[m] = start.psi
        self._bases = np.full((2, m + 1), -np.inf)
        self._most_price = start.radius(cut)
        self._price_range = np.array([_CHEAPEST, 1.0]) * self._most_price
        self._price = np.full(
            (m + 1, int(lists.room[0]) + 1), min(max(price, self._price_range[0]), self._price_range[1])
        )
        self._room = np.zeros(m + 1, dtype=np.int64)
        self._room[m] = lists.room[0]
        self._chosen, self._best, self._reach = np.zeros(m), np.zeros(m), np.zeros(m)
        self._saved, self._top = np.zeros(m + 1), np.zeros(m)
        self._pointers = np.zeros((2, m), dtype=np.int64)
        self._zero_left = np.zeros(m, dtype=np.bool_)
        self._position = np.array([m], dtype=np.int64)
        self._cut = np.array([cut])
        self._counts = np.zeros((2, 1), dtype=np.int64)
        self._first_part = True

    def run(self, budget: int, collect: bool = False) -> bool:
        """Go on for some nodes; True when nothing below the cut is left.

        With ``collect`` every leaf below the cut ends the call, and the cut stays.
        """
        if self.finished or not self._proven:
            return self.finished
        if self._first_part and not collect:
            part = min(budget, FIRST_PART - self.nodes)
            self._run(part, collect)
            budget -= part
        if not self.finished and budget > 0:
            # A search that collects would come to the same points again.
            if self._first_part:
                self._raise_minorants()
            self._run(budget, collect)
        return self.finished

    def _run(self, budget: int, collect: bool) -> None:
        self.finished = bool(
            enumerate_kept(
                budget, collect, self._tables, self._pivots, self._doubled, self._shifts, self._weights, self._slack,
                self._offset, self._levels[:, 0].copy(), self._levels[:, -1].copy(), self._levels, self._count,
                self._free, self._ceiling, self._below, self._group, self._member, self._most_room, self._z,
                self._psi, self._bases[0], self._bases[1], self._price, self._price_range, self._room, self._left,
                self._chosen, self._pointers[0], self._pointers[1], self._zero_left, self._position, self._cut,
                self._best, self._counts[0], self._counts[1], self._reach, self._saved, self._top,
            )
        )  # fmt: skip
        self.nodes = int(self._counts[1, 0])

    def lower(self, cut: float) -> None:
        """What costs as much as this is of no interest any more."""
        if self._start is not None:
            self._cut[0] = min(self._cut[0], cut)

    @property
    def inputs(self) -> Int:
        """Those that are not decided, in the order of the search: the last one is fixed first."""
        return self._inputs

    @property
    def gaps(self) -> Float:
        """Mean distance of the values of each of them."""
        return np.asarray(self._gap)

    @property
    def found(self) -> int:
        """How many leaves below the cut there were."""
        return int(self._counts[0, 0]) if self._start is not None else int(np.isfinite(self._best_value))

    @property
    def cut(self) -> float:
        """Everything below has been searched, up to the allowance, once the search is finished."""
        return float(self._cut[0]) if self._start is not None else min(self._best_value, self.first_cut)

    @property
    def weights(self) -> Float | None:
        """The best weights below the first cut, or the last ones with ``collect``; None where there are none."""
        if not self.found:
            return None
        weights = self._fixed.copy()
        if self._start is not None:
            places = np.argmin(np.abs(self._levels - self._best[:, None]), axis=1)
            values = self._values[np.arange(len(places)), places]
            weights[self._inputs] = np.where(self._best == 0.0, 0.0, values)
        return weights

    @property
    def allowance(self) -> float:
        """No point of the node whose exact objective is below ``cut`` less this has been missed."""
        if self._start is None:
            return self._charge
        return self._start.allowance(self.first_cut, self._most_price, self._reach * self._step)


@dataclass(frozen=True, eq=False)
class Enumerated:
    """What the search of a node came to.

    Attributes
    ----------
    finished : bool
        Whether it is exhausted: every point of the node costs at least ``cut`` − ``allowance``.
    nodes : int
    cut : float
        The smaller one of the first cut and the best value found.
    weights : ndarray of shape (n,), or None
        The best weights below the first cut.
    allowance : float
        For rounding; infinite where it cannot be bounded, and then nothing is proven.
    """

    finished: bool
    nodes: int
    cut: float
    weights: Float | None
    allowance: float


def enumerate_node(
    basis: EnumerationBasis,
    lists: NodeLists,
    z: Float,
    d: Float,
    price: float | Float,
    cut: float,
    budget: int,
    shift: Float | None = None,
) -> Enumerated:
    """Search a node for everything below a cut, at most so many nodes of the enumeration; see `Enumeration`."""
    search = Enumeration(basis, lists, z, d, price, cut, shift)
    search.run(budget)
    return Enumerated(search.finished, search.nodes, search.cut, search.weights, search.allowance)
