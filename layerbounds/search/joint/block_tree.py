"""The tree of joint problems with the block relaxation at its nodes (docs/joint-blocks.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.joint.nodes import relax_node
from layerbounds.bounds.joint.relaxation import JointRoot
from layerbounds.bounds.joint.views import AllowedLists, JointMinorant
from layerbounds.bounds.objective import objective_interval
from layerbounds.kernels.joint import relaxed_node
from layerbounds.search.joint.tree import EXACT, JointSearch, Node, children

#: Levels of the tree between two improvements of the blocks.
EVERY_BLOCKS = 2
#: What an input whose support is decided counts, beside one that may still be zero.
DECIDED_SUPPORT = 0.5


@dataclass(eq=False)
class BlockNode(Node):
    """A subproblem with what its blocks start from.

    Attributes
    ----------
    minorant : JointMinorant
        Proven on the undecided inputs.
    z : ndarray of shape (n,)
        Where the parent's block relaxation ended.
    block_price : ndarray of shape (groups,)
    block_age : int
        Levels since the minorant was improved.
    """

    minorant: JointMinorant
    z: Float
    block_price: Float
    block_age: int = 0

    @classmethod
    def of(cls, node: Node, root: JointRoot) -> Self:
        """A root with blocks."""
        parts = {field.name: getattr(node, field.name) for field in fields(Node)}
        return cls(**parts, minorant=root.minorant, z=root.z, block_price=root.price)

    def copy(self, age: int) -> Self:
        """The same subproblem with lists of its own."""
        plain = super().copy(age)
        parts = {field.name: getattr(plain, field.name) for field in fields(Node)}
        return type(self)(
            **parts, minorant=self.minorant, z=self.z, block_price=self.block_price, block_age=self.block_age + 1
        )


class BlockSearch(JointSearch):
    """Expander that asks the block relaxation where the diagonal one does not close a node."""

    def branch(self, node: Node, value: float, branch: int, cut: float) -> tuple[float, list[Node]]:
        """Bound by blocks, drop what reaches the cut, branch."""
        if not isinstance(node, BlockNode):
            return super().branch(node, value, branch, cut)
        units = self.units
        lists = AllowedLists(node.first, node.last, node.zero_ok.astype(bool), node.status.astype(np.int64), node.room)
        due = node.block_age >= EVERY_BLOCKS
        found = relax_node(units, lists, node.minorant, node.z, node.block_price, value, cut, due)
        value = max(value, found.value)
        if value >= cut:
            return value, []
        if found.minorant is not node.minorant or due:
            node.block_age = 0
        node.minorant, node.z, node.block_price = found.minorant, found.z, found.price
        if found.excluded:
            self.excluded = min(self.excluded, cut)
            shrink(node, found.allowed, units.zero)
            if not relaxed_node.settle(self.layer, node.lists, node.x):
                return cut, []
        open_ = undecided(node, units.zero)
        if not open_.any():
            self.offer(node.x)
            low = objective_interval(units.gram, units.target, node.x, 0 if units.size > EXACT else EXACT)[0]
            return max(value, low), []
        score = np.where(open_, found.variance * self.pivot, -math.inf)
        score *= np.where(node.status[units.unit] == 0, 1.0, DECIDED_SUPPORT)
        pick = int(np.argmax(score))
        if score[pick] > 0.0:
            branch = pick
            node.x = np.where(open_, found.nearest, node.x)
        elif not open_[branch]:
            branch = int(np.argmax(open_))
        return value, children(self.units, node, branch)


def shrink(node: Node, allowed: np.ndarray, zero: np.ndarray) -> None:
    """Take over what is left of each input's values; between the first and the last one nothing is dropped."""
    n, longest = allowed.shape
    rows, position = np.arange(n), np.arange(longest)
    node.zero_ok &= allowed[rows, zero]
    kept = allowed & (position != zero[:, None])
    some = kept.any(axis=1)
    node.first[:] = np.where(some, np.maximum(node.first, np.argmax(kept, axis=1)), 1)
    node.last[:] = np.where(some, np.minimum(node.last, longest - 1 - np.argmax(kept[:, ::-1], axis=1)), 0)


def undecided(node: Node, zero: np.ndarray) -> np.ndarray:
    """Which inputs may still take several values."""
    many = np.maximum(node.last - node.first + 1, 0) - ((node.first <= zero) & (zero <= node.last))
    return np.asarray(many + node.zero_ok >= 2)
