"""Deletions, by trying all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from layerbounds.problems.toy import DeletionProblem, Deletions

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import interior_start
from layerbounds.layers.layer import Layer
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, DualPoint, RawSolve, SearchProof, Status
from layerbounds.search.families import Family


class DeletionFamily:
    """Weights stay or go."""

    allowed = Deletions
    requirements = frozenset({"deletions"})

    def prepare(self, problem: DeletionProblem, group: int, jobs: int) -> None:
        """Nothing is shared."""

    def solve(self, task: Task[Deletions], control: Control) -> RawSolve:
        """Try everything."""
        points = np.array([weights for weights, _, _ in task.allowed.pieces()])
        deviation = points - task.target
        errors = np.einsum("ki,ij,kj->k", deviation, task.gram, deviation)
        best = int(np.argmin(errors))
        proof = SearchProof(float(errors[best]), 1e-13 * task.energy)
        return RawSolve(points[best], Status.OPTIMAL, proof=proof, dual=self.root_dual(task, None, 0.0))

    def root_dual(self, task: Task[Deletions], weights: Float | None, seconds: float) -> DualPoint:
        """The target, and some diagonal."""
        return DualPoint(task.target.copy(), 0.5 * interior_start(task.gram))

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Two deletions, of weights whose target is another one."""
        moved = Layer(layer.weight, layer.gram, "moved", target=0.6 * layer.matrix)
        yield "two deletions", DeletionProblem(moved, 2)


FAMILY: Family = DeletionFamily()
