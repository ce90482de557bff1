"""The root of a joint problem with blocks of inputs (docs/joint-blocks.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from layerbounds.bounds.joint.ascent import FLOOR, LARGE
from layerbounds.bounds.joint.relaxation import JointRoot, refine_joint
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.kernels.joint import relaxed_bound, relaxed_node
from layerbounds.proofs import BlockDual
from layerbounds.search.joint.root import Minorant, Root, find_root
from layerbounds.search.joint.units import JointUnits

#: Inputs from which blocks are found without a diagonal relaxation before them.
WIDE = 300
#: Share of the incumbent's value above which a root is good enough without blocks.
OPEN = 1.0 - 1e-6
#: Smoothing at first, in parts of the diagonal's bound and divided by the root of the number of inputs.
WIDTH = 0.02
#: Smoothing at first without a diagonal bound, in parts of the energy; Newton steps for a diagonal to start from.
START, MINORANT_STEPS = 0.01, 5
#: Least value that counts as the diagonal's bound, relative to the energy.
LEAST = 1e-9


def find_roots(
    units: JointUnits, minorant: Minorant, lists: Any, upper: float, stop: Callable[[], bool], wanted: bool
) -> tuple[Root, JointRoot | None]:
    """The root with a diagonal and, where it is wanted or better at once, the one with blocks.

    Parameters
    ----------
    units : JointUnits
    minorant : Minorant
    lists : tuple
        The node that is the whole problem.
    upper : float
        Value of an incumbent.
    stop : callable
        Asked between steps whether to end with what there is.
    wanted : bool
        Whether blocks are wanted.
    """
    if units.size >= WIDE:
        wide = wide_root(units, minorant, stop)
        if wide is not None:
            return point_of(units, minorant, lists, wide), wide
    root = find_root(units, minorant, lists, upper, stop)
    wanted = wanted and root.bound < OPEN * upper
    return root, block_root(units, minorant, root, stop) if wanted else None


def block_root(units: JointUnits, minorant: Minorant, root: Root, stop: Callable[[], bool]) -> JointRoot | None:
    """A bound with blocks of inputs, from where the diagonal relaxation ended.

    Parameters
    ----------
    units : JointUnits
    minorant : Minorant
        What is known about the Gram matrix.
    root : Root
        The diagonal relaxation's.
    stop : callable
        Asked between Newton steps whether to end with what there is.

    Returns
    -------
    JointRoot or None
        None where no blocks can be made: a singular matrix, units of many inputs.
    """
    _, norm, shift, *_ = minorant.layer
    d = root.d if np.all(root.d > 0.0) else minorant.d
    if not np.all(d > 0.0) or units.size < 2:
        return None
    width = WIDTH * max(root.bound, LEAST * units.energy) / math.sqrt(units.size)
    if not width > 0.0:
        return None
    return refine_joint(units, shift, norm, d, root.x, root.price, width, stop=stop)


def wide_root(units: JointUnits, minorant: Minorant, stop: Callable[[], bool]) -> JointRoot | None:
    """The same for layers of many inputs, without anything to start from.

    Parameters
    ----------
    units : JointUnits
    minorant : Minorant
        What is known about the Gram matrix.
    stop : callable
        Asked between Newton steps whether to end with what there is.

    Returns
    -------
    JointRoot or None
        None where no diagonal is known, or no blocks can be made.
    """
    _, norm, shift, *_ = minorant.layer
    gram, d, n = minorant.shifted, minorant.d, units.size
    if not np.all(d > 0.0):
        return None
    prices = np.zeros(len(units.capacity))
    if n < LARGE:
        return refine_joint(
            units, shift, norm, d, np.zeros(n), prices, START * units.energy, (1, 3, 6, 9), (2, 3, 3, 12), stop=stop
        )
    first = refine_joint(units, shift, norm, d, np.zeros(n), prices, START * units.energy, (1,), (1,), stop=stop)
    if first is None or stop():
        return first
    emphasis = first.variance + FLOOR * float(np.mean(first.variance))
    better = ascend_newton(gram, emphasis, d, steps=MINORANT_STEPS, stop=stop)
    d = better if np.all(better > 0.0) else d
    second = refine_joint(
        units, shift, norm, d, first.z, first.price, first.width, (1, 9), (1, 8), stop=stop
    )  # fmt: skip
    return first if second is None or second.value < first.value else second


def point_of(units: JointUnits, minorant: Minorant, lists: Any, found: JointRoot) -> Root:
    """What a tree with diagonals starts from where the root has blocks only."""
    x = np.clip(found.z, units.values[:, 0], units.values[:, -1])
    relaxed_node.settle(minorant.layer, lists, x)
    costs = relaxed_node.make_costs(units.size, len(units.group), len(units.capacity))
    rounded = np.zeros(units.size)
    bound = float(relaxed_bound.bound_at(minorant.layer, lists, minorant.d, x, costs))
    relaxed_bound.round_point(minorant.layer, lists, costs, rounded)
    return Root(bound, x, minorant.d, found.price, rounded)


def block_dual(units: JointUnits, found: JointRoot) -> BlockDual:
    """What certification derives the bound from."""
    minorant = found.minorant
    return BlockDual(units.original(found.z), minorant.label, minorant.matrix())
