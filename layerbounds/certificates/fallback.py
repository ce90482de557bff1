"""What a certificate claims where the proof of a lower end is not at hand: what one dual point proves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.certify.interval import dual_bound, dual_end
from layerbounds.exceptions import CertificationError
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BoundKind, Dual, Evidence
from layerbounds.search.families import root_dual

#: Seconds for a dual point where there is none, beside those of the search whose result it is for.
DUAL_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class Claim:
    """A lower end, and what it is derived from.

    Attributes
    ----------
    lower : float
    kind : BoundKind
    evidence : Evidence
    """

    lower: float
    kind: BoundKind
    evidence: Evidence

    def at_most(self, lower: float) -> Claim:
        """The same evidence for no more than another lower end."""
        return Claim(min(self.lower, lower), self.kind, self.evidence)


def by_dual(task: Task[Any], found: Evidence, seconds: float) -> Claim:
    """What a dual point proves: that of the evidence, or the root's.

    Parameters
    ----------
    task : Task
        With allowed weights as a start.
    found : Evidence
    seconds : float
        Time for a dual point where there is none.
    """
    dual = found.dual if found.dual is not None else _root(task, seconds)
    if dual is None:
        return trivial(task)
    try:
        lower, kind = dual_end(task, dual_bound(task, dual))
    except (CertificationError, ArithmeticError, np.linalg.LinAlgError):
        return trivial(task)
    return trivial(task) if kind == BoundKind.TRIVIAL else Claim(lower, kind, Evidence(dual))


def trivial(task: Task[Any]) -> Claim:
    """The constant, which no weights can repair."""
    return Claim(task.constant, BoundKind.TRIVIAL, Evidence())


def _root(task: Task[Any], seconds: float) -> Dual | None:
    try:
        return root_dual(task, task.warm_start, DUAL_SECONDS + seconds)
    except (ArithmeticError, np.linalg.LinAlgError):
        return None
