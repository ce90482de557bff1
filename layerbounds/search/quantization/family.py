"""Quantization: depth-first enumeration on tilted centres with separable bounds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.fitting import codebook_grid
from layerbounds.problems.levels import Levels
from layerbounds.problems.problem import Problem
from layerbounds.problems.quantization import QuantizationProblem, quantization_problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve
from layerbounds.search.families import Family
from layerbounds.search.quantization.block_choice import block_members
from layerbounds.search.quantization.channel_search import CLOSE_AT_ONCE, search_channel
from layerbounds.search.quantization.cut_tests import SMALLEST, prepare_cuts
from layerbounds.search.quantization.effort import announce
from layerbounds.search.quantization.grid_units import has_shared_forms
from layerbounds.search.quantization.preparation import Preparation, order_exponent, prepare
from layerbounds.search.quantization.root import quantization_dual
from layerbounds.search.quantization.split_forms import prepare_split

#: Gram matrices of at least this many inputs are prepared with all threads.
MANY_INPUTS = 1024


class QuantizationFamily:
    """Every weight is a level of its grid."""

    allowed = Levels
    requirements = frozenset({"uniform grids", "codebook grids"})

    def prepare(self, problem: QuantizationProblem, group: int, jobs: int) -> Preparation | None:
        """Order, factorize and bound the Gram matrix of a group, once for all its channels."""
        layer = problem.layer
        live = layer.live(group)
        if not live.any():
            return None
        gram = np.ascontiguousarray(layer.gram[group][np.ix_(live, live)])
        # Several BLAS threads pay only for large matrices, and their rounding depends on their number.
        threads = jobs if len(gram) >= MANY_INPUTS else 1
        preparation = prepare(gram, order_exponent(len(gram)), threads, lambda: announce(len(gram), threads))
        # What follows is part of the preparation, not of a channel's time.
        if len(gram) > CLOSE_AT_ONCE:
            block_members(preparation)
        grid = problem.grid
        if len(gram) >= SMALLEST and any(
            has_shared_forms(grid.uniform, len(grid.codes), scale) for scale in grid.scale
        ):
            prepare_split(preparation)
            prepare_cuts(preparation)
        return preparation

    def solve(self, task: Task[Levels], control: Control) -> RawSolve:
        """Branch and bound of one channel."""
        return search_channel(task, task.shared, control)

    def root_dual(self, task: Task[Levels], weights: Float | None, seconds: float) -> Dual | None:
        """A point, and a diagonal with integer forms or a block-diagonal matrix."""
        return quantization_dual(task, seconds)

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        """Grids with and without zero points, of one scale and of several, and codebooks."""
        for name, how in (
            ("1 bit", {"bits": 1}),
            ("2 bits", {"bits": 2}),
            ("2 bits asymmetric, 2 inputs a scale", {"bits": 2, "symmetric": False, "granularity": 2}),
        ):
            yield name, quantization_problem(layer, **how)  # type: ignore[arg-type]
        yield "ternary", quantization_problem(layer, grid=codebook_grid(layer.weight, "ternary"))


FAMILY: Family = QuantizationFamily()
