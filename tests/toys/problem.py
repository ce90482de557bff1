"""Deletion: every weight stays as it is or becomes zero, and at most k of them change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import NotAllowedError
from layerbounds.layers.layer import Layer
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.problem import Problem


@dataclass(frozen=True, eq=False)
class Deletions(AllowedSet):
    """Weights of which at most ``most`` are zero instead of what they were."""

    original: Float
    most: int

    @property
    def requirement(self) -> str:
        """A capability of its own."""
        return "deletions"

    def nearest(self, point: Float) -> Float:
        """Delete where that is nearer, the clearest cases first."""
        gain = np.abs(point - self.original) - np.abs(point)
        order = np.argsort(-gain, kind="stable")[: self.most]
        weights = self.original.copy()
        weights[order[gain[order] > 0]] = 0.0
        return weights

    def violation(self, weights: Float) -> float:
        """Deletions beyond the limit, and the largest other change."""
        changed = weights != self.original
        other = np.max(np.where(weights == 0.0, 0.0, np.abs(weights - self.original)), initial=0.0)
        return float(max(int(changed.sum()) - self.most, 0)) + float(other)

    def exact(self, weights: Float) -> Float:
        """The weights themselves."""
        if self.violation(weights) > 0:
            raise NotAllowedError("weights with more or other changes than deletions")
        return weights

    def restrict(self, live: Bool) -> Deletions:
        """Dead inputs are not deleted."""
        return Deletions(self.original[live], min(self.most, int(live.sum())))

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every choice of deletions."""
        n = len(self.original)
        for count in range(self.most + 1):
            for chosen in combinations(range(n), count):
                weights = self.original.copy()
                weights[list(chosen)] = 0.0
                yield weights, np.zeros((n, 0)), False


@dataclass(frozen=True, eq=False)
class DeletionProblem(Problem):
    """At most ``most`` weights of each channel are deleted; the target is another one than the weights."""

    most: int

    family = "deletion"
    adjusted = "deleted"

    @property
    def label(self) -> str:
        """One line."""
        return f"at most {self.most} deletions"

    @property
    def requirement(self) -> str:
        """As the set's."""
        return "deletions"

    @property
    def bits_per_weight(self) -> float:
        """Dense weights."""
        return 16.0

    def allowed(self, channel: int) -> Deletions:
        """The set of a channel."""
        return Deletions(self.layer.matrix[channel], self.most)

    def row_template(self, channel: int) -> Float:
        """Dead inputs keep their weights."""
        return self.layer.matrix[channel].copy()

    def like(self, layer: Layer) -> DeletionProblem:
        """One deletion."""
        return DeletionProblem(layer, 1)

    def rule(self) -> bytes:
        """The label."""
        return self.label.encode()
