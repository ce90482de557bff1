"""The package's own branch and bound."""

from __future__ import annotations

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.backends.base import Availability, Capability, ChannelTask, Control, RawSolve
from layerbounds.problem import Problem
from layerbounds.search.preparation import Preparation, prepare
from layerbounds.search.quantization import search_channel
from layerbounds.solution import Status

#: Order exponent λ; see docs/quantization-engine.md for what others cost.
ORDER_EXPONENT = 1.0


class NativeBackend:
    """Depth-first enumeration on tilted centres with separable bounds, in numba."""

    name = "native"
    capabilities = frozenset(
        {
            Capability.UNIFORM,
            Capability.CODEBOOK,
            Capability.WARM_START,
            Capability.NODE_LIMIT,
            Capability.TRACE,
        }
    )

    def availability(self) -> Availability:
        """Always there."""
        return Availability(True, f"numba {numba.__version__}")

    def prepare(self, problem: Problem, group: int, jobs: int) -> Preparation | None:
        """Order, factorize and bound the Gram matrix of a group, once for all its channels."""
        layer = problem.layer
        live = layer.live(group)
        if not live.any():
            return None
        with threadpool_limits(limits=jobs):
            return prepare(np.ascontiguousarray(layer.gram[group][np.ix_(live, live)]), ORDER_EXPONENT)

    def solve(self, task: ChannelTask, control: Control) -> RawSolve:
        """Branch and bound of one channel."""
        if len(task.target) == 0:
            return RawSolve(weights=task.target.copy(), termination=Status.OPTIMAL)
        assert isinstance(task.shared, Preparation)
        return search_channel(task, task.shared, control)
