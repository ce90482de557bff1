"""A dual point from elsewhere as the first relaxation of a channel."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from layerbounds.bounds.minorants.diagonal import certified_minorant
from layerbounds.bounds.quantization.relaxation import Relaxation, evaluate_relaxation
from layerbounds.proofs import BlockDual, Dual, DualPoint
from layerbounds.search.quantization.grid_units import UnitProblem


@singledispatch
def given_relaxation(dual: Dual | None, unit: UnitProblem) -> Relaxation | None:
    """The tangent relaxation at a given point, with a given diagonal that is proven here or the layer's own.

    Parameters
    ----------
    dual : Dual or None
        In the units and the order of the layer's live inputs; what is of another kind gives none.
    unit : UnitProblem
    """
    return None


@given_relaxation.register
def _(dual: DualPoint, unit: UnitProblem) -> Relaxation | None:
    if not dual.is_valid(unit.size):
        return None
    d = certified_minorant(unit.gram, np.maximum(unit.diagonal_of(dual.d), 0.0))
    return evaluate_relaxation(unit.gram, unit.origin, unit.levels, unit.point_of(dual.z), d) if np.any(d) else None


@given_relaxation.register
def _(dual: BlockDual, unit: UnitProblem) -> Relaxation | None:
    d = unit.minorants[unit.size]
    if not dual.is_valid(unit.size) or not np.any(d):
        return None
    return evaluate_relaxation(unit.gram, unit.origin, unit.levels, unit.point_of(dual.z), d)
