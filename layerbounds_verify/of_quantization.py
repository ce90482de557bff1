"""Quantization: every weight is one of its levels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import over_levels
from layerbounds_verify.boxes import over_boxes
from layerbounds_verify.codes import over_codes
from layerbounds_verify.exact import RefusedError
from layerbounds_verify.forms import with_forms
from layerbounds_verify.grids import over_blocks, over_grid
from layerbounds_verify.reader import lattice, levels
from layerbounds_verify.work import Work


def allow(work: Work, weights: Any) -> None:
    """Refuse weights that are no levels; note these."""
    work.allow_levels(weights, np.sort(levels(work.certificate, work.rows[0]), axis=1))


def lower(work: Work, claim: Fraction) -> Fraction:
    """What the proof gives for all levels."""
    scale, zero, count = _lattice(work)
    target, values = work.target[0], work.values
    if work.kind == "enumeration":
        order, z, rows = (work.part(name) for name in ("order", "z", "minorants"))
        if scale is None:
            return over_grid(work.gram, target, values, order, z, rows, claim)
        forms: Any = None
        if work.has("forms"):
            forms = tuple(work.part(name) for name in ("forms", "depths", "units", "weights"))
        return over_codes(work.gram, target, values, order, z, rows, claim, scale, zero, count, forms)
    if work.kind not in ("dual", "leaves"):
        raise work.unknown()
    minorant = work.minorant(scale=scale)
    if work.kind == "leaves":
        if minorant.forms is None:
            raise RefusedError("its tree names a minorant without integer forms")
        parts = work.parts("axis", "at", "child", "z", "multipliers")
        return over_boxes(target, work.gram, values, minorant, parts, scale, zero, count)
    tangent, added = work.tangent(minorant), Fraction(0)
    if minorant.forms is not None:
        tangent, added = with_forms(tangent, values, minorant, work.part("multipliers"), scale, zero, count)
    return added + (over_blocks(tangent, minorant, values, None) if minorant.parts else over_levels(tangent, values))


def _lattice(work: Work) -> tuple[Any, Any, Any]:
    """Scales and zero points that make the codes 0, 1, 2, …, and how many; None where these are not consecutive."""
    found = lattice(work.certificate, work.rows[0])
    if found is None:
        return None, None, None
    scale, zero, count = (part[work.live] for part in found)
    return scale, zero, count
