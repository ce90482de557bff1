"""The bound of a binary quadratic form from blocks of units, all sets of which are tried; every rounding is charged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.masks.dual import value_at_point
from layerbounds.bounds.masks.form import MaskForm
from layerbounds.bounds.pruning.dual import certified_block_minorant, is_block_minorant
from layerbounds.exceptions import CertificationError
from layerbounds.proofs import MaskBlocksDual

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)
#: Blocks of more units prove nothing.
MOST_UNITS = 14


def pad_blocks(parts: Sequence[Int]) -> Int:
    """The units of blocks as rows of equal length, −1 where a block has fewer."""
    member = np.full((len(parts), max(map(len, parts))), -1, dtype=np.int64)
    for row, part in zip(member, parts, strict=True):
        row[: len(part)] = part
    return member


def block_sets(member: Int, group: Int, capacity: Int) -> tuple[Float, Float]:
    """All sets of a block's places, shape (sets, places), and infinity where a block's set breaks the pattern.

    Places beyond a block's units are never chosen.

    Parameters
    ----------
    member : ndarray of int64, shape (blocks, places)
    group : ndarray of int64, shape (units,)
    capacity : ndarray of int64, shape (groups,)

    Returns
    -------
    sets : ndarray of shape (sets, places)
    forbidden : ndarray of shape (blocks, sets)
    """
    places = member.shape[1]
    sets = np.array(list(product((0.0, 1.0), repeat=places)), dtype=np.float64).reshape(-1, places)
    own = np.where(member >= 0, group[np.maximum(member, 0)], -1)
    over = (own < 0) @ sets.T > 0
    for place in range(places):
        # Of the group of the unit in this place no more may be chosen than it has room for.
        same = (own == own[:, place, None]) & (own >= 0)
        over |= same @ sets.T > np.where(own[:, place] >= 0, capacity[np.maximum(own[:, place], 0)], places)[:, None]
    return sets, np.where(over, np.inf, 0.0)


def blocks_bound(form: MaskForm, dual: MaskBlocksDual) -> float:
    """Lower bound on the error over all masks, −inf where no part of the blocks is proven to lie below A.

    With e = y − z, f(y) = f(z) + 2hᵀe + eᵀAe ≥ f(z) + Σ_blocks (2hᵀe + eᵀBe), h = Az − β, and Σ_g λ_g(Σ_g y − k_g) ≤ 0
    for every allowed y and prices λ ≥ 0. What remains is minimised over each block's sets that alone do not break the
    pattern.

    Parameters
    ----------
    form : MaskForm
    dual : MaskBlocksDual
        Negative prices count as 0.

    Raises
    ------
    CertificationError
        If there are more or fewer numbers than units or groups.
    """
    z, price = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.price, dtype=np.float64)
    if len(z) != len(form.beta) or price.shape != form.capacity.shape:
        raise CertificationError("the backend returned a dual point with another number of units.")
    active = np.flatnonzero(~form.idle)
    part = form.restricted(active)
    z, label = z[active], np.unique(np.asarray(dual.block)[active], return_inverse=True)[1]
    parts = [np.flatnonzero(label == x) for x in range(int(label.max(initial=-1)) + 1)]
    if not parts:
        return form.energy - form.off
    if max(map(len, parts)) > MOST_UNITS:
        return -np.inf
    own = np.asarray(dual.matrix, dtype=np.float64)[np.ix_(active, active)]
    own = np.where(label[:, None] == label, 0.5 * (own + own.T), 0.0)
    own = certified_block_minorant(part.a, own)
    if not np.any(own) and not is_block_minorant(part.a, own):
        return -np.inf
    value, h, reach = value_at_point(part, z)
    member = pad_blocks(parts)
    sets, forbidden = block_sets(member, part.group, part.capacity)
    point = np.append(z, 0.0).astype(_LONG)[member]
    slope: Any = np.append(2 * h, _LONG(0))[member]
    price = np.maximum(price, 0.0).astype(_LONG)
    prices = np.append(price[part.group], _LONG(0))[member]
    inside = (member >= 0)[:, :, None] & (member >= 0)[:, None, :]
    pairs = np.where(inside, own[member[:, :, None], member[:, None, :]], 0.0)
    total: Any = value - np.sum(price * part.capacity)
    size: Any = abs(part.energy) + np.sum(price * part.capacity) + np.sum(reach * (6 * np.abs(z) + 4))
    for b in range(len(parts)):
        e = sets - point[b]
        pulled = e @ pairs[b].astype(_LONG)
        terms = e @ slope[b] + np.sum(pulled * e, axis=1) + sets @ prices[b] + forbidden[b]
        total += terms.min()
        most = np.abs(point[b]) + 1
        size += most @ np.abs(pairs[b]) @ most + np.sum(prices[b])
    bound = total - 4 * (len(active) + 2 * member.shape[1] + 24) * _UNIT_LONG * size - part.off * (1 + _UNIT_LONG)
    return float(np.nextafter(float(bound), -np.inf)) if np.isfinite(bound) else -np.inf
