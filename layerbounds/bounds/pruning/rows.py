"""Certified minima over sparsity structures for many rows with one Gram matrix and one diagonal minorant.

What `layerbounds.bounds.pruning.dual` derives for one row in extended precision is derived here for all rows from one
proof and one float64 product, with a-priori charges (docs/numerics.md, *Groups of rows: pruning*).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, is_minorant
from layerbounds.bounds.objective import SLOPE_UNDERFLOW, UNDERFLOW
from layerbounds.exceptions import CertificationError
from layerbounds.kernels.factorization import UNIT, gamma
from layerbounds.problems.patterns import Structure
from layerbounds.problems.support import Support
from layerbounds.proofs import DualPoint

Allowed = TypeVar("Allowed")

#: Rows that are bounded at a time: a dozen arrays of so many rows exist at once.
CHUNK = 256


def diagonal(gram: Float, targets: Float, alloweds: Sequence[Support], duals: Sequence[DualPoint]) -> Float:
    """Lower bounds on (v − w)ᵀH(v − w) over the weights that each row may take.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    targets : ndarray of shape (rows, n)
    alloweds : sequence of Support
        One a row.
    duals : sequence of DualPoint
        One a row; all with the same diagonal, as one array.

    Returns
    -------
    ndarray of shape (rows,)
        −inf where nothing is proven about the matrix, or with refit where the diagonal is not positive.

    Raises
    ------
    CertificationError
        If the rows have different diagonals, or integer forms.
    """
    bounds = np.full(len(targets), -np.inf)
    if not len(targets):
        return bounds
    if any(dual.d is not duals[0].d or dual.split is not None for dual in duals):
        raise CertificationError("the backend returned dual points of pruning without one common diagonal.")
    d = certified_minorant(gram, np.asarray(duals[0].d, dtype=np.float64))
    if not np.any(d) and not is_minorant(gram, d):
        # A singular matrix as stored may have negative eigenvalues of rounding size: nothing is proven about it.
        return bounds
    norm = np.sqrt(np.diag(gram) + np.maximum(-d, 0.0))
    for first, rows in alike(alloweds, same_rule):
        for begin in range(0, len(rows), CHUNK):
            part = rows[begin : begin + CHUNK]
            z = np.array([duals[r].z for r in part], dtype=np.float64)
            original = None if first.refit else np.array([alloweds[r].original for r in part], dtype=np.float64)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                bounds[part] = _bounds(gram, norm, d, targets[part], z, original, first.structure)
    return bounds


def _bounds(
    gram: Float, norm: Float, d: Float, targets: Float, z: Float, original: Float | None, structure: Structure
) -> Float:
    """The bounds of rows with one structure."""
    n = len(d)
    # The point is w + e for the rounded e; z is that, rounded.
    e = z - targets
    z = targets + e
    h = e @ gram
    h_error = gamma(n + 24) * (np.abs(e) @ norm)[:, None] * norm + SLOPE_UNDERFLOW * np.any(e, axis=1, keepdims=True)
    # In this order the square of a small weight does not underflow.
    square = d * z * z
    value = np.sum(e * h - 2.0 * h * z + square, axis=1)
    charge = np.sum(h_error * (np.abs(e) + 2.0 * np.abs(z)), axis=1)
    size = np.sum(np.abs(e * h) + 2.0 * np.abs(h * z) + np.abs(square), axis=1)
    if original is None:
        product = d * z
        c = np.abs(product - h) + h_error + 8 * UNIT * (np.abs(product) + np.abs(h))
        saving = np.where(d > 0, c * (c / d), np.where(c > 0, np.inf, 0.0)) * (1 + 16 * UNIT)
        kept = largest_totals(structure, saving)
        size += np.abs(kept)
    else:
        reach = 2.0 * np.abs(h * original) + np.abs(d * original) * (2.0 * np.abs(z) + np.abs(original))
        saving = d * original * (2.0 * z - original) - 2.0 * h * original
        saving += 2.0 * h_error * np.abs(original) + 16 * UNIT * reach
        kept = largest_totals(structure, saving)
        size += np.sum(reach, axis=1)
    bound = value - kept - charge - 4 * (n + 16) * UNIT * (size + np.abs(kept)) - UNDERFLOW
    return np.where(np.isfinite(bound), np.nextafter(bound, -np.inf), -np.inf)


def largest_totals(structure: Structure, saving: Float) -> Float:
    """Per row the largest total saving of a choice of units, each the sum over its inputs; saving nothing is allowed.

    Parameters
    ----------
    structure : Structure
    saving : ndarray of shape (rows, n)
    """
    rows, n = saving.shape
    per_unit = saving
    if not np.array_equal(structure.unit, np.arange(n)):
        order = np.argsort(structure.unit, kind="stable")
        first = np.searchsorted(structure.unit[order], np.arange(len(structure.group)))
        per_unit = np.add.reduceat(saving[:, order], first, axis=1)
    per_unit = np.maximum(per_unit, 0.0)
    total = np.zeros(rows)
    for index, capacity in equal_groups(structure):
        size = index.shape[1]
        # A slice where it is one, as for patterns on inputs in their order.
        part = (
            per_unit if np.array_equal(index.ravel(), np.arange(len(structure.group))) else per_unit[:, index.ravel()]
        )
        part = part.reshape(rows, *index.shape)
        if 0 < capacity < size:
            part = np.partition(part, size - capacity, axis=2)[:, :, size - capacity :]
        if capacity:
            total += part.reshape(rows, -1).sum(axis=1)
    return total


def equal_groups(structure: Structure) -> Iterator[tuple[Int, int]]:
    """Units of the groups that have one size and one capacity, shape (groups, size), and the capacity."""
    order = np.argsort(structure.group, kind="stable")
    size = np.bincount(structure.group, minlength=len(structure.capacity))
    first = np.cumsum(size) - size
    capacity = np.minimum(structure.capacity, size)
    for each, most in np.unique(np.stack([size, capacity], axis=1), axis=0).tolist():
        groups = np.flatnonzero((size == each) & (capacity == most))
        yield order[first[groups, None] + np.arange(each)], most


def same_rule(first: Support, second: Support) -> bool:
    """Whether two sets have one structure and one rule for kept weights."""
    return first.refit == second.refit and first.structure.equals(second.structure)


def alike(alloweds: Sequence[Allowed], same: Callable[[Allowed, Allowed], bool]) -> Iterator[tuple[Allowed, Int]]:
    """The rows whose sets have what counts in common, such as the structure, and one of their sets."""
    kinds: list[tuple[Allowed, list[int]]] = []
    for row, allowed in enumerate(alloweds):
        for first, rows in kinds:
            if same(first, allowed):
                rows.append(row)
                break
        else:
            kinds.append((allowed, [row]))
    for first, rows in kinds:
        yield first, np.array(rows, dtype=np.int64)


ROWS = {(Support, DualPoint): diagonal}
