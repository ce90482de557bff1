"""Quantization over all scales: one search tree whose nodes carry intervals of scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.problem import Problem
from layerbounds.problems.quantization import quantization_problem
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.quantization.preparation import order_exponent
from layerbounds.search.scale.groups import GroupShared, prepare_groups, search_group_scales
from layerbounds.search.scale.root import scale_dual
from layerbounds.search.scale.single import (
    Shared,
    prepare_shared,
    search_one_scale,
    search_shared_scale,
)


class ScaleFamily:
    """Every weight is a code times a scale that is chosen with the codes."""

    allowed = ScaledLevels
    requirements = frozenset({"free scales"})

    def prepare(self, problem: FreeScaleProblem, group: int, jobs: int) -> Shared | GroupShared | None:
        """Order, factorize and bound the Gram matrix of a group, once for all its channels."""
        layer = problem.layer
        live = layer.live(group)
        if not live.any():
            return None
        gram = np.ascontiguousarray(layer.gram[group][np.ix_(live, live)])
        allowed = problem.allowed(group * (layer.out_features // layer.groups)).restrict(live)
        if allowed.groups > 1:
            return prepare_groups(gram, allowed, order_exponent(len(gram)))
        return prepare_shared(gram, allowed)

    def solve(self, task: Task[ScaledLevels], control: Control) -> RawSolve:
        """Branch and bound of one channel, or of all that share their scale."""
        if task.allowed.rows > 1:
            return search_shared_scale(task, task.shared, control)
        if task.allowed.groups > 1:
            return search_group_scales(task, task.shared, control)
        return search_one_scale(task, task.shared, control)

    def root_dual(self, task: Task[ScaledLevels], weights: Float | None, seconds: float) -> Dual | None:
        """Dual points that each bound a range of scales."""
        return scale_dual(task, weights, seconds)

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Uniform grids with and without zero points, codebooks, scales of both signs and powers of two."""
        for name, how in (
            ("binary", {"bits": 1}),
            ("2 bits", {"bits": 2}),
            ("2 bits, both signs", {"bits": 2, "signed_scale": True}),
            ("2 bits, zero points", {"bits": 2, "zero_point": "free"}),
            ("2 bits, real zero points", {"bits": 2, "zero_point": "real"}),
        ):
            yield name, quantization_problem(layer, scale="free", **how)


FAMILY: Family = ScaleFamily()
