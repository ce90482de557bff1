"""Free codebooks: the weights take few different values, which may be any."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.divisions import over_divisions, over_values
from layerbounds_verify.exact import RefusedError
from layerbounds_verify.work import Work


def allow(work: Work, weights: Any) -> None:
    """Refuse weights of too many values."""
    if any(len(np.unique(row)) > work.problem["count"] for row in weights):
        raise RefusedError(f"the weights of channel {work.rows[0]} take more than {work.problem['count']} values")


def lower(work: Work, claim: Fraction) -> Fraction:
    """What the proof gives for all values."""
    if work.kind == "divisions":
        return over_divisions(work.gram, work.target[0], work.problem["count"], work.part("d"), claim)
    if work.kind != "dual":
        raise work.unknown()
    minorant = work.minorant()
    if minorant.parts:
        raise RefusedError("its minorant is no diagonal, as values that are not known need")
    return over_values(work.tangent(minorant), work.problem["count"])
