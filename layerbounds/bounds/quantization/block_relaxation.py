"""The tangent relaxation with blocks of inputs in place of single ones (docs/block-relaxation.md).

For any z and any block-diagonal B ⪯ H, with h = H(z − w),

    f(q) ≥ f(z) + Σ_g min over the block's level points q_g of 2h_gᵀ(q − z)_g + (q − z)_gᵀB_g(q − z)_g.

Its maximum over z is the minimum of (z − w)ᵀ(H − B)(z − w) + Σ env_g(z_g), env_g the convex envelope of
(q − w)_gᵀB_g(q − w)_g on the level points: ADMM in the metric of B. B follows the spread of the points that make up
the envelope at the minimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.blocks import BlockMinorant, improve_blocks, make_minorant, start_blocks
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.quantization.split_relaxation import form_minima
from layerbounds.kernels.factorization import UNIT, cholesky, symmetric_inverse
from layerbounds.kernels.quantization.block_relaxation import MOST_STEPS, fixed_costs, least_costs, proximal_sweep
from layerbounds.kernels.quantization.relaxation import cells
from layerbounds.proofs import FormTerms

#: Inputs of a block: larger ones cost more than they gain.
SIZE = 9
#: Refits of B.
ROUNDS = 16
#: Penalty of ADMM relative to B, and its over-relaxation.
KAPPA, OVER = 3.0, 1.6
#: Iterations of ADMM between two evaluations, and in all; the relative gap of its two sides that ends it.
STRIDE, ITERATIONS, GAP = 20, 40, 2e-4
#: Barrier weights of the first refit and of the last: far from the boundary of the cone B moves quickly.
FIRST_BARRIER, LAST_BARRIER = 0.5, 0.02
#: Share of the diagonal to start from, and floor of the spreads relative to their mean.
INSIDE, FLOOR = 0.98, 0.02
#: Nodes that one search over a block's points may take, those of a pass over all blocks, and of an iteration of ADMM.
MOST_NODES, BUDGET, ITERATION_BUDGET = 1 << 17, 1 << 22, 1 << 20


@dataclass(frozen=True, eq=False)
class BlockRelaxation:
    """A dual point of the block relaxation.

    Attributes
    ----------
    value : float
        Lower bound, its own rounding deducted.
    z : ndarray of shape (n,)
    block : ndarray of int64, shape (n,)
        The block of each input.
    matrix : ndarray of shape (n, n)
        A proven minorant, zero between different blocks.
    terms : ndarray of shape (levels, n)
        Least cost of the input's block with the input at the level: the bound with variable i at v is
        ``value + terms[v, i] − min(terms[:, i])``.
    split : FormTerms or None
        Integer forms beside the blocks, which are then a minorant together.
    """

    value: float
    z: Float
    block: Int
    matrix: Float
    terms: Float
    split: FormTerms | None = None


@dataclass(frozen=True, eq=False)
class Packed:
    """Blocks and their factors, padded, as the kernels take them."""

    first: Int
    member: Int
    block: Float
    factor: Float


def refine_blocks(
    gram: Float,
    origin: Float,
    levels: Float,
    count: Int,
    d: Float,
    start: Float,
    members: int | Sequence[Int] = SIZE,
    rounds: int = ROUNDS,
    stop: Callable[[], bool] = lambda: False,
) -> BlockRelaxation | None:
    """Alternate between z and a block-diagonal minorant; returns the best dual point met.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    origin : ndarray of shape (n,)
        w.
    levels : ndarray of shape (levels, n)
        Sorted, padded with the last level.
    count : ndarray of int64, shape (n,)
    d : ndarray of shape (n,)
        A diagonal minorant to start from.
    start : ndarray of shape (n,)
        A point to start from, best the diagonal relaxation's.
    members : int or sequence of ndarray of int64
        Largest block, or the inputs of each block.
    rounds : int
        Refits of the minorant.
    stop : callable
        Asked between iterations whether to end.

    Returns
    -------
    BlockRelaxation or None
        None where there is no positive definite minorant to start from, or it was stopped before the first bound, or
        the blocks' points are too many to search.
    """
    n = len(origin)
    if isinstance(members, int):
        found = make_clusters(gram, members, np.zeros(n, dtype=np.int64), np.arange(n))
        if found is None:
            return None
        members = found
    minorant = _start(gram, members, d)
    if minorant is None:
        return None
    z = np.clip(start, levels[0], levels[-1])
    low, high = np.empty(n), np.empty(n)
    cells(levels, count, z, low, high)
    spreads = [np.diag(((z - low) * (high - z))[m]) for m in members]
    best: tuple[float, Float, BlockMinorant] | None = None
    state: _State | None = None
    for number in range(rounds):
        if stop():
            break
        barrier = FIRST_BARRIER * (LAST_BARRIER / FIRST_BARRIER) ** (number / max(rounds - 1, 1))
        following = improve_blocks(gram, members, minorant, lifted(spreads), barrier)
        if following is None:
            break
        minorant = following
        packed = pack(members, minorant.matrix)
        if packed is None:
            break
        if state is None:
            state = _State(levels, packed, z)
        value, z = _maximise(gram, origin, levels, count, packed, minorant, z, state, stop)
        if value > (-np.inf if best is None else best[0]):
            best = value, z, minorant
        spreads = [0.5 * (old + new) for old, new in zip(spreads, state.spreads(levels, packed, z), strict=True)]
    if best is None:
        return None
    value, z, minorant = best
    return evaluate_blocks(gram, origin, levels, count, z, members, minorant.matrix)


def evaluate_blocks(
    gram: Float,
    origin: Float,
    levels: Float,
    count: Int,
    z: Float,
    members: Sequence[Int],
    matrix: Float,
    split: FormTerms | None = None,
) -> BlockRelaxation | None:
    """The bound at a point z, for a proven minorant that is positive definite on every block; None where it is not.

    Parameters
    ----------
    members : sequence of ndarray of int64
        Inputs of each block.
    matrix : ndarray of shape (n, n)
    split : FormTerms, optional
        Integer forms beside the blocks, where levels are consecutive integers: B + V diag(g) Vᵀ is the minorant.
    """
    n = len(z)
    packed = pack(members, matrix)
    if packed is None:
        return None
    slope = gram @ (z - origin) - (0.0 if split is None else split.forms @ split.multipliers)
    value, size = _bound(gram, origin, levels, count, packed, z, split)
    place = np.zeros((n, packed.factor.shape[1]), dtype=np.int64)
    block = np.zeros((n, *packed.block.shape[1:]))
    label = np.empty(n, dtype=np.int64)
    for g, m in enumerate(members):
        label[m] = g
        for p, i in enumerate(m):
            order = np.concatenate([np.delete(np.arange(len(m)), p), [p]])
            place[i, : len(m)] = order
            block[i, : len(m), : len(m)] = packed.block[g][np.ix_(order, order)]
    factor = _factors(block, np.array([len(members[int(g)]) for g in label]))
    if factor is None:
        return None
    rows = np.ascontiguousarray(levels.T)
    costs = np.empty_like(rows)
    fixed_costs(
        packed.first, packed.member, place, block, factor, rows, count, z, slope, MOST_NODES, 4 * BUDGET, costs
    )  # fmt: skip
    # What was too long to search says nothing about its input.
    costs[np.isnan(costs).any(axis=1)] = 0.0
    # A least cost with and without a fixed level, and the two sums over the other blocks: four times what one rounds.
    return BlockRelaxation(value - 4.0 * size, z.copy(), label, matrix, np.ascontiguousarray(costs.T), split)


def _start(gram: Float, members: Sequence[Int], d: Float) -> BlockMinorant | None:
    if np.all(d > 0):
        minorant = make_minorant(gram, members, np.diag(INSIDE * d))
        if minorant is not None:
            return minorant
    return start_blocks(gram, members)


def lifted(spreads: Sequence[Float]) -> list[Float]:
    """Every direction counts a little."""
    mean = float(np.mean(np.concatenate([np.diag(a) for a in spreads])))
    return [a + (FLOOR * mean + np.finfo(np.float64).tiny) * np.eye(len(a)) for a in spreads]


def pack(members: Sequence[Int], matrix: Float) -> Packed | None:
    """The blocks of a matrix; None where one is not positive definite."""
    size = np.array([len(m) for m in members], dtype=np.int64)
    block = np.zeros((len(members), int(size.max()), int(size.max())))
    for g, m in enumerate(members):
        block[g, : len(m), : len(m)] = matrix[np.ix_(m, m)]
    factor = _factors(block, size)
    if factor is None:
        return None
    first = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    return Packed(first, np.concatenate(members).astype(np.int64), block, factor)


def _factors(block: Float, size: Int) -> Float | None:
    """Upper Cholesky factors of padded blocks; None where one is not positive definite."""
    padded = block.copy()
    rest = np.arange(block.shape[1]) >= size[:, None]
    np.einsum("gii->gi", padded)[rest] = 1.0
    try:
        lower = np.linalg.cholesky(padded)
    except np.linalg.LinAlgError:
        return None
    return np.ascontiguousarray(lower.transpose(0, 2, 1))


def _bound(
    gram: Float, origin: Float, levels: Float, count: Int, packed: Packed, z: Float, split: FormTerms | None = None
) -> tuple[float, float]:
    """The bound at z, −inf where a block's points are too many to search, and how much rounding it may hold."""
    n = len(z)
    deviation = z - origin
    h = gram @ deviation
    spread = np.abs(gram) @ np.abs(deviation)
    value, size, cuts = float(deviation @ h), float(np.abs(deviation) @ spread), 0
    slope = h
    if split is not None:
        cuts = len(split.weights)
        slope = h - split.forms @ split.multipliers
        spread += np.abs(split.forms) @ np.abs(split.multipliers)
        least_of_forms, size_of_forms = form_minima(
            csr_array(split.forms), split.weights, split.multipliers, levels[0], levels[-1], z
        )
        value, size = value + least_of_forms, size + size_of_forms
    centre, tilt, least = np.empty(n), np.empty(n), np.empty(len(packed.first) - 1)
    least_costs(
        packed.first, packed.member, packed.block, packed.factor, np.ascontiguousarray(levels.T), count, z, slope,
        MOST_NODES, BUDGET, centre, tilt, least,
    )  # fmt: skip
    if np.isnan(least).any():
        return -np.inf, 0.0
    shift = centre - z
    ends = np.minimum(tilt * (levels[0] - centre), tilt * (levels[-1] - centre))
    value += float(least.sum() + np.sum(shift * (tilt + slope) + 2.0 * ends))
    step = np.maximum(levels[-1] - centre, centre - levels[0])
    rows = packed.member
    reach = np.zeros((len(packed.factor), packed.factor.shape[1]))
    inside = np.arange(reach.shape[1]) < np.diff(packed.first)[:, None]
    reach[inside] = (step + np.abs(centre))[rows]
    partial = np.einsum("gij,gj->gi", np.abs(packed.factor), reach)
    size += float(np.sum(2.0 * (spread + np.abs(tilt)) * (step + np.abs(shift))))
    return value, 4.0 * (n + cuts + 16) * UNIT * (size + float(np.sum(partial**2)))


class _State:
    """What ADMM keeps from one minorant to the next: the points of each block's corral and their weights."""

    def __init__(self, levels: Float, packed: Packed, z: Float) -> None:
        groups, widest = len(packed.factor), packed.factor.shape[1]
        near = np.argmin(np.abs(levels - z), axis=0)
        self.y = levels[near, np.arange(len(z))]
        self.corral = np.zeros((groups, widest + 2, widest), dtype=np.int64)
        inside = np.arange(widest) < np.diff(packed.first)[:, None]
        self.corral[:, 0][inside] = near[packed.member]
        self.weight = np.zeros((groups, widest + 2))
        self.weight[:, 0] = 1.0
        self.size = np.ones(groups, dtype=np.int64)

    def spreads(self, levels: Float, packed: Packed, z: Float) -> list[Float]:
        """Σ α (p − z)(p − z)ᵀ over the corral's points: a supergradient of the bound in B."""
        result = []
        for g in range(len(self.size)):
            m = packed.member[packed.first[g] : packed.first[g + 1]]
            k = self.size[g]
            step = levels[self.corral[g, :k, : len(m)], m] - z[m]
            result.append((step * self.weight[g, :k, None]).T @ step)
        return result


def _maximise(
    gram: Float,
    origin: Float,
    levels: Float,
    count: Int,
    packed: Packed,
    minorant: BlockMinorant,
    z: Float,
    state: _State,
    stop: Callable[[], bool],
) -> tuple[float, Float]:
    """Best z for a fixed minorant: the best that ADMM and the given point reach."""
    rest = gram - minorant.matrix
    factor = cholesky(rest + KAPPA * minorant.matrix)
    best = _bound(gram, origin, levels, count, packed, z)[0], z
    rows = np.ascontiguousarray(levels.T)
    if factor is None:
        return best
    inverse = symmetric_inverse(factor)
    fixed = rest @ origin
    # At the optimum M(z − w) + κBu = 0: the multiplier that belongs to z.
    u = np.empty_like(z)
    right = -(rest @ (z - origin)) / KAPPA
    for g, solve in enumerate(minorant.inverses):
        m = packed.member[packed.first[g] : packed.first[g + 1]]
        u[m] = solve @ right[m]
    right = KAPPA * (minorant.matrix @ state.y - right)
    kappa = np.full(len(state.size), KAPPA)
    for iteration in range(1, ITERATIONS + 1):
        point = inverse @ (fixed + right)
        envelope, nodes = proximal_sweep(
            packed.first, packed.member, packed.block, packed.factor, rows, count, origin, kappa, OVER, point,
            state.y, u, state.corral, state.weight, state.size, right, MOST_NODES, MOST_STEPS,
        )  # fmt: skip
        ended = nodes > ITERATION_BUDGET or stop()
        if iteration % STRIDE == 0 or ended:
            value = _bound(gram, origin, levels, count, packed, point)[0]
            if value > best[0]:
                best = value, point
            deviation = state.y - origin
            primal = float(deviation @ (rest @ deviation)) + envelope
            if ended or primal - best[0] <= GAP * abs(primal):
                break
    return best
