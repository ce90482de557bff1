"""Rows whose masks limit one another (N:M along rows and columns of tiles, V:N:M): prices, and choices of the rows.

With prices p ≥ 0 of what each row keeps,

    Σ_r f_r(v_r) = Σ_r [f_r(v_r) + what row r pays] − (what all of them pay),

where the first terms are bounded row by row, by leaves of a tree for each, and the last one by the largest total price
of allowed masks. Where that is not enough, one leaf of each row together: masks that these leaves have pay less.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.exact import RefusedError, fraction, integers
from layerbounds_verify.leaves import leaf_bounds
from layerbounds_verify.reader import Certificate, Structure

#: Columns of a group that the rows of V:N:M use.
_COLUMNS = 4


@dataclass
class Limits:
    """By how many rows each input may be kept, and which inputs any of them may keep: a structure of single inputs."""

    most: int
    columns: Structure

    def excess(self, masks: Any) -> bool:
        """Whether masks, shape (rows, n), exceed the limits."""
        return bool(np.any(masks.sum(axis=0) > self.most)) or self.columns.excess(masks.any(axis=0))

    def largest(self, prices: Any, status: Any) -> int:
        """At least what allowed masks pay that keep some inputs (1) and perhaps some others (0), shape (rows, n).

        The rows that pay most keep an input, and of a group's inputs those are kept that cost most.
        """
        kept, group = status > 0, self.columns.group
        used, ordered = kept.any(axis=0), np.sort(np.where(status == 0, prices, 0), axis=0)[::-1]
        inside = np.arange(len(prices))[:, None] < self.most - kept.sum(axis=0)
        paid = (np.where(kept, prices, 0) + np.where(inside, ordered, 0)).sum(axis=0)
        total = paid[used].sum()
        for g, capacity in enumerate(self.columns.capacity.tolist()):
            rest = np.sort(paid[(group == g) & ~used])[::-1]
            total += rest[: capacity - int((group == g)[used].sum())].sum()
        return int(total)


def limits(certificate: Certificate, rows: int) -> Limits:
    """What binds so many rows together."""
    problem = certificate.about["problem"]
    found = re.fullmatch(r"(transposable|venom:(\d+)):(\d+):(\d+)", problem["pattern"])
    if found is None or problem["share"] != int(found[2] or found[4]):
        raise RefusedError(f"rows of a pattern {problem['pattern']!r} are bound in another way")
    inputs = np.arange(certificate.weight.shape[1])
    if found[2] is None:
        return Limits(min(int(found[3]), rows), Structure(inputs, inputs, np.ones_like(inputs)))
    group = inputs // int(found[4])
    return Limits(rows, Structure(inputs, group, np.minimum(_COLUMNS, np.bincount(group))))


#: Choices that are begun; if there are more, the bounds of the rows alone count.
_MOST_CHOICES = 1 << 22


def together(leaves: list[tuple[Any, Any]], prices: Any, limits: Limits, claim: int) -> int:
    """The claim, or less: a lower bound of all choices of one leaf for each row that the limits allow.

    Parameters
    ----------
    leaves : list of (ndarray of shape (leaves, n), ndarray of shape (leaves,))
        Of each row: 1 (kept), −1 (dropped) or 0 (either), and bounds of error plus prices, integers as the prices are.
    prices : ndarray of shape (rows, n)
    limits : Limits
    claim : int
    """
    rows, n = prices.shape
    most, best, begun = limits.largest(prices, np.zeros(prices.shape)), claim, 0
    # Counts of the rows that keep each input, side by side in one integer: too many set the last bit of a count.
    wide = rows.bit_length() + 1
    ones, last = _bits(np.ones(n), wide), 1 << (wide - 1)
    room, over = ones * (last - 1 - limits.most), ones * last
    inside = [(limits.columns.group == g, c) for g, c in enumerate(limits.columns.capacity.tolist())]
    columns = [(_bits(inputs, 1), c) for inputs, c in inside if c < inputs.sum()]
    lists = []
    for (status, least), paid in zip(leaves, prices, strict=True):
        kept = [(_bits(own > 0, wide), _bits(own > 0, 1), paid[own > 0].sum()) for own in status]
        lists.append([(least[k], *kept[k], status[k]) for k in np.argsort(least)])
    rest = [sum(own[0][0] for own in lists[begin:]) for begin in range(rows + 1)]

    def descend(chosen: tuple[Any, ...], spent: int, paid: int, count: int, used: int) -> None:
        nonlocal best, begun
        if len(chosen) == rows:
            status = np.array(chosen)
            best = min(best, spent - (limits.largest(prices, status) if np.any(status == 0) else paid))
            return
        for least, counts, own, more, status in lists[len(chosen)]:
            if spent + least + rest[len(chosen) + 1] - most >= best:
                return
            begun += 1
            if begun > _MOST_CHOICES:
                best = min(best, rest[0] - most)
            both = used | own
            if not (count + counts + room) & over and all((both & part).bit_count() <= c for part, c in columns):
                descend((*chosen, status), spent + least, paid + more, count + counts, both)

    descend((), 0, 0, 0, 0)
    return best


def _bits(flags: Any, wide: int) -> int:
    """An integer with a one at the place of each input that is flagged, so many bits apart."""
    return sum(1 << wide * i for i in np.flatnonzero(flags).tolist())


def over_tiles(
    gram: Any, target: Any, values: Any, structure: Structure, limits: Limits, parts: dict[str, Any], claim: Fraction
) -> Fraction:
    """The claim, or less.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n)
    values : ndarray of shape (rows, n) or None
        What kept weights are, where they may not take any value.
    structure : Structure
        Of single inputs: what each row may keep.
    limits : Limits
    parts : dict
        The tensors of the proof: ``price``, and those of a tree for each row, ``row.R.axis``, …; or ``z`` and ``d`` of
        shape (rows, n), a point and a diagonal for each.
    claim : Fraction
        Without the constant.
    """
    price, found = parts["price"], []
    if price.shape != target.shape or not np.all(price >= 0):
        raise RefusedError("its prices are not one for each row and input, or one is negative")
    for r, row in enumerate(target):
        own = {name.removeprefix(f"row.{r}."): part for name, part in parts.items() if name.startswith(f"row.{r}.")}
        if "z" in parts:
            one = {"axis": -1, "at": -1, "child": 0, "minorant": 0, "z": parts["z"][r], "d": parts["d"][r]}
            own = {name: np.array([part]) for name, part in one.items()}
        weights = None if values is None else values[None, r, :, None]
        found.append(leaf_bounds(gram, row[None], structure, weights, own, None, price[r]))
    unit = max(power for power, _, _ in found)
    leaves = [(status, bounds << (unit - power)) for power, status, bounds in found]
    return fraction(together(leaves, integers(price, unit), limits, -int(-claim * (1 << unit) // 1)), unit)
