"""Filter pruning as a pattern: whole output channels, which no structure of inputs says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from layerbounds.exceptions import InputError
from layerbounds.problems.patterns.base import Pattern, Shape
from layerbounds.problems.patterns.structure import Structure


@dataclass(frozen=True)
class Filter(Pattern):
    """At most k output channels of each group of a layer are other than zero; `pruning_problem` alone knows it."""

    kind = "filter"
    form = "filter"
    needs_count = True
    single_inputs = False
    rows = None
    counts_units = True

    @property
    def label(self) -> str:
        """``filter``."""
        return self.kind

    def structure(self, shape: Shape, k: int) -> Structure:
        """There is none of inputs."""
        raise _of_outputs()

    def total(self, shape: Shape) -> int:
        """The inputs do not say how many output channels there are."""
        raise _of_outputs()

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``filter``."""
        return cls() if name == cls.kind else None


def _of_outputs() -> InputError:
    return InputError(
        "pattern filter drops whole output channels, which only pruning_problem and what takes its problems can do; "
        "choose another pattern."
    )
