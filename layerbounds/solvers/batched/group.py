"""What an engine of the batched backend gets: all rows of a group, and what it may use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.arithmetic import Arithmetic
from layerbounds.problems.tasks import AllowedSets, Task
from layerbounds.proofs import Control, Status

#: Called with what is done at the moment, such as ``points 5 of 30``.
Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that share a Gram matrix.

    Attributes
    ----------
    tasks : sequence of Task
        Made when they are asked for: their allowed sets may not all fit into memory.
    gram : ndarray of shape (n, n)
        Of the live inputs; never written to.
    targets : ndarray of shape (rows, n)
    control : Control
    arithmetic : Arithmetic
        Where single-precision products are computed.
    report : callable
    """

    tasks: Sequence[Task[Any]]
    gram: Float
    targets: Float
    control: Control
    arithmetic: Arithmetic
    report: Report

    @property
    def allowed(self) -> Sequence[Any]:
        """The allowed set of each row."""
        return AllowedSets(self.tasks)

    @property
    def energies(self) -> Float:
        """f(0) of each row."""
        return np.array([task.energy for task in self.tasks])

    @property
    def warm_starts(self) -> Float | None:
        """Allowed weights to start from, shape (rows, n); None where there are none."""
        starts = [task.warm_start for task in self.tasks]
        return np.stack([s for s in starts if s is not None]) if all(s is not None for s in starts) else None

    @property
    def threads(self) -> int:
        """How many rows may be worked on side by side."""
        return self.control.threads

    def status(self) -> Status:
        """Why the work on the rows ends now."""
        if self.control.cancel.is_set():
            return Status.INTERRUPTED
        return Status.RELAXED if self.remaining() > 0 else Status.TIME_LIMIT

    def late(self, share: float) -> bool:
        """Whether less than this share of the time is left: what comes later has to have some, too."""
        limit = self.control.time_limit
        return self.remaining() <= (share * limit if math.isfinite(limit) else 0.0)

    def remaining(self) -> float:
        """Seconds left; infinite where no limit was set."""
        return self.control.remaining()


def in_chunks(rows: int, threads: int, work: Callable[[slice], None], least: int = 1) -> None:
    """Call ``work`` with slices that make up all rows, in threads; for compiled loops that release the interpreter.

    Parameters
    ----------
    rows : int
    threads : int
    work : callable
        Each call writes to its own rows.
    least : int
        Rows of a slice: fewer are not worth a thread.
    """
    pieces = max(min(threads, rows // max(least, 1)), 1)
    ends = [rows * k // pieces for k in range(pieces + 1)]
    slices = [slice(a, b) for a, b in pairwise(ends)]
    if pieces == 1:
        work(slices[0])
        return
    with ThreadPoolExecutor(max_workers=pieces) as pool:
        for done in [pool.submit(work, piece) for piece in slices]:
            done.result()
