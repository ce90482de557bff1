"""How much rounding can have hidden from the branch and bound (derivation: docs/numerics.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import UNIT
from layerbounds.search.quantization.cut_tests import CutTests
from layerbounds.search.quantization.grid_units import UnitProblem


def rounding_allowance(
    unit: UnitProblem, cut: float, extreme: Float, reach: Float, root_error: float, tests: CutTests
) -> float:
    """Bound on f̂ − f for every point whose exact objective is below the cut.

    Parameters
    ----------
    unit : UnitProblem
    cut : float
        In grid units.
    extreme : ndarray of shape (2,)
        Largest Σ 2|h_i| max|level_i| of a node, and largest number of Hildreth steps on a path of the tree.
    reach : ndarray of shape (n,)
        Largest move of each variable from its centre.
    root_error : float
        Error of the root's centre in the norm of the Gram matrix.
    tests : CutTests

    Returns
    -------
    float
        In grid units.
    """
    n = unit.size
    tilt_size, moves = float(extreme[0]), float(extreme[1])
    prep = unit.prep
    root = float(np.sqrt(max(cut, 0.0)))
    norms = np.sqrt(np.diag(unit.gram))
    extent = np.maximum(np.abs(unit.low), np.abs(unit.high)) + root * np.sqrt(np.diag(unit.covariance))
    # The target and the levels in grid units are rounded, too.
    extent += np.abs(unit.zero_point) + abs(unit.code_offset)
    # So is what an offset moves the zero point by.
    extent = np.maximum(extent, unit.rounding / UNIT)
    # Centres: every step rounds each coordinate, and inexact shifts and inverses move it in the norm of H.
    rounding = 8.0 * UNIT * (n + moves) * float(norms @ (extent + np.abs(unit.origin)))
    inexact = float(shift_error(unit) @ reach) + root * moves * prep.covariance_error
    distance = rounding + inexact + root_error + form_error(tests, extent + np.abs(unit.origin), n + moves)
    # Partial costs: each step adds rounded terms of at most cut + tilt_size; so do the sums over the free variables.
    magnitude = cut + 2.0 * tilt_size
    partial = 8.0 * UNIT * (n + moves) * magnitude + 8.0 * UNIT * (n + tests.size + 8) * magnitude
    return 2.0 * (2.0 * root * distance + distance**2 + partial)


def form_error(tests: CutTests, extent: Float, steps: float) -> float:
    """What the values of the integer forms can differ from the forms of the centre, in the norm of their weights."""
    if tests.cuts is None:
        return 0.0
    support = int(np.max(np.count_nonzero(tests.forms, axis=0)))
    error = 8.0 * UNIT * (support + 4) * (steps + 1) * (extent @ np.abs(tests.forms))
    return float(np.sqrt(tests.weights.max(axis=0) @ error**2))


def shift_error(unit: UnitProblem) -> Float:
    """Errors of the rows of ``unit.shifts`` in the norm of the Gram matrix, in grid units."""
    # The preparation is in units of the weights; the objective here is divided by the multiplier.
    return np.asarray(unit.prep.shift_error * unit.scale / np.sqrt(unit.multiplier))


def shift_charge(unit: UnitProblem) -> float:
    """What the shift of a singular Gram matrix can have added to any feasible objective, in grid units."""
    if not np.any(unit.prep.shift):
        return 0.0
    farthest = np.maximum(np.abs(unit.low - unit.origin), np.abs(unit.high - unit.origin))
    return 1.0001 * float(np.sum(unit.prep.shift * (unit.scale * farthest) ** 2)) / unit.multiplier
