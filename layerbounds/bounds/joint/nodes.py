"""The block relaxation at a node of a tree (docs/joint-blocks.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.joint.ascent import improve
from layerbounds.bounds.joint.newton import BlockNewton
from layerbounds.bounds.joint.views import AllowedLists, AllowedView, Channel, JointMinorant
from layerbounds.kernels.factorization import UNIT

#: Smoothing at a node, in parts of the gap to the cut and divided by the number of blocks, and how much wider it is at
#: first; Newton steps, and those after an improvement of B, whose barrier weight is this.
NODE_WIDTH, NODE_START, NODE_STEPS, NODE_MU = 0.05, 1.0, 8, 0.1
#: Nodes of all passes of a run, of a block before choices are left out, and of a block's search for reduced costs (in
#: parts of the limit at which it gives up).
NODE_WORK, NODE_MOST, REDUCE_NODES = 1 << 19, 400, 150
#: Gain of a step, in parts of the gap, that is worth it; gap, in parts of the cut, below which costs are reduced.
WORTH, NEAR_CUT = 0.01, 0.25
#: Least smoothing, in parts of the cut.
LEAST_WIDTH = 1e-9
#: Decided inputs move to their values at once where that takes no more than this share of the gap off the bound.
LOSS = 0.1


@dataclass(frozen=True, eq=False)
class NodeBound:
    """What the block relaxation says about a node.

    Attributes
    ----------
    value : float
        Lower bound, its own rounding deducted; infinite where nothing is allowed.
    z : ndarray of shape (n,)
        Fixed inputs are at their values.
    price : ndarray of shape (groups,)
        0 where a capacity acts within a block, or is not reached.
    minorant : JointMinorant
        For the nodes below.
    allowed : ndarray of bool, shape (n, longest)
        The values that are left to each input. With one of the others the bound reaches the cut.
    excluded : bool
        Whether some were left out.
    variance : ndarray of shape (n,)
        Of each input under the smoothed minimum.
    nearest : ndarray of shape (n,)
        The mean of each input's choices, a point to round.
    fixed : bool
        Whether one point is left, which is ``z``.
    """

    value: float
    z: Float
    price: Float
    minorant: JointMinorant
    allowed: Bool
    excluded: bool
    variance: Float
    nearest: Float
    fixed: bool


def relax_node(
    channel: Channel,
    lists: AllowedLists,
    minorant: JointMinorant,
    z: Float,
    price: Float,
    bound: float,
    cut: float,
    improved: bool,
    steps: int = NODE_STEPS,
) -> NodeBound:
    """The block relaxation of a node.

    Parameters
    ----------
    channel : Channel
    lists : AllowedLists
        What the node allows.
    minorant : JointMinorant
        Proven on the free inputs, as the parent's.
    z, price : ndarray of shape (n,), (groups,)
        Where to start: the parent's.
    bound : float
        The parent's, which may be returned.
    cut : float
        Nothing above it matters.
    improved : bool
        Whether to improve the minorant for this node.
    steps : int
        Newton steps at most, and again after an improvement.
    """
    n = len(z)
    view = AllowedView(channel, lists, minorant)
    nothing = np.zeros(n)
    if not view.feasible:
        return NodeBound(np.inf, z, price, minorant, view.allowed, False, nothing, z, False)
    if not view.inputs.size:
        return NodeBound(
            max(bound, fixed_value(view)), view.fixed_values, price, minorant, view.allowed, False, nothing,
            view.fixed_values, True,
        )  # fmt: skip
    if not view.prepare():
        return NodeBound(bound, z, price, minorant, view.allowed, False, nothing, z, False)
    width = max(NODE_WIDTH * (cut - bound) / len(view.size), LEAST_WIDTH * cut)
    if not width > 0.0:
        return NodeBound(bound, z, price, minorant, view.allowed, False, nothing, z, False)
    newton = BlockNewton(view, z, price, NODE_WORK, NODE_MOST)
    late = ~view.free & (z != view.fixed_values)
    if late.any():
        # What has just been decided moves to its value at once where that costs little, with the others otherwise.
        near = newton.look(newton.start, newton.price, width)
        if near is None or near.value < bound - LOSS * (cut - bound):
            view = AllowedView(channel, lists, minorant, late)
            if not view.prepare():
                return NodeBound(bound, z, price, minorant, view.allowed, False, nothing, z, False)
            newton = BlockNewton(view, z, price, NODE_WORK, NODE_MOST)
    point = newton.run(NODE_START * width, width, steps, enough=cut, worth=WORTH * (cut - bound))
    if improved and point is not None and newton.best[0] < cut and improve(view, point.second, NODE_MU):
        other = BlockNewton(view, point.z, newton.prices(point.price), NODE_WORK, NODE_MOST)
        moved = other.run(width, width, steps, enough=cut, worth=WORTH * (cut - bound))
        if other.best[0] > newton.best[0]:
            newton, point = other, moved
            minorant = view.written(minorant)
        else:
            view.block, view.factor = newton.blocks
    value = max(newton.best[0], bound)
    allowed, excluded = view.allowed, False
    variance, nearest = nothing, np.where(view.free, z, view.fixed_values)
    if point is not None:
        variance = np.zeros(n)
        variance[view.inputs] = np.maximum(np.einsum("gii->gi", point.second)[view.inside] - point.mean**2, 0.0)
        nearest = point.z.copy()
        nearest[view.inputs] += point.mean
    if cut - value < NEAR_CUT * cut and newton.best[0] < cut and np.isfinite(newton.best[0]):
        keep = newton.reduce(cut, REDUCE_NODES) & (np.arange(view.levels.shape[1]) < view.count[:, None])
        if keep.sum() < view.count.sum():
            allowed, excluded = allowed.copy(), True
            rows = np.zeros_like(allowed[view.inputs])
            np.put_along_axis(rows, view.code, keep, axis=1)
            allowed[view.inputs] = rows
    _, z, _ = newton.best
    return NodeBound(value, z, newton.prices(), minorant, allowed, excluded, variance, nearest, False)


def fixed_value(view: AllowedView) -> float:
    """The error at the only point that is left, rounded down."""
    deviation = view.fixed_values - view.target
    size = float(np.abs(deviation) @ view.norm)
    return float(deviation @ (view.gram @ deviation)) - 4.0 * (len(deviation) + 16) * UNIT * size * size
