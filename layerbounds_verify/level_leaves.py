"""Lower bounds from the leaves of a tree where kept weights take given values: masks, and levels on supports.

The tree is that of `leaves.py`. A weight is v_i = z_i wherever nothing else is left, so that D ⪯ H only has to hold on
the other inputs. In float64; what rounding can add is deducted (docs/certificates.md).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit

from layerbounds_verify.bounds import Minorant, Tangent
from layerbounds_verify.exact import RefusedError, U, power
from layerbounds_verify.leaves import prove_diagonals
from layerbounds_verify.reader import Structure


@njit(cache=True, nogil=True)
def _left(
    node: int, axis: Any, at: Any, child: Any, parent: Any, values: Any, unit: Any, group: Any, capacity: Any,
    begin: Any, end: Any, status: Any, room: Any,
) -> Any:  # fmt: skip  # pragma: no cover - compiled
    """What is left at a node: values from ``begin`` to before ``end``, units kept (1), dropped (−1) or either (0).

    Whether there is something. Zero is left where it is between the ends and the unit is not kept.
    """
    n, levels = values.shape
    begin[:], end[:], status[:], room[:] = 0, levels, 0, capacity
    possible = True
    while node:
        above = parent[node]
        i, side = axis[above], 2 * (node - child[above]) - 1
        if at[above] < 0:
            possible &= status[i] * side >= 0
            status[i] = side
        elif side > 0:
            begin[i] = max(begin[i], at[above])
        else:
            end[i] = min(end[i], at[above])
        node = above
    for i in range(n):
        zero = end[i] - begin[i] == levels
        for j in range(begin[i], end[i]):
            zero |= values[i, j] == 0.0
        if not zero:
            possible &= begin[i] < end[i] and status[unit[i]] >= 0
            status[unit[i]] = 1
    for u in range(len(group)):
        room[group[u]] -= status[u] > 0
    for u in range(len(group)):
        if status[u] == 0 and room[group[u]] <= 0:
            status[u] = -1
    return possible and room.min() >= 0


@njit(cache=True, nogil=True)
def _bounds(
    axis: Any, at: Any, child: Any, parent: Any, values: Any, unit: Any, group: Any, capacity: Any, z: Any, h: Any,
    size: Any, value: Any, d: Any, use: Any, about: Any,
) -> Any:  # fmt: skip  # pragma: no cover - compiled
    """The bound of each leaf with evidence, infinite where nothing is left there, and of all other nodes.

    ``about`` becomes what each diagonal is about.
    """
    n, levels = values.shape
    units = len(group)
    found, saving = np.full(len(axis), np.inf), np.zeros(units)
    begin, end, status, room = np.zeros((4, max(n, units)), dtype=np.int64)
    room = room[: len(capacity)]
    for leaf in range(len(axis)):
        e = child[leaf]
        if axis[leaf] >= 0 or e < 0 or not _left(
            leaf, axis, at, child, parent, values, unit, group, capacity, begin, end, status, room
        ):  # fmt: skip
            continue
        saving[:] = 0.0
        total, much = value[e, 0], value[e, 1]
        for i in range(n):
            u, x, slope, curve = unit[i], z[e, i], 2.0 * h[e, i], d[use[e], i]
            drop, best, far = x * (curve * x - slope), np.inf, abs(x) if status[u] < 1 else 0.0
            for j in range(begin[i], end[i] if status[u] >= 0 else 0):
                # A single input that is kept is not zero.
                if values[i, j] != 0.0 or units < n or levels == 1:
                    step = values[i, j] - x
                    best, far = min(best, step * (slope + curve * step)), max(far, abs(step))
            if status[u] > 0:
                total += best
            else:
                total += drop
                saving[u] += drop - best
            much += far * (2.0 * size[e, i] + abs(curve) * far)
            about[use[e], i] |= far > 0.0
        for u in np.argsort(-saving):
            if status[u] == 0 and saving[u] > 0.0 and room[group[u]] > 0:
                room[group[u]] -= 1
                total -= saving[u]
        found[leaf] = total - 16.0 * (n + 16) * U * much - 1e-290 if much < 1e300 else -np.inf
    return found


def over_level_leaves(gram: Any, target: Any, structure: Structure, values: Any, parts: Any) -> Fraction:
    """The least bound of all leaves.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    structure : Structure
    values : ndarray of shape (n, levels)
        What weights of kept units may be, sorted.
    parts : mapping
        The tensors ``axis``, ``at``, ``child``, ``z``, ``minorant``, ``d`` of the proof. Where z is of single
        precision, a number that is the nearest one to a value stands for the value.
    """
    n = len(values)
    use, d = parts["minorant"].astype(np.int64), parts["d"].astype(np.float64).reshape(-1, n)
    z = parts["z"].astype(np.float64).reshape(-1, n)
    for column in values.T if parts["z"].dtype == np.float32 else ():
        z = np.where(z == column.astype(np.float32), column, z)
    power(z, d)
    tree = _checked(parts, len(structure.group), n, len(z))
    if len(use) != len(z) or np.any((use < 0) | (use >= len(d))):
        raise RefusedError("its evidence names a minorant that is not there")
    whole = *tree, np.ascontiguousarray(values), structure.unit, structure.group, structure.capacity
    deviation, about = z - target, np.zeros(d.shape, dtype=bool)
    h, size = deviation @ gram, np.abs(deviation) @ np.abs(gram)
    value = np.stack([np.sum(deviation * h, axis=1), 2.0 * np.sum(np.abs(deviation) * size, axis=1)], axis=1)
    found = _bounds(*whole, z, h, size, value, d, use, about)
    prove_diagonals(gram, d[:, None], about)
    if not np.all(found > -np.inf):
        raise RefusedError("its numbers are too large for float64")
    ends = [Fraction(float(x)) for x in [found.min()] if np.isfinite(x)]
    ends += [_error(gram, target, whole, int(leaf)) for leaf in np.flatnonzero((tree[0] < 0) & (tree[2] < 0))]
    if not ends:
        raise RefusedError("no leaf of its tree holds anything that is allowed")
    return min(ends)


def _checked(parts: Any, units: int, n: int, points: int) -> tuple[Any, Any, Any, Any]:
    """Axes, places, children and parents of a tree in which every node but the first has one parent, before it."""
    axis, at, child = (parts[name].astype(np.int64) for name in ("axis", "at", "child"))
    inner, nodes = np.flatnonzero(axis >= 0), len(axis)
    after = np.concatenate([child[inner], child[inner] + 1])
    if not len(axis) == len(at) == len(child) or not np.array_equal(np.sort(after), np.arange(1, nodes)):
        raise RefusedError("its tree has a node without a parent, or with two")
    if np.any(child[inner] <= inner) or np.any(axis[inner] >= np.where(at[inner] < 0, units, n)):
        raise RefusedError("a node of its tree divides what is not there, or comes after its children")
    if np.any(child[axis < 0] < -1) or np.any(child[axis < 0] >= points):
        raise RefusedError("a leaf of its tree names evidence that is not there")
    parent = np.zeros(nodes, dtype=np.int64)
    parent[after] = np.concatenate([inner, inner])
    return axis, at, child, parent


def _error(gram: Any, target: Any, whole: Any, leaf: int) -> Fraction:
    """The error of the only weights that are left at a leaf."""
    values, unit, group, capacity = whole[4:]
    n, levels = values.shape
    begin, end, status = np.zeros((3, max(n, len(group))), dtype=np.int64)
    possible = _left(leaf, *whole, begin, end, status, capacity.copy())  # type: ignore[call-arg]
    point = np.zeros(n)
    for i in np.flatnonzero(status[unit] >= 0) if possible else ():
        left = np.unique(values[i, begin[i] : end[i]])
        left = left[(left != 0.0) | (len(group) < n) | (levels == 1)]
        if len(left) != 1 or status[unit[i]] == 0:
            raise RefusedError("a leaf of its tree without evidence has several weights")
        point[i] = left[0]
    return Tangent(gram, target, point, Minorant(np.zeros(n), np.zeros(n), [])).bound(0)
