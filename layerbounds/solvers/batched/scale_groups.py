"""One dual point for all scales of all groups of inputs, for many rows (docs/batched-scales.md).

For a diagonal D ⪯ H, M = H − D, the bound of a point z is concave in z,

    f(0) − zᵀMz + Σ_g min over s, c of [vᵀDv − 2(Hw − Mz)ᵀv],   v = s·c on the inputs of the group,

and so is the least of it over all scales, a sum over the groups. It is raised as in
`layerbounds.search.scale.one_point`, a group at a time in all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.kernels.arithmetic import Arithmetic, Single
from layerbounds.kernels.batched.scale_groups import directions, lowest_terms, transfer
from layerbounds.solvers.batched.group import in_chunks
from layerbounds.solvers.batched.scale_rounding import Grids, is_uniform

#: Scales that are tried for a new vertex, as factors of the best known one, and turns of codes and scale.
FACTORS, TURNS = np.geomspace(0.15, 6.0, 24), 3
#: Vertices that a row keeps for a group.
KEPT = 32
#: Vertices that a first point is divided into.
SLICES = 16
#: Rounds over all groups, rounds between two evaluations, and what may be left to gain relative to the bound.
ROUNDS, CYCLE, GAP = 600, 20, 0.01


def highest_points(
    gram: Float,
    d: Float,
    targets: Float,
    grids: Grids,
    start: Float,
    arithmetic: Arithmetic,
    threads: int,
    stop: Callable[[], bool],
) -> tuple[Float, Float]:
    """The highest bound met of each row, roughly, and its z.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    d : ndarray of shape (n,)
        A positive minorant.
    targets : ndarray of shape (rows, n)
    grids : Grids
        The best scales known.
    start : ndarray of shape (rows, n)
        Points of the relaxation at these scales, in the hull of their levels.
    arithmetic : Arithmetic
    threads : int
    stop : callable
        Asked between rounds.
    """
    rows, n = targets.shape
    codes, scale, uniform = grids.codes, grids.scale, is_uniform(grids.codes)
    matrix = arithmetic.put(gram)
    index = np.arange(n)
    matrix[index, index] = arithmetic.put(np.diag(gram) - d)
    inside = [np.flatnonzero(grids.group == g) for g in range(scale.shape[1])]
    pull = targets @ gram
    energy = np.einsum("ij,ij->i", pull, targets)
    vertex, square, share = _combinations(d, grids, inside, start)
    z = np.zeros_like(targets)
    for g, members in enumerate(inside):
        z[:, members] = np.einsum("rk,rki->ri", share[g], vertex[g])

    def value_of(z: Float, moved: Float) -> Float:
        value: Float = energy - np.einsum("ij,ij->i", z, moved)
        for g, members in enumerate(inside):
            value += _terms(d[members], (pull - moved)[:, members], codes, uniform, scale[:, g], threads)
        return value

    # The target is never below 0.
    best_z = targets.copy()
    best = np.maximum(value_of(targets, pull - d * targets), 0.0)
    for turn in range(ROUNDS + 1):
        last = turn == ROUNDS or stop()
        if turn % CYCLE == 0 or last:
            moved = z @ gram - d * z
            value = value_of(z, moved)
            better = value > best
            best[better], best_z[better] = value[better], z[better]
        if last:
            break
        gap = np.zeros(rows)
        for g, members in enumerate(inside):
            if not len(members):
                continue
            own = d[members]
            b = np.ascontiguousarray((pull - moved)[:, members])
            worst = np.zeros(rows, dtype=np.int64)
            change = np.zeros((rows, len(members)), dtype=np.float32)
            rate, left = np.empty((2, rows))

            def work(
                part: slice,
                g: int = g,
                own: Float = own,
                b: Float = b,
                worst: Int = worst,
                change: Single = change,
                rate: Float = rate,
                left: Float = left,
            ) -> None:
                directions(
                    own, b[part], codes, uniform, scale[part, g], FACTORS, TURNS, vertex[g][part], square[g, part],
                    share[g, part], worst[part], change[part], rate[part], left[part],
                )  # fmt: skip

            in_chunks(rows, threads, work, 4)
            gap += left
            chosen = slice(members[0], members[-1] + 1) if _whole(members) else members
            column = arithmetic.product(change, matrix[chosen])
            curvature = np.einsum("ij,ij->i", change, column[:, members].astype(np.float64))
            step = share[g, np.arange(rows), worst]
            wanted = np.divide(-rate, 2.0 * curvature, out=np.where(rate < 0, np.inf, 0.0), where=curvature > 0)
            step = np.clip(wanted, 0.0, step)
            transfer(own, step, worst, change, vertex[g], square[g], share[g])
            z[:, members] += step[:, None] * change
            moved += step[:, None] * column
        if np.all(gap <= GAP * np.abs(best)):
            break
    return best, best_z


def _combinations(d: Float, grids: Grids, inside: list[Int], start: Float) -> tuple[list[Single], Float, Float]:
    """Points in the hull of the levels as combinations of vertices at one scale: vertices, costs, shares of each group.

    A weight at the share θ of its cell takes the upper level in the vertices 1 to θ of all: a division of them into
    slices has means and mean costs without making them.
    """
    rows = len(start)
    square, share = np.zeros((2, len(inside), rows, KEPT))
    share[:, :, :SLICES] = 1.0 / SLICES
    vertex = []
    codes = grids.codes[grids.which[:, grids.group]]
    x = start / grids.scale[:, grids.group]
    last = codes.shape[2] - 1
    k = np.clip(np.sum(codes <= x[:, :, None], axis=2) - 1, 0, max(last - 1, 0))
    low = np.take_along_axis(codes, k[:, :, None], axis=2)[:, :, 0]
    high = np.take_along_axis(codes, np.minimum(k + 1, last)[:, :, None], axis=2)[:, :, 0]
    theta = np.clip(np.divide(x - low, high - low, out=np.zeros_like(x), where=high > low), 0.0, 1.0)
    for g, members in enumerate(inside):
        s = grids.scale[:, g][:, None]
        a, b = s * low[:, members], s * high[:, members]
        kept = np.zeros((rows, KEPT, len(members)), dtype=np.float32)
        for j in range(SLICES):
            upper = np.clip(theta[:, members] * SLICES - j, 0.0, 1.0)
            kept[:, j] = a + upper * (b - a)
            square[g, :, j] = (a**2 + upper * (b**2 - a**2)) @ d[members]
        vertex.append(kept)
    return vertex, square, share


def _whole(members: Int) -> bool:
    """Whether they follow one another."""
    return bool(members[-1] - members[0] + 1 == len(members))


def _terms(d: Float, b: Float, codes: Float, uniform: bool, scale: Float, threads: int) -> Float:
    """The least terms of a group over the scales that are tried."""
    value = np.zeros(len(b))
    if not len(d):
        return value
    b = np.ascontiguousarray(b)

    def work(part: slice) -> None:
        lowest_terms(d, b[part], codes, uniform, scale[part], FACTORS, TURNS, value[part])

    in_chunks(len(b), threads, work, 4)
    return value
