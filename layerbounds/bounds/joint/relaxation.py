"""The relaxation of joint problems with blocks of inputs, at the root and at nodes of a tree (docs/joint-blocks.md).

For any z, any block-diagonal B ⪯ H and prices λ ≥ 0 of the groups' capacities, with h = H(z − w),

    f(v) ≥ f(z) + Σ_g min over the block's choices q of [2h_gᵀ(q − z)_g + (q − z)_gᵀB_g(q − z)_g + λ·kept(q)] − λ·room.

Groups within one block need no price: choices that exceed their capacity are left out. The maximum over z and λ is
found by Newton's method on the smoothed minimum; B follows the spread of the choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.joint.ascent import LARGE, improve
from layerbounds.bounds.joint.newton import COOLING, WORK, BlockNewton
from layerbounds.bounds.joint.views import AllowedLists, AllowedView, Channel, JointMinorant
from layerbounds.bounds.minorants.clusters import make_clusters, partial_correlations
from layerbounds.bounds.quantization.block_dual import search_order

#: Larger groups of units may be divided among blocks, and get a price.
LARGEST_GROUP = 9
#: Pairs of inputs, per input, that are considered where there are many.
PAIRS = 40
#: With larger units there are no blocks: their choices are too many.
LARGEST_UNIT = 12
#: Largest blocks of the stages at the root, and the refits of each stage.
STAGES, REFITS = (3, 6, 9), (5, 4, 8)
#: Barrier weights of the first refit and of the last: far from the boundary of the cone B moves quickly.
FIRST_BARRIER, LAST_BARRIER = 0.5, 0.02
#: Share of the diagonal to start from.
INSIDE = 0.98
#: The smoothing may cost between these shares of the bound.
COSTS = (0.02, 0.08)
#: Relative gain of a refit below which it counts as none, and how many of these end a stage.
PROGRESS, PATIENCE = 2e-3, 2
#: How often it becomes narrower before the first refit.
NARROWINGS = 10
#: Newton steps after a refit.
STEPS = 30


@dataclass(frozen=True, eq=False)
class JointRoot:
    """A dual point of the block relaxation.

    Attributes
    ----------
    value : float
        Lower bound, its own rounding deducted.
    z : ndarray of shape (n,)
    price : ndarray of shape (groups,)
    minorant : JointMinorant
        Proven.
    width : float
        Of the smoothing.
    variance : ndarray of shape (n,)
        Supergradient of the bound in the diagonal of the minorant.
    """

    value: float
    z: Float
    price: Float
    minorant: JointMinorant
    width: float
    variance: Float


def refine_joint(
    channel: Channel,
    shift: Float,
    norm: Float,
    d: Float,
    z: Float,
    price: Float,
    width: float,
    stages: Sequence[int] = STAGES,
    refits: Sequence[int] = REFITS,
    partitions: Sequence[Sequence[Int]] | None = None,
    lists: AllowedLists | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> JointRoot | None:
    """Alternate between the point, the prices and a block-diagonal minorant, whose blocks grow from stage to stage.

    Parameters
    ----------
    channel : Channel
    shift : ndarray of shape (n,)
        What makes the Gram matrix positive semidefinite, see `semidefinite_shift`; the bound is charged for it.
    norm : ndarray of shape (n,)
        See `JointMinorant`.
    d : ndarray of shape (n,)
        A positive diagonal minorant to start from.
    z, price : ndarray of shape (n,), (groups,)
        Where to start, best the diagonal relaxation's.
    width : float
        Of the smoothing at first.
    stages, refits : sequence of int
        Largest blocks, and refits of the minorant, of each stage.
    partitions : sequence of sequences of ndarray, optional
        What `joint_members` says for these stages.
    lists : AllowedLists, optional
        What is left to choose from; the root's by default.
    stop : callable
        Asked between Newton steps whether to end.

    Returns
    -------
    JointRoot or None
        None where no blocks can be made, or it was stopped before the first bound.
    """
    lists = AllowedLists.whole(channel) if lists is None else lists
    n = len(d)
    best: JointRoot | None = None
    matrix = np.diag(INSIDE * d)
    spread: Float | None = None
    total, done, before = sum(refits), 0, 0
    if partitions is None:
        partitions = joint_members(channel, shift, stages)
    if partitions is None:
        return None
    for members, rounds in zip(partitions, refits, strict=True):
        if len(members) == before:
            done += rounds
            continue
        before, stalled = len(members), 0
        for _ in range(rounds):
            if stop() or stalled > PATIENCE:
                break
            pack = pack_blocks(members, matrix, shift, norm)
            view = AllowedView(channel, lists, pack)
            if not view.feasible or not view.prepare():
                return best
            newton = BlockNewton(view, z, price, WORK)
            point = newton.run(width, width, STEPS, stop=stop)
            for _ in range(NARROWINGS if best is None else 0):
                if point is None or point.value - point.smooth <= COSTS[1] * abs(newton.best[0]):
                    break
                width *= COOLING
                point = newton.run(width, width, STEPS, stop=stop)
            if point is None:
                return best
            value = newton.best[0]
            found = view.spread_out(point.second, n)
            stalled = 0 if best is None or value > (1.0 + PROGRESS) * best.value else stalled + 1
            if best is None or value > best.value:
                best = JointRoot(value, newton.best[1], newton.prices(), pack, width, np.diag(found).copy())
            cost = point.value - point.smooth
            if cost > COSTS[1] * abs(value):
                width *= 0.5
            elif cost < COSTS[0] * abs(value):
                width *= 1.5
            z, price = point.z, newton.prices(point.price)
            spread = found if spread is None else 0.5 * (spread + found)
            if done == total - 1:
                return best
            barrier = FIRST_BARRIER * (LAST_BARRIER / FIRST_BARRIER) ** (done / (total - 1))
            if not improve(view, view.gathered(spread), barrier):
                return best
            matrix = view.matrix(matrix)
            done += 1
    return best


def joint_members(channel: Channel, shift: Float, stages: Sequence[int]) -> list[list[Int]] | None:
    """Inputs of each block, for each stage: units stay together, and groups that fit; each stage divides the next one.

    None where the matrix cannot be inverted.
    """
    n = len(channel.target)
    of = channel.group[channel.unit]
    size = np.bincount(of)
    if np.bincount(channel.unit).max() > LARGEST_UNIT:
        return None
    whole = len(size) > 1 and size.max() <= LARGEST_GROUP
    label = of if whole else channel.unit
    parts = [np.arange(n)] if whole or len(size) == 1 else [np.flatnonzero(of == g) for g in range(len(size))]
    gram = channel.gram + np.diag(shift)

    def divided(most: int, m: Int) -> list[Int] | None:
        owners = np.unique(label[m], return_inverse=True)[1]
        if owners.max() == 0:
            return [m]
        # Labels that are all different are none for `make_clusters`, which takes one label for no labels as well.
        names = np.zeros(n, dtype=np.int64)
        names[m] = 0 if owners.max() == len(m) - 1 else owners
        if len(m) >= LARGE:
            return linked_pairs(gram, most, owners, m)
        return make_clusters(gram, most, names, m)

    result: list[list[Int]] = []
    for most in reversed(stages):
        found: list[Int] = []
        for m in result[0] if result else parts:
            pieces = divided(most, m)
            if pieces is None:
                return None
            found += pieces
        result.insert(0, found)
    return result


def linked_pairs(gram: Float, most: int, owner: Int, active: Int) -> list[Int] | None:
    """Blocks of many inputs: the strongest partial correlations, one after the other, join what still fits.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    most : int
    owner : ndarray of int64, shape (len(active),)
        What stays together has one number.
    active : ndarray of int64
        Inputs to partition.
    """
    link = partial_correlations(gram, active)
    if link is None:
        return None
    count = int(owner.max()) + 1
    size = np.bincount(owner, minlength=count)
    if count < len(active):
        member = np.zeros((count, len(active)))
        member[owner, np.arange(len(active))] = 1.0
        link = member @ link @ member.T
    flat = np.triu(link, 1).ravel()
    strongest = min(PAIRS * count, flat.size)
    order = np.argpartition(-flat, strongest - 1)[:strongest]
    order = order[np.argsort(-flat[order], kind="stable")]
    parent = list(range(count))

    def top(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for i, j in zip((order // count).tolist(), (order % count).tolist(), strict=True):
        a, b = top(i), top(j)
        if a != b and size[a] + size[b] <= most:
            parent[b] = a
            size[a] += size[b]
    label = np.array([top(x) for x in range(count)])[owner]
    return [active[label == x] for x in np.unique(label)]


def pack_blocks(members: Sequence[Int], matrix: Float, shift: Float, norm: Float) -> JointMinorant:
    """Blocks of a matrix, their inputs in the order in which searches take fewest nodes."""
    widest = max(len(m) for m in members)
    block = np.zeros((len(members), widest, widest))
    ordered = []
    for g, m in enumerate(members):
        if len(m) > 1:
            m = m[search_order(matrix[np.ix_(m, m)])]
        ordered.append(m)
        block[g, : len(m), : len(m)] = matrix[np.ix_(m, m)]
    first = np.concatenate([[0], np.cumsum([len(m) for m in ordered])]).astype(np.int64)
    return JointMinorant(first, np.concatenate(ordered).astype(np.int64), block, shift, norm)
