"""Pruning of rows whose masks limit one another: transposable N:M and V:N:M."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.exact import RefusedError
from layerbounds_verify.reader import structure
from layerbounds_verify.tiles import Limits, limits, over_tiles
from layerbounds_verify.work import Work


def allow(work: Work, weights: Any) -> None:
    """Refuse weights that do not fit the pattern of each row, or what binds the rows."""
    whole, bound, used = structure(work.certificate), limits(work.certificate, len(work.rows)), weights != 0.0
    if any(whole.excess(mask) for mask in used) or bound.excess(used):
        pattern = work.problem["pattern"]
        raise RefusedError(f"the weights of channel {work.rows[0]} keep more than pattern {pattern!r} allows")
    work.structure, work.more = whole.on(work.live), Limits(bound.most, bound.columns.on(work.live))
    if not work.problem["refit"]:
        work.refuse_changes(weights, np.array([np.isin(whole.unit, whole.unit[mask]) for mask in used]))
        work.values = work.certificate.weight[work.rows][:, work.live]


def lower(work: Work, claim: Fraction) -> Fraction:
    """What the proof gives for all masks."""
    assert work.structure is not None
    return over_tiles(work.gram, work.target, work.values, work.structure, work.more, work.parts(), claim)
