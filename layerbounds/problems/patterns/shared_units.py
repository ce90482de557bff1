"""Structured sparsity: units of inputs that all output channels keep or drop together."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from layerbounds.arguments import shown, whole_number
from layerbounds.arrays import Int, as_numpy
from layerbounds.exceptions import InputError
from layerbounds.problems.patterns.base import Pattern, Shape
from layerbounds.problems.patterns.structure import Structure


class SharedUnits(Pattern):
    """At most k units of inputs, the same ones in all output channels; k and densities count units, dead ones too."""

    needs_count = True
    single_inputs = False
    rows = None
    counts_units = True

    @property
    def label(self) -> str:
        """The kind."""
        return self.kind

    @abstractmethod
    def units(self, shape: Shape) -> Int:
        """The unit of each input, numbered from 0, shape (n,)."""

    def structure(self, shape: Shape, k: int) -> Structure:
        """One group of all units."""
        unit = self.units(shape).astype(np.int64)
        return Structure(unit, np.zeros(int(unit.max()) + 1, dtype=np.int64), np.array([k], dtype=np.int64))

    def total(self, shape: Shape) -> int:
        """The number of units."""
        return int(self.units(shape).max()) + 1

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read the kind."""
        return cls() if name == cls.kind else None


@dataclass(frozen=True)
class Channel(SharedUnits):
    """Input channels: all kernel positions of a channel; single inputs of a linear layer (channel-wise pruning)."""

    kind = "channel"
    form = "channel"

    def units(self, shape: Shape) -> Int:
        """By the first index."""
        return np.arange(math.prod(shape)) // math.prod(shape[1:])


@dataclass(frozen=True)
class Column(SharedUnits):
    """Single inputs: columns of the weight matrix (shape-wise pruning)."""

    kind = "column"
    form = "column"
    single_inputs = True

    def units(self, shape: Shape) -> Int:
        """Each its own."""
        return np.arange(math.prod(shape))


@dataclass(frozen=True)
class Position(SharedUnits):
    """Kernel positions of a convolution: one position in all input channels."""

    kind = "position"
    form = "position"

    def units(self, shape: Shape) -> Int:
        """By all indices but the first."""
        if len(shape) < 2:
            raise InputError(
                "pattern position needs the weight of a convolution, with its kernel as last dimensions; "
                f"this weight has {shape[0]} inputs and no kernel."
            )
        return np.arange(math.prod(shape)) % math.prod(shape[1:])

    def small(self) -> Pattern:
        """Two inputs a unit: small layers have no kernel."""
        return Head(2)


@dataclass(frozen=True)
class Head(SharedUnits):
    """S consecutive inputs, such as what an attention head hands to the output projection; the last may be smaller."""

    size: int

    kind = "head"
    form = "head:S (head:64)"

    @property
    def label(self) -> str:
        """``head:S``."""
        return f"head:{self.size}"

    def units(self, shape: Shape) -> Int:
        """S inputs after one another."""
        return np.arange(math.prod(shape)) // self.size

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``head:S``."""
        match = re.fullmatch(r"head:(\d+)", name)
        if match is None:
            return None
        return cls(whole_number(int(match[1][:40]), f"the head size of pattern {shown(name)}", 1))

    def small(self) -> Head:
        """Two inputs a head."""
        return Head(2)


@dataclass(frozen=True, eq=False)
class GivenUnits(SharedUnits):
    """Units given one by one.

    Attributes
    ----------
    unit : ndarray of int64
        Of each input, in the weight's shape without its output channels or flattened; each number from 0 on is used.
    """

    unit: Int

    kind = "units"
    form = "an array with the unit of each input"

    def __post_init__(self) -> None:
        flat = np.asarray(self.unit).ravel()
        numbers = np.unique(flat) if flat.dtype.kind in "iu" else np.array([-1])
        if not len(flat) or numbers[0] != 0 or numbers[-1] != len(numbers) - 1:
            raise InputError("the units of a pattern are not numbered 0, 1, 2, …, each used; number them anew.")
        object.__setattr__(self, "unit", flat.astype(np.int64))

    @property
    def label(self) -> str:
        """How many."""
        return f"units ({int(self.unit.max()) + 1} given)"

    def rule(self) -> bytes:
        """With the array."""
        return self.label.encode() + self.unit.tobytes()

    def units(self, shape: Shape) -> Int:
        """Those given."""
        if len(self.unit) != math.prod(shape):
            raise InputError(
                f"the pattern gives the units of {len(self.unit)} inputs, but the layer has {math.prod(shape)}."
            )
        return self.unit

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Arrays have no name."""
        return None

    def small(self) -> Pattern:
        """Two inputs a unit."""
        return Head(2)


def given_units(value: Any) -> GivenUnits | None:
    """The pattern of an array of units; None where the value is no array."""
    return GivenUnits(as_numpy(value, "pattern")) if isinstance(value, (np.ndarray, list, tuple)) else None
