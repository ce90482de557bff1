"""Pruning and quantization together: best-first search over supports and levels, with enumeration at its nodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.fitting import codebook_grid
from layerbounds.problems.joint import JointProblem, joint_problem
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.joint.channel_search import search_joint
from layerbounds.search.joint.root import GramParts, gram_parts


class JointFamily:
    """Every weight is zero or a level, and what is kept fits a sparsity structure."""

    allowed = LevelsOnSupport
    requirements = frozenset({"pruning with quantization"})

    def prepare(self, problem: JointProblem, group: int, jobs: int) -> GramParts | None:
        """Factorize the Gram matrix of a group and find a first minorant, once for all its channels."""
        live = problem.layer.live(group)
        if not live.any():
            return None
        return gram_parts(np.ascontiguousarray(problem.layer.gram[group][np.ix_(live, live)]))

    def solve(self, task: Task[LevelsOnSupport], control: Control) -> RawSolve:
        """Branch and bound of one channel."""
        return search_joint(task, control)

    def root_dual(self, task: Task[LevelsOnSupport], weights: Float | None, seconds: float) -> Dual | None:
        """A point and a minorant, diagonal or in blocks."""
        control = Control(seconds, 0.0, 0, 0, 1, threading.Event())
        return search_joint(replace(task, warm_start=weights), control).dual

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Grids with and without a zero level, and all kinds of patterns."""
        k = layer.in_features // 2
        yield f"2 bits, {k} kept", joint_problem(layer, 2, k=k)
        yield "2 bits, 1:2", joint_problem(layer, 2, pattern="1:2")
        yield "2 bits, blocks of 2", joint_problem(layer, 2, k=k, pattern="block:2")
        yield f"1 bit, {k} kept", joint_problem(layer, 1, k=k)
        yield (
            "2 bits asymmetric, 2 inputs a scale, 1:2",
            joint_problem(layer, 2, pattern="1:2", symmetric=False, granularity=2),
        )
        ternary = codebook_grid(layer.weight, "ternary")
        yield f"ternary, {k} kept", joint_problem(layer, grid=ternary, k=k)
        yield f"weights as they are, {k} kept", joint_problem(layer, weights=layer.weight, k=k)


FAMILY: Family = JointFamily()
