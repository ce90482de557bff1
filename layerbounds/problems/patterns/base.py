"""What every sparsity pattern is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Self

from layerbounds.problems.patterns.structure import Structure

#: Of the weight of one output channel: (inputs,), or (channels, kernel height, kernel width) of a convolution.
Shape = tuple[int, ...]


class Pattern(ABC):
    """A rule for the inputs that output channels keep: one class and one entry in `registry.PATTERNS`.

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
    rows : int or None
        How many output channels have one mask, unless a problem says more; None for all of a layer.
    counts_units : bool
        Whether the number of what is kept counts units rather than inputs.
    tiled : bool
        Whether rows have masks of their own that limit one another (`layerbounds.problems.patterns.tiles`).
    """

    kind: ClassVar[str]
    form: ClassVar[str]
    needs_count: ClassVar[bool]
    single_inputs: ClassVar[bool]
    rows: ClassVar[int | None] = 1
    counts_units: ClassVar[bool] = False
    tiled: ClassVar[bool] = False

    @property
    @abstractmethod
    def label(self) -> str:
        """The name that `parse_pattern` reads."""

    @abstractmethod
    def structure(self, shape: Shape, k: int) -> Structure:
        """Units, groups and capacities for a weight of an output channel, of which k inputs or units may be kept.

        Parameters
        ----------
        shape : tuple of int
            (inputs,), or (channels, kernel height, kernel width): of inputs in their flattened order.
        k : int
            Ignored where ``needs_count`` is False.
        """

    def total(self, shape: Shape) -> int:
        """How many inputs there are, or units where these are counted."""
        return math.prod(shape)

    def rule(self) -> bytes:
        """Equal for equal patterns."""
        return self.label.encode()

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
