"""Pruning, of one row with a mask of single inputs; and pruning with quantization, of one row with any units."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import over_support
from layerbounds_verify.exact import RefusedError, power
from layerbounds_verify.grids import over_blocks, over_grid
from layerbounds_verify.leaves import over_leaves
from layerbounds_verify.level_leaves import over_level_leaves
from layerbounds_verify.reader import structure
from layerbounds_verify.work import Work


def allow(work: Work, weights: Any) -> None:
    """Refuse weights that do not fit the pattern, the same one in all rows; note units and capacities."""
    whole, used = structure(work.certificate), np.any(weights != 0.0, axis=0)
    if whole.excess(used):
        pattern = work.problem["pattern"]
        raise RefusedError(f"the weights of channel {work.rows[0]} keep more than pattern {pattern!r} allows")
    work.structure = whole.on(work.live)
    if work.problem["family"] == "pruning" and not work.problem["refit"]:
        work.refuse_changes(weights, np.isin(whole.unit, whole.unit[used]))
        work.values = work.certificate.weight[work.rows][0][work.live, None]


def lower(work: Work, claim: Fraction) -> Fraction:
    """What the proof gives for all weights that fit."""
    s = work.structure
    assert s is not None
    if len(work.target) > 1 and not (work.kind == "leaves" and work.values is None):
        raise work.unknown()
    if work.kind == "leaves":
        parts = work.parts("axis", "at", "child", "z", "minorant", "d")
        power(parts["z"], parts["d"])
        if work.values is None:
            return over_leaves(work.gram, work.target, s, None, parts)
        return over_level_leaves(work.gram, work.target[0], s, work.values, parts)
    if work.kind == "enumeration" and work.values is not None:
        values = work.values
        if work.problem["family"] != "joint":
            values = np.sort(np.concatenate([values, np.zeros((len(values), 1))], axis=1), axis=1)
        order, z, rows, price = (work.part(name) for name in ("order", "z", "minorants", "price"))
        return over_grid(work.gram, work.target[0], values, order, z, rows, claim, s, price)
    if work.kind != "dual":
        raise work.unknown()
    minorant = work.minorant()
    tangent = work.tangent(minorant)
    return over_blocks(tangent, minorant, work.values, s) if minorant.parts else over_support(tangent, s, work.values)
