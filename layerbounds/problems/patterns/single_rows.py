"""Patterns that each output channel fits on its own, unless it shares its mask with others."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from layerbounds.arguments import LARGEST_COUNT, one_of, shown, whole_number
from layerbounds.exceptions import InputError
from layerbounds.problems.patterns.base import Pattern, Shape
from layerbounds.problems.patterns.structure import Structure


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

    def structure(self, shape: Shape, k: int) -> Structure:
        """One group of single inputs."""
        n = math.prod(shape)
        return Structure(np.arange(n), np.zeros(n, dtype=np.int64), np.array([k], dtype=np.int64))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``unstructured``."""
        return cls() if name == cls.kind else None


#: In which order N:M counts the inputs of a convolution: as they are flattened (channel, kernel height, kernel width),
#: or along the channels at each kernel position.
AXES = ("flat", "in_channels")


@dataclass(frozen=True)
class NOfM(Pattern):
    """At most N nonzero weights in every M consecutive inputs; the last ragged group min(N, its size).

    Along ``"in_channels"`` the inputs that are M consecutive channels at one kernel position count as consecutive.
    """

    kept: int
    size: int
    axis: str = "flat"

    kind = "N:M"
    form = "N:M (for example 2:4, or 2:4@in_channels)"
    needs_count = False
    single_inputs = True

    @property
    def label(self) -> str:
        """``N:M``, with ``@in_channels`` where that is the axis."""
        return f"{self.kept}:{self.size}" + ("" if self.axis == "flat" else f"@{self.axis}")

    def structure(self, shape: Shape, k: int) -> Structure:
        """One group for every M consecutive inputs."""
        n = math.prod(shape)
        group = np.arange(n) // self.size
        if self.axis == "in_channels":
            positions = max(math.prod(shape[1:]), 1)
            channel, position = np.divmod(np.arange(n), positions)
            group = position * -(-shape[0] // self.size) + channel // self.size
        sizes = np.bincount(group)
        return Structure(np.arange(n), group.astype(np.int64), np.minimum(self.kept, sizes).astype(np.int64))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``N:M`` and ``N:M@AXIS``."""
        match = re.fullmatch(r"(\d+):(\d+)(?:@(\w+))?", name)
        if match is None:
            return None
        kept, size, axis = int(match[1]), int(match[2]), match[3] or "flat"
        if not 0 < kept < size <= LARGEST_COUNT:
            raise InputError(f"pattern {name!r} keeps {kept} of {size}; N:M needs 0 < N < M, for example 2:4.")
        return cls(kept, size, one_of(axis, f"the axis of pattern {name!r}", AXES))

    def small(self) -> NOfM:
        """1:2."""
        return NOfM(1, 2, self.axis)


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

    def structure(self, shape: Shape, k: int) -> Structure:
        """One group of all blocks."""
        n = math.prod(shape)
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
