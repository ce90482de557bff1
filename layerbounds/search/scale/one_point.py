"""One dual point for all scales of all groups: the one whose least bound over them is highest.

For a diagonal D ⪯ H, M = H − D, the bound of a point z is concave in z,

    LB(z) = f(0) − zᵀMz + Σ_g min over s, c of [vᵀDv − 2(Hw − Mz)ᵀv],   v = s·c on the inputs of the group,

and its maximum is the minimum of zᵀMz + Σ_g Σ_k λ_gk (v_kᵀDv_k − 2(Hw)ᵀv_k) over convex combinations z_g = Σ λ_gk v_k.
A step of the pairwise Frank–Wolfe method (Lacoste-Julien & Jaggi, NeurIPS 2015) in one group costs one sweep over its
scales and moves weight from the worst combined point to the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.scale.profile import Profile, padded

#: What may be left to gain in the end, relative to the bound.
GAP = 1e-3


def highest_point(
    gram: Float,
    target: Float,
    d: Float,
    boxes: Sequence[Float],
    group: Int,
    start: Float,
    stop: Callable[[], bool],
) -> tuple[float, Float]:
    """The highest bound met and its z, shape (n,).

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    d : ndarray of shape (n,)
        A positive minorant.
    boxes : sequence of ndarray
        Lists of codes.
    group : ndarray of int64, shape (n,)
    start : ndarray of shape (n,)
        An allowed point.
    stop : callable
        Asked between rounds.
    """
    rest = gram - np.diag(d)
    pull = gram @ target
    energy = float(target @ pull)
    inside = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
    points = [[start[members]] for members in inside]
    shares = [[1.0] for _ in inside]
    z, moved = start.copy(), rest @ start
    best, best_z = -np.inf, z.copy()
    while not stop():
        slope, gap = pull - moved, 0.0
        first = [_least(d[members], slope[members], boxes) for members in inside]
        value = energy - float(z @ moved) + sum(term for term, _ in first)
        if value > best:
            best, best_z = value, z.copy()
        for g, members in enumerate(inside):
            slope = pull - moved
            weights, b = d[members], slope[members]
            term, new = _least(weights, b, boxes) if g else first[0]
            costs = np.array([weights @ (v * v) - 2.0 * (b @ v) for v in points[g]])
            gap += float(costs @ shares[g]) - term
            worst = int(np.argmax(costs))
            old = points[g][worst]
            change = new - old
            rate = float(weights @ (new * new) - weights @ (old * old) - 2.0 * (b @ change))
            column = rest[:, members] @ change
            curvature = float(change @ column[members])
            step = shares[g][worst]
            if curvature > 0:
                step = min(step, -rate / (2.0 * curvature))
            if not step > 0:
                continue
            z[members] += step * change
            moved += step * column
            _transfer(points[g], shares[g], worst, new, step)
        if not gap > GAP * abs(best):
            break
    return best, best_z


def _least(d: Float, b: Float, boxes: Sequence[Float]) -> tuple[float, Float]:
    """Least term of a group over all scales and codes, and the point where it is."""
    best, point = np.inf, np.zeros_like(b)
    for codes in boxes:
        value, scale = Profile(d, b, padded(codes, len(d))).minimum(0.0, np.inf)
        if value < best:
            best = value
            finite = 0 < scale < np.inf
            choice = np.argmin(np.abs((b / d)[:, None] - scale * codes), axis=1) if finite else None
            point = np.zeros_like(b) if choice is None else scale * codes[choice]
    return best, point


def _transfer(points: list[Float], shares: list[float], worst: int, new: Float, step: float) -> None:
    """Move a share of the combination from one point to another."""
    known = next((k for k, point in enumerate(points) if np.array_equal(point, new)), None)
    if known is None:
        points.append(new)
        shares.append(step)
    else:
        shares[known] += step
    shares[worst] -= step
    if shares[worst] <= 1e-15:
        del points[worst], shares[worst]
