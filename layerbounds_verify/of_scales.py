"""Quantization over all scales."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from layerbounds_verify.rays import over_scales
from layerbounds_verify.scales import read_scales
from layerbounds_verify.work import EXACT_INPUTS, Work


def allow(work: Work, weights: Any) -> None:
    """Refuse weights that no scale explains; note the codes."""
    work.more = read_scales(work.certificate, work.rows, work.live, weights)


def lower(work: Work, claim: Fraction) -> Fraction:
    """What the proof gives for all scales."""
    if work.kind not in ("dual", "scales"):
        raise work.unknown()
    few = work.exact and len(work.gram) <= EXACT_INPUTS
    return over_scales(work.certificate, work.rows, work.index, work.gram, work.target, work.more, claim, few)
