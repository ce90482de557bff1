"""The batched backend: certified intervals for all output channels of a layer at once (docs/batched.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.exceptions import MissingExtraError
from layerbounds.kernels.arithmetic import CPU, Arithmetic
from layerbounds.problems.levels import Levels
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.problem import Problem
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, FilterDual, Leaf, RawSolve, ScaleDual, SharedDual, Status, TiledDual
from layerbounds.solvers.base import Availability, Capability, Option
from layerbounds.solvers.batched.group import Group
from layerbounds.solvers.batched.joint import JointEngine
from layerbounds.solvers.batched.levels import LevelsEngine
from layerbounds.solvers.batched.scales import ScalesEngine
from layerbounds.solvers.batched.support import SupportEngine
from layerbounds.solvers.scaled import check_scaled
from layerbounds.version import __version__

#: Where single-precision arithmetic can be done.
DEVICES = ("cpu", "cuda", "mps")


class Engine(Protocol):
    """What treats one kind of allowed set."""

    requirements: frozenset[str]

    def solve(self, group: Group) -> list[RawSolve]:
        """A dual point and weights for every row; rows with the same minorant share its array."""


ENGINES: Mapping[type, Engine] = MappingProxyType(
    {
        Levels: LevelsEngine(),
        Support: SupportEngine(),
        ScaledLevels: ScalesEngine(),
        LevelsOnSupport: JointEngine(),
    }
)


class BatchedBackend:
    """One minorant for all rows, and matrix products."""

    name = "batched"
    options: Mapping[str, Option] = MappingProxyType(
        {
            "device": Option("cpu", "where products and factorizations are computed", DEVICES),
            "blocks": Option(
                "auto",
                "inputs of a block of the quantization minorant, 0 for a diagonal; auto is 9 up to 1,024 inputs",
                ("auto", *map(str, range(13))),
            ),
            "effort": Option(1.0, "multiple of the usual work on the weights"),
        }
    )
    concurrent = True

    @property
    def capabilities(self) -> frozenset[str]:
        """What the engines require, and everything that they honour."""
        honoured = {Capability.BATCHED, Capability.WARM_START, Capability.SINGULAR}
        return frozenset(honoured).union(*(engine.requirements for engine in ENGINES.values()))

    def availability(self) -> Availability:
        """Always there."""
        return Availability(True, __version__)

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        """Nothing: what channels share depends on all of them; scales that several channels share are refused."""
        check_scaled(problem, self.name)

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """A group of one row."""
        return self.solve_group([task], control)[0]

    def solve_group(self, tasks: Sequence[Task[Any]], control: Control) -> list[RawSolve]:
        """Bound the rows, which share their Gram matrix."""
        first = tasks[0]
        if len(first.gram) == 0:
            return [RawSolve(weights=task.target.copy(), termination=Status.OPTIMAL) for task in tasks]
        group = Group(
            tasks,
            first.gram,
            np.stack([task.target for task in tasks]),
            control,
            arithmetic_on(control.options["device"]),
            control.report,
        )
        # One thread for each call is the rule elsewhere, where the rows are worked on side by side.
        # What overflows in single precision is found afterwards.
        quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        with threadpool_limits(limits=control.threads), quiet:
            try:
                return [_finite(raw) for raw in ENGINES[type(first.allowed)].solve(group)]
            except (np.linalg.LinAlgError, ArithmeticError) as error:
                note = f"the bounds are trivial: the arithmetic broke down ({error})"
                return [RawSolve(task.warm_start, Status.UNRESOLVED, notes=(note,)) for task in tasks]


def _finite(raw: RawSolve) -> RawSolve:
    """An answer without what overflowed: one row must not take the others with it."""
    weights, dual = raw.weights, raw.dual
    notes = list(raw.notes)
    if weights is not None and not np.all(np.isfinite(weights)):
        weights = None
        notes.append("the weights are the nearest ones: numbers overflowed")
    if not all(np.all(np.isfinite(z)) for z in _points(dual)):
        dual = None
        notes.append("the bound is trivial: numbers overflowed")
    return replace(raw, weights=weights, dual=dual, notes=tuple(notes))


def _points(dual: Dual | None) -> list[Any]:
    if dual is None or isinstance(dual, (Leaf, FilterDual, TiledDual)):
        return []
    if isinstance(dual, (SharedDual, TiledDual)):
        return [dual.points]
    return [point.z for point in dual.points] if isinstance(dual, ScaleDual) else [dual.z]


def arithmetic_on(device: str) -> Arithmetic:
    """The arithmetic of a device.

    Raises
    ------
    MissingExtraError
        If torch is missing.
    InputError
        If this machine has no such device.
    """
    if device == "cpu":
        return CPU
    try:
        from layerbounds.solvers.batched.torch_arithmetic import TorchArithmetic
    except ImportError as error:
        raise MissingExtraError(f"device {device!r} needs PyTorch; run: pip install 'layerbounds[torch]'.") from error
    return TorchArithmetic(device)
