"""The root of a joint problem: a proven minorant, its improvement, and the bound of the whole problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant, maximize_minorant
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.bounds.objective import entry_sizes
from layerbounds.kernels.factorization import cholesky, inverse_diagonal
from layerbounds.kernels.joint import relaxation, relaxed_bound, relaxed_node
from layerbounds.kernels.joint.smoothing import ascend_smoothed, variances
from layerbounds.search.joint.units import JointUnits

#: Minorants that maximise the mean gain, then sweeps of coordinate ascent at most and their barrier weight; sweeps end
#: where they gain less than this share of the incumbent's value.
REFITS, SWEEPS, SWEEP_MU, LEAST_GAIN = 2, 16, 0.3, 1e-4
#: Newton steps for each of them, and the smoothings in units of the incumbent's value.
STEPS, SMOOTH, LAST_SMOOTH = 40, 0.03, 0.004
#: Inputs from which the first diagonal is found in single precision, in so many steps.
SINGLE_FROM, SINGLE_STEPS = 300, 5
#: Share of the mean variance that every input has at least.
FLOOR = 0.03


@dataclass(frozen=True, eq=False)
class GramParts:
    """What all channels with one Gram matrix share.

    Attributes
    ----------
    shifted : ndarray of shape (n, n)
        A positive semidefinite matrix: the Gram matrix plus ``shift`` on its diagonal, which bounds are charged.
    shift : ndarray of shape (n,)
    pivot : ndarray of shape (n,)
        1/(H⁻¹)_ii where that is known, else the diagonal.
    norm : ndarray of shape (n,)
        |H_ij| ≤ norm_i norm_j.
    d : ndarray of shape (n,)
        A proven minorant; zeros where none was found.
    """

    shifted: Float
    shift: Float
    pivot: Float
    norm: Float
    d: Float


def gram_parts(gram: Float) -> GramParts:
    """Prove a matrix semidefinite, and find a first diagonal below it."""
    n = len(gram)
    diagonal = np.diag(gram)
    shifted = semidefinite_shift(gram)
    matrix, shift = (gram, np.zeros(n)) if shifted is None else shifted
    if shifted is None:
        # Gershgorin: rows whose sums are dominated need no factorization.
        shift = (np.abs(gram).sum(axis=1) - diagonal + np.maximum(-diagonal, 0.0)) * (1.0 + 1e-9)
        matrix = gram + np.diag(shift)
    factor = cholesky(np.ascontiguousarray(matrix))
    pivot = diagonal.copy() if factor is None else 1.0 / inverse_diagonal(factor)
    norm = entry_sizes(gram) * (1.0 + 1e-9)
    if factor is None:
        d = np.zeros(n)
    elif n < SINGLE_FROM:
        d = maximize_minorant(matrix, np.ones(n))
    else:
        d = certified_minorant(matrix, ascend_newton(matrix, np.ones(n), steps=SINGLE_STEPS))
    return GramParts(np.ascontiguousarray(matrix), shift, np.asarray(pivot), norm, d)


@dataclass(frozen=True, eq=False)
class Minorant:
    """What the search knows about the Gram matrix of a channel.

    Attributes
    ----------
    layer : tuple
        See `layerbounds.kernels.joint.relaxed_node`.
    shifted, pivot, d
        As in `GramParts`.
    """

    layer: tuple[Any, ...]
    shifted: Float
    pivot: Float
    d: Float


def first_minorant(units: JointUnits, parts: GramParts) -> Minorant:
    """What is known before the root."""
    order = np.argsort(units.group, kind="stable")
    start = np.searchsorted(units.group[order], np.arange(len(units.capacity) + 1))
    layer = (
        units.gram, parts.norm, parts.shift, units.target, units.values, units.zero, units.unit, units.group, order,
        start,
    )  # fmt: skip
    return Minorant(layer, parts.shifted, parts.pivot, parts.d)


@dataclass(frozen=True, eq=False)
class Root:
    """Bound of the whole problem.

    Attributes
    ----------
    bound : float
        In the units of the search; at least 0.
    x, d, price
        Point, proven minorant and prices that it comes from; where the tree begins.
    rounded : ndarray of shape (n,)
        The allowed point that rounds the relaxation.
    """

    bound: float
    x: Float
    d: Float
    price: Float
    rounded: Float


def find_root(units: JointUnits, minorant: Minorant, lists: Any, upper: float, stop: Callable[[], bool]) -> Root:
    """Alternate relaxations and improvements of the minorant.

    Parameters
    ----------
    units : JointUnits
    minorant : Minorant
    lists : tuple
        The node that is the whole problem, settled.
    upper : float
        Value of an incumbent, which says how much smoothing matters.
    stop : callable
        Asked between the steps whether to end with what there is.
    """
    n, groups = units.size, len(units.capacity)
    layer, d = minorant.layer, minorant.d
    x, price = np.clip(units.target, units.values[:, 0], units.values[:, -1]), np.zeros(groups)
    # Decided inputs are at their values.
    relaxed_node.settle(layer, lists, x)
    costs = relaxed_node.make_costs(n, len(units.group), groups)
    mean, var, share, work = np.empty(n), np.empty(n), np.empty(len(units.group)), np.empty((n, n))
    spread, rounded, tuned, inverse = np.empty(n), np.zeros(n), np.empty(n), np.empty((n, n))
    scale = max(upper, 1e-12 * units.energy) / math.sqrt(n)

    if not scale > 0.0:
        return Root(0.0, x, np.zeros(n), price, rounded)

    def relax(smoothing: float, known: float) -> float:
        ascend_smoothed(
            layer, lists, d, x, costs, smoothing * scale, STEPS, known, 1e-4 * upper, np.inf, price, mean, var, share,
            work,
        )  # fmt: skip
        return float(relaxed_bound.bound_at(layer, lists, d, x, costs))

    value = relax(SMOOTH, upper)
    best, averaged = Root(value, x.copy(), d, price.copy(), rounded), np.zeros(n)
    flexible = bool(np.any(d > 0.0))
    for refit in range(REFITS if flexible else 0):
        variances(layer, lists, mean, var, share, spread)
        averaged = spread.copy() if refit == 0 else 0.5 * (averaged + spread)
        if stop() or not np.any(averaged > 0.0):
            break
        d = maximize_minorant(minorant.shifted, averaged + FLOOR * np.mean(averaged), d, stop=stop)
        value = relax(SMOOTH, upper)
        if value > best.bound:
            best = Root(value, x.copy(), d, price.copy(), rounded)
    d, x, price = best.d, best.x.copy(), best.price.copy()
    value = relax(SMOOTH, best.bound)
    for _ in range(SWEEPS if flexible else 0):
        if stop() or not relaxation.improve(
            layer, minorant.shifted, lists, d, SWEEP_MU, mean, var, share, tuned, work, inverse
        ):
            break
        d = tuned.copy()
        before, value = value, relax(SMOOTH, best.bound)
        if value > best.bound:
            best = Root(value, x.copy(), d, price.copy(), rounded)
        if value < before + LEAST_GAIN * upper:
            break
    d, x, price = best.d, best.x.copy(), best.price.copy()
    value = relax(LAST_SMOOTH, best.bound)
    if value > best.bound:
        best = Root(value, x, d, price, rounded)
    else:
        x[:] = best.x
        relaxed_bound.bound_at(layer, lists, d, x, costs)
    relaxed_bound.round_point(layer, lists, costs, rounded)
    return best
