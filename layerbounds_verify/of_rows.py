"""Pruning of units of several inputs, and of several rows that have one mask."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify import of_pruning
from layerbounds_verify.bounds import errors
from layerbounds_verify.choices import masks, over_priced, over_rows
from layerbounds_verify.exact import RefusedError, fraction, power
from layerbounds_verify.leaves import leaf_bounds
from layerbounds_verify.of_pruning import allow as allow
from layerbounds_verify.reader import Structure
from layerbounds_verify.units import over_units
from layerbounds_verify.work import Work


def lower(work: Work, claim: Fraction) -> Fraction:
    """What the proof gives for all masks."""
    if not work.said.get("units"):
        return lower_of_rows(work, claim)
    s, original = work.structure, work.certificate.weight[work.rows][:, work.live]
    if work.values is None or s is None:
        raise RefusedError("its proof is about masks, in a problem that may change weights")
    form = masks(work.gram, np.eye(len(original)), original.T, work.target.T, s.unit)
    capacities = Structure(np.arange(len(s.group)), s.group, s.capacity)
    return lower_of_masks(work, form, capacities, claim)


def lower_of_masks(work: Work, form: tuple[Any, Any, Fraction], s: Structure, claim: Fraction) -> Fraction:
    """The same where units are inputs of a quadratic form, which are kept with the weight 1."""
    (gram, target, constant), given = form, work
    work = replace(work, gram=gram, target=target[None], values=np.ones((len(gram), 1)), structure=s, other=True)
    if work.kind == "leaves":
        parts = work.parts("axis", "at", "child", "z", "minorant", "d")
        power(parts["z"], parts["d"])
        unit, status, bound = leaf_bounds(gram, work.target, s, work.values[None], parts)
        ends = [fraction(end, unit) + constant for end in bound]
        # Where everything is decided, and the form is not exact enough, the mask itself is looked at.
        pairs = zip(ends, status, strict=True)
        return min(_error(given, own > 0) if end < claim and np.all(own) else end for end, own in pairs)
    if work.kind == "dual" and work.has("price"):
        minorant = work.minorant()
        return over_priced(work.tangent(minorant), minorant, s, work.part("price")) + constant
    return of_pruning.lower(work, claim - constant) + constant


def _error(work: Work, kept: Any) -> Fraction:
    """The error of keeping some units, or whole rows, as they are."""
    mask = kept[:, None] if work.structure is None else kept[work.structure.unit]
    weights = np.where(mask, work.certificate.weight[work.rows][:, work.live], 0.0)
    return sum(errors(work.gram, work.target, weights, work.metric), Fraction(0))


def lower_of_rows(work: Work, claim: Fraction) -> Fraction:
    """The same where weights are refitted."""
    s = work.structure
    assert s is not None
    if work.kind == "leaves" and work.has("weights"):
        if work.values is not None:
            raise RefusedError("its leaves are about units that are refitted, in another problem")
        parts = work.parts("axis", "at", "child", "weights", "minorant", "values")
        return over_units(work.gram, work.target, s, parts, claim)
    if work.kind == "dual" and "minorants" in work.said and work.values is None:
        found = [work.minorant(number) for number in work.said["minorants"]]
        return over_rows(work.gram, work.target, work.part("z"), found, work.part("row_class"), s)
    return of_pruning.lower(work, claim)
