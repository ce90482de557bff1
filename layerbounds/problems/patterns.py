"""Sparsity patterns: which inputs of an output channel may be kept together.

Every pattern of this module treats one output channel at a time and comes down to three integer arrays, its
`Structure`: inputs form *units* that are kept or dropped together, units form *groups*, and each group has a capacity.
Patterns that couple the output channels of a layer would be another class beside `Pattern`, with a structure over all
rows of the weight matrix.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from layerbounds.arguments import LARGEST_COUNT, shown, whole_number
from layerbounds.arrays import Bool, Float, Int
from layerbounds.exceptions import InputError


@dataclass(frozen=True, eq=False)
class Structure:
    """Units, groups and capacities of one output channel.

    Attributes
    ----------
    unit : ndarray of int64, shape (n,)
        The unit of each input, numbered from 0.
    group : ndarray of int64, shape (units,)
        The group of each unit, numbered from 0.
    capacity : ndarray of int64, shape (groups,)
        How many units of each group may be kept.
    """

    unit: Int
    group: Int
    capacity: Int

    def restrict(self, live: Bool) -> Structure:
        """The same structure on the live inputs: dead ones are dropped first, at no cost.

        Parameters
        ----------
        live : ndarray of bool, shape (n,)

        Returns
        -------
        Structure
            Units without a live input and groups without a unit are gone; capacities that exceed the number of units
            of their group are lowered to it.
        """
        units, unit = np.unique(self.unit[live], return_inverse=True)
        groups, group = np.unique(self.group[units], return_inverse=True)
        size = np.bincount(group, minlength=len(groups))
        return Structure(
            unit.astype(np.int64), group.astype(np.int64), np.minimum(self.capacity[groups], size).astype(np.int64)
        )

    def equals(self, other: Structure) -> bool:
        """Whether both have the same units, groups and capacities."""
        return self is other or all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("unit", "group", "capacity")
        )

    def kept_units(self, matrix: Float) -> Bool:
        """Which units hold a nonzero weight, shape (channels, units)."""
        kept = np.zeros((len(matrix), len(self.group)), dtype=bool)
        row, column = np.nonzero(matrix)
        kept[row, self.unit[column]] = True
        return kept

    def excess(self, matrix: Float) -> Int:
        """Kept units beyond the capacities, summed over the groups; shape (channels,)."""
        kept = self.kept_units(matrix)
        over = np.zeros(len(matrix), dtype=np.int64)
        for i, row in enumerate(kept):
            used = np.bincount(self.group[row], minlength=len(self.capacity))
            over[i] = int(np.maximum(used - self.capacity, 0).sum())
        return over

    def keep_largest(self, score: npt.NDArray[Any]) -> Bool:
        """Mask, shape (n,), of the inputs kept when each group keeps its units of largest score, shape (units,)."""
        keep = np.zeros(len(self.group), dtype=bool)
        # Sorted by group first, so that each group is a slice.
        order = np.lexsort((-score, self.group))
        first = np.searchsorted(self.group[order], np.arange(len(self.capacity)))
        for begin, capacity in zip(first, self.capacity, strict=True):
            keep[order[begin : begin + capacity]] = True
        return np.asarray(keep[self.unit])


class Pattern(ABC):
    """A rule for the kept inputs of one output channel: one class and one entry in `PATTERNS`.

    Attributes
    ----------
    kind : str
        The label without its numbers.
    form : str
        How users write it, with an example.
    needs_count : bool
        Whether the pattern needs a number k of kept inputs.
    single_inputs : bool
        Whether its units are single inputs.
    """

    kind: ClassVar[str]
    form: ClassVar[str]
    needs_count: ClassVar[bool]
    single_inputs: ClassVar[bool]

    @property
    @abstractmethod
    def label(self) -> str:
        """The name that `parse_pattern` reads."""

    @abstractmethod
    def structure(self, n: int, k: int) -> Structure:
        """Units, groups and capacities for n inputs of which k may be kept (ignored where ``needs_count`` is False)."""

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> Self | None:
        """Read a name in lower case; None where it is another pattern's.

        Raises
        ------
        InputError
            If it is this pattern's, but its numbers are impossible.
        """

    def small(self) -> Pattern:
        """A pattern of the same kind for a few inputs: compiling and refusing takes the same ways."""
        return self


@dataclass(frozen=True)
class Unstructured(Pattern):
    """At most k nonzero weights anywhere."""

    kind = "unstructured"
    form = "unstructured"
    needs_count = True
    single_inputs = True

    @property
    def label(self) -> str:
        """``unstructured``."""
        return self.kind

    def structure(self, n: int, k: int) -> Structure:
        """One group of single inputs."""
        return Structure(np.arange(n), np.zeros(n, dtype=np.int64), np.array([k], dtype=np.int64))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``unstructured``."""
        return cls() if name == cls.kind else None


@dataclass(frozen=True)
class NOfM(Pattern):
    """At most N nonzero weights in every M consecutive inputs; the last ragged group min(N, its size)."""

    kept: int
    size: int

    kind = "N:M"
    form = "N:M (for example 2:4)"
    needs_count = False
    single_inputs = True

    @property
    def label(self) -> str:
        """``N:M``."""
        return f"{self.kept}:{self.size}"

    def structure(self, n: int, k: int) -> Structure:
        """One group for every M consecutive inputs."""
        group = np.arange(n) // self.size
        sizes = np.bincount(group)
        return Structure(np.arange(n), group.astype(np.int64), np.minimum(self.kept, sizes).astype(np.int64))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``N:M``."""
        match = re.fullmatch(r"(\d+):(\d+)", name)
        if match is None:
            return None
        kept, size = int(match[1]), int(match[2])
        if not 0 < kept < size <= LARGEST_COUNT:
            raise InputError(f"pattern {name!r} keeps {kept} of {size}; N:M needs 0 < N < M, for example 2:4.")
        return cls(kept, size)

    def small(self) -> NOfM:
        """1:2."""
        return NOfM(1, 2)


@dataclass(frozen=True)
class Block(Pattern):
    """S consecutive inputs are kept or dropped together, at most ⌊k/S⌋ such blocks.

    Where S does not divide n the last block is smaller but counts as one block, and k = n keeps all blocks.
    """

    size: int

    kind = "block"
    form = "block:S (block:9)"
    needs_count = True
    single_inputs = False

    @property
    def label(self) -> str:
        """``block:S``."""
        return f"block:{self.size}"

    def structure(self, n: int, k: int) -> Structure:
        """One group of all blocks."""
        unit = (np.arange(n) // self.size).astype(np.int64)
        units = int(unit[-1]) + 1
        kept = units if k >= n else k // self.size
        return Structure(unit, np.zeros(units, dtype=np.int64), np.array([kept], dtype=np.int64))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``block:S``."""
        match = re.fullmatch(r"block:(\d+)", name)
        if match is None:
            return None
        return cls(whole_number(int(match[1][:40]), f"the block size of pattern {shown(name)}", 1))

    def small(self) -> Block:
        """Two inputs a block."""
        return Block(2)


#: All patterns.
PATTERNS: tuple[type[Pattern], ...] = (Unstructured, NOfM, Block)


def parse_pattern(text: str) -> Pattern:
    """Read ``"unstructured"``, ``"N:M"`` or ``"block:S"``.

    Parameters
    ----------
    text : str

    Raises
    ------
    InputError
        If the text is none of these, or not 0 < N < M, or S < 1.
    """
    if not isinstance(text, str):
        raise InputError(f"pattern is {shown(text)}; pass a text such as '2:4'.")
    name = text.strip().lower()[:100]
    for pattern in PATTERNS:
        if (found := pattern.parse(name)) is not None:
            return found
    *forms, last = (pattern.form for pattern in PATTERNS)
    raise InputError(f"there is no pattern {shown(text)}; choose {', '.join(forms)} or {last}.")
