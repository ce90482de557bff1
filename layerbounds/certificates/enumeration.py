"""Searches of grid points that a checker repeats: where they begin, and what bounds them at each depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.certificates.dual import Parts
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Evidence
from layerbounds.search.quantization.preparation import order_exponent, prepare

#: Quantization has been closed by enumerations, if by anything that is not its trees of boxes, up to so many inputs.
MOST_LOST = 160


def enumeration(task: Task[Levels], found: Evidence, lower: float) -> Parts:
    """The solver's own search; where it has been lost, one from the root's dual point."""
    if found.proof is not None:
        kept = found.proof.enumeration
        if kept is None:
            return {}
        forms = kept.forms
        return {
            "order": kept.order,
            "z": kept.point,
            "minorants": kept.minorants,
            **({} if forms is None else {**vars(forms), "forms": forms.forms.astype(np.int8)}),
        }
    return _prepared(task, found) if len(task.gram) <= MOST_LOST else {}


def _prepared(task: Task[Any], found: Evidence) -> Parts:
    """The order and the diagonals of a quantization search, from the root's dual point."""
    prepared = prepare(task.gram, order_exponent(len(task.gram)))
    z = np.asarray(getattr(found.dual, "z", task.target), dtype=np.float64)
    return {"order": prepared.order.astype(np.int64), "z": z, "minorants": prepared.minorants}
