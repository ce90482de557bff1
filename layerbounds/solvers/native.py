"""The package's own branch and bound."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numba
import numpy as np

from layerbounds.bounds.minorants.clusters import ClusterMinorant
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.quantization import Problem
from layerbounds.problems.tasks import PruningTask, Task
from layerbounds.proofs import Control, RawSolve, Status
from layerbounds.search.pruning.dispatch import compile_kernels, search_pruning
from layerbounds.search.pruning.preparation import prepare_pruning
from layerbounds.search.quantization.block_choice import block_members
from layerbounds.search.quantization.channel_search import CLOSE_AT_ONCE, search_channel
from layerbounds.search.quantization.cut_tests import SMALLEST, prepare_cuts
from layerbounds.search.quantization.grid_units import has_shared_forms
from layerbounds.search.quantization.preparation import Preparation, prepare
from layerbounds.search.quantization.split_forms import prepare_split
from layerbounds.search.quantization.warm_up import compile_blocks, compile_quantization
from layerbounds.solvers.base import Availability, Capability, Option

#: Order exponents λ of small and of large layers; docs/quantization-engine.md says what others cost.
SMALL_ORDER, LARGE_ORDER = 1.0, 0.5
LARGE = 100
#: Gram matrices of at least this many inputs are prepared with all threads.
MANY_INPUTS = 1024


class NativeBackend:
    """Depth-first enumeration on tilted centres with separable bounds, in numba."""

    name = "native"
    capabilities = frozenset(
        {
            Capability.UNIFORM,
            Capability.CODEBOOK,
            Capability.PRUNING,
            Capability.MASK,
            Capability.WARM_START,
            Capability.NODE_LIMIT,
            Capability.TRACE,
            Capability.OPTIMALITY,
            Capability.SINGULAR,
        }
    )
    options: Mapping[str, Option] = MappingProxyType({})
    concurrent = True

    def availability(self) -> Availability:
        """Always there."""
        return Availability(True, f"numba {numba.__version__}")

    def prepare(self, problem: Problem, group: int, jobs: int) -> Preparation | ClusterMinorant | None:
        """Order, factorize and bound the Gram matrix of a group, once for all its channels."""
        if isinstance(problem, PruningProblem):
            compile_kernels()
            return prepare_pruning(problem, group)
        compile_quantization()
        layer = problem.layer
        live = layer.live(group)
        if not live.any():
            return None
        gram = np.ascontiguousarray(layer.gram[group][np.ix_(live, live)])
        exponent = LARGE_ORDER if len(gram) > LARGE else SMALL_ORDER
        # Several BLAS threads pay only for large matrices, and their rounding depends on their number.
        preparation = prepare(gram, exponent, jobs if len(gram) >= MANY_INPUTS else 1)
        # What follows is part of the preparation, not of a channel's time.
        if len(gram) > CLOSE_AT_ONCE:
            compile_blocks()
            block_members(preparation)
        grid = problem.grid
        if len(gram) >= SMALLEST and any(has_shared_forms(grid.uniform, grid.codes, scale) for scale in grid.scale):
            prepare_split(preparation)
            prepare_cuts(preparation)
        return preparation

    def solve(self, task: Task, control: Control) -> RawSolve:
        """Branch and bound of one channel."""
        if len(task.target) == 0:
            return RawSolve(weights=task.target.copy(), termination=Status.OPTIMAL)
        if isinstance(task, PruningTask):
            return search_pruning(task, control)
        assert isinstance(task.shared, Preparation)
        return search_channel(task, task.shared, control)
