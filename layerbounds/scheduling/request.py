"""What a call of `layerbounds.solve` asks for, checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.cancellation import cancel_event
from layerbounds.certify.interval import CertifiedChannel
from layerbounds.exceptions import InputError, MissingExtraError, UnsupportedProblemError
from layerbounds.problems.problem import Problem
from layerbounds.solvers.base import Backend, Capability, read_options
from layerbounds.solvers.batched.backend import DEVICES

#: Called after each finished channel: (channels done, channels in all, channel, its certified result).
Progress = Callable[[int, int, int, CertifiedChannel], None]
#: Called with what long work is at.
Report = Callable[[str], None]

#: Seconds of search per channel where nobody sets a limit.
USUAL_LIMIT = 10.0


@dataclass(frozen=True, eq=False)
class Request:
    """Sets of rows, and the limits of the work on them.

    Attributes
    ----------
    problem : Problem
    sets : list of list of int
        Output channels that are bound together.
    gaps : list of float
        Relative gap at which each set is left alone.
    starts : list of ndarray or None
        Allowed weights of each set, dead inputs included.
    time_limit : float or None
        Seconds for each set.
    total_time : float or None
        Seconds for all of them.
    threads : int
    seed : int
    node_limit : int or None
    options : mapping
        The backend's own, as given.
    device : str or None
    memory_limit : int or None
        Bytes.
    progress : callable or None
    report : callable
    cancel : threading.Event
        Set when the user interrupts; in a thread whose work others may cancel, by them.
    """

    problem: Problem
    sets: list[list[int]]
    gaps: list[float]
    starts: list[Float | None]
    time_limit: float | None
    total_time: float | None
    threads: int
    seed: int
    node_limit: int | None
    options: Mapping[str, Any]
    device: str | None
    memory_limit: int | None
    progress: Progress | None
    report: Report
    cancel: threading.Event = field(default_factory=cancel_event)

    def group(self, index: int) -> int:
        """The Gram group of a set."""
        return self.problem.layer.group_of(self.sets[index][0])


def check_backend(solver: Backend, problem: Problem) -> None:
    """Raise unless a backend is there and treats the problem.

    Raises
    ------
    MissingExtraError, UnsupportedProblemError
    """
    state = solver.availability()
    if not state.available:
        raise MissingExtraError(f"backend {solver.name!r} is not available: {state.reason}")
    needed = problem.requirement
    if needed not in solver.capabilities:
        raise UnsupportedProblemError(
            f"backend {solver.name!r} cannot treat {needed}; choose another one (`layerbounds backends`)."
        )


def settings(solver: Backend, request: Request, named: bool) -> dict[str, Any]:
    """The options of a backend for a request.

    Parameters
    ----------
    solver : Backend
    request : Request
    named : bool
        Whether the user named the backend: one that was chosen for a small layer has no use for a device or a limit of
        memory, and needs none.

    Raises
    ------
    InputError
        If something is asked for that the backend does not have.
    """
    given = dict(request.options)
    if request.device is not None:
        device = one_of(request.device, "device", DEVICES)
        if "device" in solver.options:
            if given.get("device", device) != device:
                raise InputError(f"device is {device!r} and option device is {given['device']!r}; pass one of them.")
            given["device"] = device
        elif named:
            raise InputError(
                f"backend {solver.name!r} computes on the processor alone; leave out device, or choose 'batched'."
            )
    if request.memory_limit is not None and named and Capability.BATCHED not in solver.capabilities:
        raise InputError(
            f"backend {solver.name!r} treats channels one by one; leave out memory_limit, or choose 'batched'."
        )
    return read_options(solver, given)
