"""Choices of units that several rows make together, and of whole rows, written as the choice of other inputs.

Masks. Where kept weights ω stay as they are, the error is a quadratic form yᵀAy − 2βᵀy + E of y, 1 for a kept unit and
0 for others: with a Gram matrix G of what units consist of (inputs, or output channels) and another one K of what each
has (rows, or inputs), A = G∘(ωKωᵀ) and β_i = Σ_j G_ij (wKωᵀ)_ji, added up over units. Written with a float64 matrix M
near A it is (y − t)ᵀM(y − t) + E − tᵀMt, up to Σ|A − M| + 2Σ|β − Mt| for all y: a mask of single inputs.

Rows. The least error tr(Q D H Dᵀ) of whole output channels that are kept and refitted, bound by a metric Q, is what the
choice of inputs costs that have the Gram matrix Q and the weights N of another layer, where NᵀN = WHWᵀ. For any N the
two differ by Σ|WHWᵀ − NᵀN|_rs √(q_rr q_ss) at most, as they are tr(WHWᵀ·X) and tr(NᵀN·X) with 0 ⪯ X ⪯ Q.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product as all_of
from typing import Any

import numpy as np

from layerbounds_verify.bounds import LEAST, Minorant, Tangent
from layerbounds_verify.exact import RefusedError, U, floats, fraction, integers, matrix_integers, power, product
from layerbounds_verify.grids import Block, by_count, choices, most_saved, refit_saving
from layerbounds_verify.leaves import Points
from layerbounds_verify.reader import Structure


def sorted_rows(drop: list[Fraction], keep: list[Any], count: int) -> Fraction:
    """The least sum of the errors of rows, so many of which may be kept."""
    saved = sorted((d - k for d, k in zip(drop, keep, strict=True) if d > k), reverse=True)
    return sum(drop, Fraction(0)) - sum(saved[:count], Fraction(0))


def masks(gram: Any, other: Any, original: Any, target: Any, unit: Any) -> tuple[Any, Any, Fraction]:
    """M, t and the constant of the form, less what it can be off by; units that change nothing cost something.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        G.
    other : ndarray of shape (m, m)
        K.
    original, target : ndarray of shape (n, m)
    unit : ndarray of int, shape (n,)
    """
    (g, b), (k, more), a = matrix_integers(gram), matrix_integers(other), power(original, target)
    own, w = integers(original, a), integers(target, a)
    right, p, units = product(k, own.T), 2 * a + b + more, int(unit.max()) + 1
    pairs = crossed = g * product(own, right)
    energy = pairs.sum()
    if not np.array_equal(original, target):
        crossed, energy = g * product(w, right), (g * product(w, product(k, w.T))).sum()
    form, linear = np.zeros((units, units), dtype=object), np.zeros(units, dtype=object)
    np.add.at(form, (unit[:, None], unit[None, :]), pairs)
    np.add.at(linear, unit, crossed.sum(axis=0))
    matrix = floats(form, p)
    idle = np.diag(matrix) <= LEAST
    matrix[idle] = matrix[:, idle] = 0.0
    root = np.where(idle, 1.0, np.sqrt(np.diag(matrix)))
    rest = floats(linear - form.sum(axis=1), p) / root
    t = 1.0 + np.linalg.lstsq(matrix / root / root[:, None], rest, rcond=None)[0] / root
    fine, short = power(matrix, t), power(t)
    whole, centre = integers(matrix, fine), integers(t, short)
    pulled = whole @ centre
    off = fraction(np.abs((form << fine) - (whole << p)).sum(), p + fine)
    slope = np.abs((linear << (fine + short)) - (pulled << p)).sum()
    off += 2 * fraction(slope, p + fine + short)
    # A mask that drops such units instead is as good.
    matrix[idle, idle], t[idle] = np.diag(matrix).max(initial=0.0) or 1.0, 0.0
    return matrix, t, fraction(energy, p) - fraction(centre @ pulled, fine + 2 * short) - off


def charge(gram: Any, target: Any, metric: Any, rows: Any) -> Fraction:
    """How far rows N instead of weights W with NᵀN = WHWᵀ can be off."""
    (whole, b), a, c = matrix_integers(gram), power(target), power(rows)
    w, n = integers(target, a), integers(rows, c)
    p = max(2 * a + b, 2 * c)
    off = (product(product(w, whole), w.T) << (p - 2 * a - b)) - (product(n.T, n) << (p - 2 * c))
    root = np.sqrt(np.diag(metric))
    return Fraction(float(root @ floats(np.abs(off), p) @ root) * (1 + 4 * (len(root) + 4) * U))


def over_rows(
    gram: Any, target: Any, z: Any, minorants: list[Minorant], classes: Any, structure: Structure
) -> Fraction:
    """Rows that keep the same units, with any weights, from a point of each and a minorant of each class of rows.

    Blocks, the same ones in all minorants, hold whole units, and whole groups or units of one.
    """
    parts = [m.parts or [(np.array([i]), m.d[[[i]]]) for i in range(len(gram))] for m in minorants]
    same = all(np.array_equal(own[0], m) for part in parts for own, (m, _) in zip(part, parts[0], strict=True))
    same = same and not any(np.any(m.shift) for m in minorants)
    if z.shape != target.shape or classes.shape != target.shape[:1] or not same:
        raise RefusedError("its points are not one for each row, or its minorants have shifts or different blocks")
    if np.any((classes < 0) | (classes >= len(parts))):
        raise RefusedError("its rows name a minorant that is not there")
    points = Points(gram, target, z[None], 0.0, np.concatenate([np.ravel(x) for part in parts for _, x in part]))
    total, tables = points.value[0], dict[int, list[list[int]]]()
    for number, (m, _) in enumerate(parts[0]):
        sets, inputs, group = choices(structure, m, True)
        saved = np.zeros(len(sets), dtype=object)
        for k, part in enumerate(parts):
            matrix, entries = part[number][1], integers(part[number][1], points.b)
            own, h = points.z[0][classes == k][:, m].T, points.h[0][classes == k][:, m].T
            pull = entries @ own
            total += (own * (pull - 2 * h)).sum()
            saved += [refit_saving(matrix, entries, pull - h, kept, points.a, points.b) for kept in inputs]
        tables.setdefault(group, []).append(by_count(saved, sets))
    return fraction(total - most_saved(tables, structure), points.unit)


def over_priced(tangent: Tangent, minorant: Minorant, structure: Structure, price: Any) -> Fraction:
    """A mask of single inputs, those kept being 1, with blocks of inputs of any group and a price of each kept one.

    A price λ ≥ 0 of a group adds λ(kept − capacity) ≤ 0 to the error.
    """
    if price.shape != structure.capacity.shape or not np.all(price >= 0):
        raise RefusedError("its prices are negative or too few")
    half, group = integers(0.5 * price, tangent.a + tangent.b), structure.group[:, None] == np.arange(len(price))
    tangent.h = tangent.h + half[structure.group]
    total = 2 * ((half[structure.group] * tangent.z).sum() - ((half * structure.capacity).sum() << tangent.a))
    for m, matrix in minorant.parts or [(np.array([i]), minorant.d[[[i]]]) for i in range(len(minorant.d))]:
        if len(m) > _MOST_PRICED:
            raise RefusedError("a block of its minorant has too many choices")
        points = np.array(list(all_of((0.0, 1.0), repeat=len(m))))
        points = points[np.all(points @ group[m] <= structure.capacity, axis=1)]
        total += Block(tangent, m, matrix).least(points)
    return tangent.bound(total)


#: Inputs of a block with a price.
_MOST_PRICED = 14
