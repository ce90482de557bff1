"""A pattern for the test of the recipe in docs/architecture.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from layerbounds.problems.patterns.base import Pattern, Shape
from layerbounds.problems.patterns.structure import Structure


@dataclass(frozen=True)
class Spread(Pattern):
    """At most k nonzero weights, none of them at an odd input."""

    kind = "spread"
    form = "spread"
    needs_count = True
    single_inputs = True

    @property
    def label(self) -> str:
        """``spread``."""
        return self.kind

    def structure(self, shape: Shape, k: int) -> Structure:
        """Even inputs share the capacity; odd ones have none."""
        n = math.prod(shape)
        return Structure(np.arange(n), np.arange(n) % 2, np.array([k, 0], dtype=np.int64)[: min(n, 2)])

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``spread``."""
        return cls() if name == cls.kind else None
