"""Lower bounds from the leaves of a tree: a dual point bounds what is left of the allowed weights at each of them.

A node divides a unit of inputs (dropped or kept), or the levels of an input (below one of them or not). With
h = H(z − w) and D ⪯ H on the inputs that are not dropped, f(v) ≥ f(z) + Σ [2h_i(v_i − z_i) + d_i(v_i − z_i)²] in each
row.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import eliminated, is_semidefinite
from layerbounds_verify.exact import RefusedError, U, fraction, integers, matrix_integers, power, product
from layerbounds_verify.reader import Structure

#: Bits of the integers that savings are rounded up to, and entries of the matrices that are factorized together.
_BITS, _TOGETHER = 60, 1 << 20
#: Savings at leaves that are not rounded at all, as there are no more.
_FEW = 1 << 14
#: Inputs that are not dropped at a leaf without evidence.
_FEW = 64


def tree(parts: Any, units: int, inputs: int, levels: int) -> tuple[Any, Any, list[dict[int, tuple[int, int]]]]:
    """Evidence, status of the units (1 kept, −1 dropped, 0 either) and ranges of levels at all leaves below node 0."""
    axis, at, child = (parts[name].tolist() for name in ("axis", "at", "child"))
    evidence, found, limits = [], [], []
    stack: list[tuple[int, bytearray, dict[int, tuple[int, int]]]] = [(0, bytearray(units), {})]
    for _ in axis:
        node, status, ranges = stack.pop()
        i, j, first = axis[node], at[node], child[node]
        if i < 0:
            evidence.append(first)
            found.append(status)
            limits.append(ranges)
            if not stack:
                break
            continue
        if not node < first < len(axis) - 1 or i >= (units if j < 0 else inputs):
            raise RefusedError(f"node {node} of its tree divides what is not there, or has no two children")
        for side in (1, 0):
            own, limited = status, ranges
            if j >= 0:
                begin, end = ranges.get(i, (0, levels))
                limited = {**ranges, i: (max(begin, j), end) if side else (begin, min(end, j))}
            elif own[i] == 1 + side:
                continue  # It was decided otherwise above.
            else:
                own = status.copy()
                own[i] = 1 + (not side)
            stack.append((first + side, own, limited))
    if stack:
        raise RefusedError("its tree has a node with two parents")
    flags = np.frombuffer(b"".join(found), dtype=np.int8).reshape(len(found), units)
    return np.array(evidence), np.where(flags == 2, -1, flags), limits


class Points:
    """Dual points of several rows, as integers: z in units of 2^−a, h in 2^−(a + b), errors in 2^−(2a + b).

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n)
    z : ndarray of shape (points, rows, n)
    weights, entries : ndarray
        Weights, and entries of matrices, that have to be whole, too.
    """

    def __init__(self, gram: Any, target: Any, z: Any, weights: Any, entries: Any) -> None:
        whole, b = matrix_integers(gram)
        self.a, self.b = power(target, z, weights), max(b, power(entries))
        self.unit = 2 * self.a + self.b
        self.z = integers(z, self.a)
        centre = integers(target, self.a)
        self.h = (product(self.z, whole) - product(centre, whole)) << (self.b - b)
        self.value = ((self.z - centre) * self.h).sum(axis=(1, 2))


def over_leaves(
    gram: Any, target: Any, structure: Structure | None, values: Any, parts: Any, classes: Any = None
) -> Fraction:
    """The least bound of all leaves, as `leaf_bounds` takes them."""
    unit, _, bound = leaf_bounds(gram, target, structure, values, parts, classes)
    return fraction(min(bound), unit)


def leaf_bounds(
    gram: Any, target: Any, structure: Structure | None, values: Any, parts: Any, classes: Any = None, price: Any = None
) -> tuple[int, Any, Any]:
    """A power p, and of the leaves that hold something the status of the units and a bound, integers times 2^−p.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n)
    structure : Structure or None
        Of units that all rows keep together.
    values : ndarray of shape (rows, n, levels) or None
        What weights of kept units may be, sorted; None where any number.
    parts : mapping
        The tensors ``axis``, ``at``, ``child``, ``z``, ``minorant``, ``d`` of the proof.
    classes : ndarray of int, shape (rows,), optional
        Of each row, whose diagonal counts: they stand one after the other in ``d``.
    price : ndarray of shape (n,), optional
        What single inputs add to the error where they are kept, not negative.
    """
    rows, n = target.shape
    use, classes = parts["minorant"], np.zeros(rows, dtype=int) if classes is None else classes
    z = parts["z"].astype(np.float64).reshape(len(use), rows, n)
    d = parts["d"].astype(np.float64).reshape(len(parts["d"]), -1, n) if len(use) else np.zeros((0, 1, n))
    whole = structure or Structure(*np.zeros((3, 0), dtype=int))
    levels = 0 if values is None else values.shape[2]
    evidence, status, ranges = tree(parts, len(whole.group), n if rows == 1 and levels else 0, levels)
    for name, many in ((evidence + 1, len(z) + 1), (use, len(d)), (classes, d.shape[1])):
        if np.any((name < 0) | (name >= many)):
            raise RefusedError("a leaf of its tree names evidence, or evidence a minorant, that is not there")
    if structure is not None:
        settle(status, structure, _copies(gram, structure) if values is None else [], price is not None)
    # Of the inputs that a minorant is about: those with a value, and those that are not dropped.
    left = (status >= 0)[:, whole.unit] if structure is not None else np.ones((len(status), n), dtype=bool)
    about = np.zeros((len(d), n), dtype=bool)
    np.logical_or.at(about, use, np.any(z != 0.0, axis=1))
    named = evidence >= 0
    np.logical_or.at(about, use[evidence[named]], left[named])
    prove_diagonals(gram, d, about)
    price, of_unit = (np.zeros(n), whole.unit) if price is None else (price, np.arange(n))
    points = Points(gram, target, z, 0.0 if values is None else values, np.append(d, price))
    entries, paid = integers(d, points.b)[use][:, classes], integers(price, points.unit)
    alone = status[~named]
    ends = (alone > 0)[:, of_unit].astype(object) @ paid[: len(of_unit)]
    ends += [int(_least_error(gram, target, own) * (1 << points.unit) // 1) for own in left[~named]]
    if np.any(named):
        own = [ranges[i] for i in np.flatnonzero(named)]
        possible, bound = _bounds(
            points, entries, structure, values, evidence[named], status[named], left[named], own, paid
        )
        alone, ends = np.concatenate([alone, status[named][possible]]), np.append(ends, bound[possible])
    if not len(ends):
        raise RefusedError("no leaf of its tree holds anything that is allowed")
    return points.unit, alone, ends


def _copies(gram: Any, structure: Structure) -> list[list[int]]:
    """Single inputs with exactly the same row of the Gram matrix."""
    same: dict[bytes, list[int]] = {}
    for i, row in enumerate(gram if len(structure.group) == len(gram) else ()):
        same.setdefault(row.tobytes(), []).append(i)
    return [members for members in same.values() if len(members) > 1]


def settle(status: Any, structure: Structure, copies: list[list[int]], priced: bool = False) -> None:
    """Drop the units of full groups, and copies beside a kept one: in one group the first is as good as any.

    Prices, and what goes with them, tell copies apart; but another one beside a kept one is never worth its price.
    """
    group, capacity = structure.group, structure.capacity
    for members in [] if priced else copies:
        status[:, [j for k, j in enumerate(members) if group[j] in group[members[:k]]]] = -1
    of_group = (group[:, None] == np.arange(len(capacity))).astype(np.int64)
    room = capacity - (status == 1) @ of_group
    # Keeping what there is room for costs nothing without a price.
    certain = (status == 1) | ((status == 0) & ((status == 0) @ of_group <= room)[:, group] & (not priced))
    status[(status == 0) & (room <= 0)[:, group]] = -1
    for members in copies:
        own = certain[:, members]
        others = own.any(axis=1)[:, None] & (np.arange(len(members)) != own.argmax(axis=1)[:, None])
        status[:, members] = np.where(others, -1, status[:, members])


def prove_diagonals(gram: Any, d: Any, about: Any) -> None:
    """Refuse diagonals of shape (minorants, classes, n) unless all are below H on the inputs that they are about."""
    n = len(gram)
    d, about = d.reshape(-1, n), np.repeat(about, d.shape[1], axis=0)
    many = _TOGETHER // n**2 + 1
    for begin in range(0, len(d), many):
        part, own = d[begin : begin + many], about[begin : begin + many]
        rest = np.where(own[:, :, None] & own[:, None, :], gram, 0.0)
        diagonal = np.where(own, np.diag(gram) - part, 1.0)
        rest[:, np.arange(n), np.arange(n)] = diagonal
        if not is_semidefinite(rest, U * np.abs(diagonal)):
            raise RefusedError("a minorant of its tree is not proven to be below the Gram matrix")


def _least_error(gram: Any, target: Any, left: Any) -> Fraction:
    """The least error of all weights that are zero where nothing is left: wᵀHw − bᵀH_SS⁻¹b, b = (Hw)_S."""
    kept = np.flatnonzero(left)
    if len(kept) > _FEW:
        raise RefusedError(f"a leaf of its tree without evidence has more than {_FEW} inputs")
    whole, b = matrix_integers(gram)
    a, few = power(target), len(kept)
    rows = integers(target, a)
    bordered = np.zeros((few + len(rows),) * 2, dtype=object)
    bordered[:few, :few] = whole[np.ix_(kept, kept)]
    bordered[:few, few:] = (rows @ whole)[:, kept].T
    bordered[few:, :few] = bordered[:few, few:].T
    bordered[few:, few:] = rows @ whole @ rows.T
    found = eliminated(bordered, few)
    if found is None:
        raise RefusedError("the Gram matrix is not positive semidefinite at a leaf of its tree")
    return Fraction(int(np.trace(found[0])), found[1] << (2 * a + b))


def _bounds(
    points: Points, d: Any, structure: Structure | None, values: Any, evidence: Any, status: Any, left: Any,
    ranges: Any, paid: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Which leaves hold anything, and their bounds. All sums are of integers with the same unit."""
    z, h, value = points.z, points.h, points.value
    c = d * z - h
    drop = z * (c - h)
    if values is None:
        positive = (d > 0).astype(bool)
        saving = np.where(positive, -(c * -c // np.where(positive, d, 1)), 0)
        endless = np.any(~positive & (c != 0), axis=1)[evidence]
    else:
        step = integers(values, points.a)[None] - z[..., None]
        terms = step * (2 * h[..., None] + d[..., None] * step)
        saving, endless = drop - terms.min(axis=3), np.zeros((len(evidence), z.shape[2]), dtype=bool)
    value = value + drop.sum(axis=(1, 2))
    # What inputs save that are dropped wherever a point serves says nothing.
    serves = np.zeros((len(z), z.shape[2]), dtype=bool)
    np.logical_or.at(serves, evidence, left)
    saving = np.where(serves, saving.sum(axis=1) - paid, 0)
    size = max(int(np.max(np.abs(saving).sum(axis=1))), int(np.max(np.abs(value))), 1)
    few = len(evidence) * z.shape[2] <= _FEW
    kind, grain = (object, 0) if few else (np.int64, max(size.bit_length() - _BITS, 0))
    saving, value = (-(-saving >> grain)).astype(kind)[evidence], (value >> grain).astype(kind)[evidence]
    possible = np.ones(len(evidence), dtype=bool)
    for k, limits in enumerate(ranges):
        for i, (begin, end) in limits.items():
            possible[k] &= begin < end
            if begin < end:
                e = evidence[k]
                least = -(-(drop[e, 0, i] - min(terms[e, 0, i, begin:end])) >> grain)
                saving[k, i] = least if few else max(least, -(1 << _BITS) // len(drop[0, 0]))
    if structure is None:
        bound = value - saving.sum(axis=1)
    else:
        if np.any(endless & left):
            raise RefusedError("a minorant of its tree is not positive, so that keeping a weight saves without a limit")
        units = np.zeros((len(structure.group), len(saving)), dtype=kind)
        np.add.at(units, structure.unit, saving.T)
        bound, within_capacity = within(structure, status, value, units.T)
        possible &= within_capacity
    return possible, bound.astype(object) << grain


def within(structure: Structure, status: Any, value: Any, saving: Any) -> tuple[Any, Any]:
    """Values less what units, shape (leaves, units), save within the capacities; and whether kept ones fit these."""
    bound, possible = value - np.where(status > 0, saving, 0).sum(axis=1), np.ones(len(value), dtype=bool)
    for group, capacity in enumerate(structure.capacity.tolist()):
        own = np.flatnonzero(structure.group == group)
        room = capacity - (status[:, own] > 0).sum(axis=1)
        possible &= room >= 0
        best = np.sort(np.where(status[:, own] == 0, -saving[:, own], 0), axis=1)
        bound += np.minimum(np.where(np.arange(len(own)) < room[:, None], best, 0), 0).sum(axis=1)
    return bound, possible
