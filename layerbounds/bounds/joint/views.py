"""What a node of a joint problem leaves free, block by block (docs/joint-blocks.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Bool, Float, Int
from layerbounds.kernels.joint.blocks import factor_blocks


@dataclass(frozen=True, eq=False)
class JointMinorant:
    """A block-diagonal matrix B on all inputs.

    Attributes
    ----------
    first, member : ndarray of int64
        Block g holds the inputs ``member[first[g]:first[g + 1]]``, those searched first last.
    block : ndarray of shape (groups, m, m)
        B_g in the order of ``member``, padded with zeros.
    shift : ndarray of shape (n,)
        Nonnegative: B is below the Gram matrix plus this diagonal, and bounds are charged for it.
    norm : ndarray of shape (n,)
        |H_ij| ≤ norm_i norm_j.
    """

    first: Int
    member: Int
    block: Float
    shift: Float
    norm: Float

    @property
    def label(self) -> Int:
        """The block of each input."""
        result = np.empty(len(self.member), dtype=np.int64)
        result[self.member] = np.repeat(np.arange(len(self.block)), np.diff(self.first))
        return result

    def matrix(self) -> Float:
        """As one matrix."""
        n = len(self.member)
        full = np.zeros((n, n))
        for g, b in enumerate(self.block):
            m = self.member[self.first[g] : self.first[g + 1]]
            full[np.ix_(m, m)] = b[: len(m), : len(m)]
        return full


class Channel(Protocol):
    """A channel of a joint problem, as `layerbounds.search.joint.units.JointUnits`."""

    @property
    def gram(self) -> Float:
        """H, shape (n, n)."""

    @property
    def target(self) -> Float:
        """w, shape (n,)."""

    @property
    def values(self) -> Float:
        """Sorted levels with zero among them, padded, shape (n, longest)."""

    @property
    def count(self) -> Int:
        """How many there are, shape (n,)."""

    @property
    def zero(self) -> Int:
        """The position of zero, shape (n,)."""

    @property
    def unit(self) -> Int:
        """The unit of each input, shape (n,)."""

    @property
    def group(self) -> Int:
        """The group of each unit."""

    @property
    def capacity(self) -> Int:
        """How many units of each group may differ from zero."""


@dataclass(frozen=True, eq=False)
class AllowedLists:
    """What a node allows.

    Attributes
    ----------
    first, last : ndarray of int64, shape (n,)
        Positions of the first and the last value other than zero that an input may take.
    zero_ok : ndarray of bool, shape (n,)
        Whether it may be zero.
    status : ndarray, shape (units,)
        1 for units that have been taken off the room, −1 for dropped ones, 0 otherwise.
    room : ndarray of int64, shape (groups,)
        How many of the other units may differ from zero.
    """

    first: Int
    last: Int
    zero_ok: Bool
    status: npt.NDArray[Any]
    room: Int

    @classmethod
    def whole(cls, channel: Channel) -> AllowedLists:
        """The root's."""
        n = len(channel.target)
        return cls(
            np.zeros(n, dtype=np.int64), channel.count - 1, np.ones(n, dtype=np.bool_),
            np.zeros(len(channel.group), dtype=np.int64), channel.capacity,
        )  # fmt: skip


class AllowedView:
    """The free inputs of a node, block by block, as the kernels take them.

    Parameters
    ----------
    channel : Channel
    lists : AllowedLists
    blocks : JointMinorant
        Below the Gram matrix plus its shift on the free inputs.
    held : ndarray of bool, shape (n,), optional
        Inputs with a single value that are treated as free: their points may be elsewhere.
    """

    def __init__(self, channel: Channel, lists: AllowedLists, blocks: JointMinorant, held: Bool | None = None) -> None:
        self.gram, self.target, self.shift, self.norm = channel.gram, channel.target, blocks.shift, blocks.norm
        values, zero, unit, group = channel.values, channel.zero, channel.unit, channel.group
        status, room = lists.status, lists.room
        n, longest = values.shape
        position = np.arange(longest)
        allowed = (position >= lists.first[:, None]) & (position <= lists.last[:, None]) & (position != zero[:, None])
        dropped = status[unit] < 0
        allowed[dropped] = False
        allowed[np.arange(n), zero] = lists.zero_ok | dropped
        self.allowed = allowed
        number = allowed.sum(axis=1)
        self.feasible = bool(np.all(number > 0) and np.all(room >= 0))
        self.status, self.room = status.copy(), room.copy()
        forced = np.zeros(len(group), dtype=np.bool_)
        forced[unit[~allowed[np.arange(n), zero]]] = True
        forced &= status == 0
        self.status[forced] = 1
        np.subtract.at(self.room, group[forced], 1)
        self.feasible &= bool(np.all(self.room >= 0))
        full = (self.room <= 0)[group] & (self.status == 0)
        if full.any() and self.feasible:
            # Nothing more fits into these groups.
            self.status[full] = -1
            mine = full[unit]
            allowed[mine] = False
            allowed[mine, zero[mine]] = True
            number = allowed.sum(axis=1)
        self.fixed_values = values[np.arange(n), np.argmax(allowed, axis=1)]
        if not self.feasible:
            return
        free = number > 1 if held is None else (number > 1) | held
        self._arrange(values, zero, unit, group, free, blocks)

    def _arrange(self, values: Float, zero: Int, unit: Int, group: Int, free: Bool, blocks: JointMinorant) -> None:
        groups, widest = len(blocks.block), blocks.block.shape[1]
        rows = np.full((groups, widest), -1)
        rows[np.arange(widest) < np.diff(blocks.first)[:, None]] = blocks.member
        inside = (rows >= 0) & free[rows]
        order = np.argsort(~inside, axis=1, kind="stable")
        count = inside.sum(axis=1)
        self.alive = np.flatnonzero(count > 0)
        order, self.size = order[self.alive], count[self.alive]
        widest = int(self.size.max(initial=1))
        order = order[:, :widest]
        self.order = order
        self.inside = np.arange(widest) < self.size[:, None]
        rows = np.take_along_axis(rows[self.alive], order, axis=1)
        self.inputs = rows[self.inside]
        self.first = np.concatenate([[0], np.cumsum(self.size)]).astype(np.int64)
        self.free = free
        part = blocks.block[self.alive]
        part = np.take_along_axis(np.take_along_axis(part, order[:, :, None], 1), order[:, None, :], 2)
        pair = self.inside[:, :, None] & self.inside[:, None, :]
        self.pair = pair
        self.block = np.where(pair, part, 0.0)
        at = np.cumsum(self.inside.ravel()).reshape(self.inside.shape) - 1
        self.at = (
            np.broadcast_to(at[:, :, None], pair.shape)[pair], np.broadcast_to(at[:, None, :], pair.shape)[pair]
        )  # fmt: skip
        i = self.inputs
        allowed = self.allowed[i]
        self.code = np.argsort(~allowed, axis=1, kind="stable")
        self.count = allowed.sum(axis=1).astype(np.int64)
        self.levels = np.ascontiguousarray(np.take_along_axis(values[i], self.code, axis=1))
        is_zero = (self.code == zero[i, None]) & (np.arange(values.shape[1]) < self.count[:, None])
        self.zero = np.where(is_zero.any(axis=1), np.argmax(is_zero, axis=1), -1).astype(np.int64)
        last = self.count - 1
        self.low, self.high = self.levels[:, 0], self.levels[np.arange(len(i)), last]
        # Units, numbered among the free inputs, and whether their group lies in one block.
        units, self.unit = np.unique(unit[i], return_inverse=True)
        self.unit = self.unit.astype(np.int64)
        self.units = units
        self.unit_group = group[units]
        open_ = self.status[units] == 0
        label = np.repeat(np.arange(len(self.size)), self.size)
        own = np.empty(len(units), dtype=np.int64)
        own[self.unit] = label
        count_group = len(self.room)
        lowest, highest = np.full(count_group, len(self.size)), np.full(count_group, -1)
        np.minimum.at(lowest, self.unit_group[open_], own[open_])
        np.maximum.at(highest, self.unit_group[open_], own[open_])
        self.whole = lowest >= highest
        tight = np.bincount(self.unit_group[open_], minlength=count_group) > self.room
        self.priced = np.flatnonzero(~self.whole & tight)
        self.pool = np.where(open_ & (self.whole & tight)[self.unit_group], self.unit_group, -1).astype(np.int64)
        self.counted = open_ & np.isin(self.unit_group, self.priced)
        #: The priced group of each input, −1 where there is none.
        slot = np.full(count_group, -1)
        slot[self.priced] = np.arange(len(self.priced))
        self.slot = np.where(self.counted, slot[self.unit_group], -1)[self.unit]
        # A block's counted units are of one group.
        self.block_slot = np.full(len(self.size), -1)
        np.maximum.at(self.block_slot, label, self.slot)

    def matrix(self, whole: Float) -> Float:
        """The blocks in a matrix of all inputs, the others as given."""
        result = whole.copy()
        result[self.inputs[self.at[0]], self.inputs[self.at[1]]] = self.block[self.pair]
        return result

    def written(self, minorant: JointMinorant) -> JointMinorant:
        """The minorant of all inputs with the blocks of the free ones in it: good for the node and all below it."""
        g, p, q = np.nonzero(self.pair)
        block = minorant.block.copy()
        block[self.alive[g], self.order[g, p], self.order[g, q]] = self.block[g, p, q]
        return replace(minorant, block=block)

    def spread_out(self, blocks: Float, n: int) -> Float:
        """Blocks as one matrix of n inputs."""
        result = np.zeros((n, n))
        result[self.inputs[self.at[0]], self.inputs[self.at[1]]] = blocks[self.pair]
        return result

    def gathered(self, matrix: Float) -> Float:
        """The reverse."""
        result = np.zeros_like(self.block)
        result[self.pair] = matrix[self.inputs[self.at[0]], self.inputs[self.at[1]]]
        return result

    def counts(self, number: Float) -> Float:
        """Mean and variance of the number of kept units of each priced group, from logarithms of weights."""
        at = np.arange(number.shape[1])
        weight = np.exp(number)
        mean = weight @ at
        variance = np.maximum(weight @ at**2 - mean**2, 0.0)
        result = np.zeros((len(self.priced), 2))
        counts = self.block_slot >= 0
        np.add.at(result, self.block_slot[counts], np.stack([mean, variance], axis=1)[counts])
        return result

    def unit_prices(self, price: Float) -> Float:
        """What keeping each unit costs, from the prices of the priced groups."""
        result = np.zeros(len(self.units))
        if len(price):
            slots = np.minimum(np.searchsorted(self.priced, self.unit_group), len(price) - 1)
            result[self.counted] = price[slots[self.counted]]
        return result

    def prepare(self) -> bool:
        """Factor the blocks; False where one is not positive definite."""
        self.factor = np.zeros_like(self.block)
        return bool(factor_blocks(self.block, self.size, self.factor))

    def rest(self) -> Float:
        """H − B on the free inputs."""
        matrix: Float = self.gram.take(self.inputs, 0).take(self.inputs, 1)
        matrix[self.at] -= self.block[self.pair]
        return matrix
