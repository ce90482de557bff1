"""What a problem allows in parts that can be compared: which of two problems allows all that the other does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.problems.patterns import Structure


@dataclass(frozen=True, eq=False)
class Parts:
    """What weights may be, and how many of them may differ from zero.

    Attributes
    ----------
    values : bytes or None
        Equal for equal values that a weight may take where nothing makes it zero; None for any value.
    structure : Structure or None
        None where every weight takes one of its values.
    zero : bool
        Whether zero is one of the values of every weight.
    share : int or None
        How many consecutive output channels have the same choice of kept units; None for all of a Gram matrix.
    limited : bool
        Whether more than this is demanded.
    """

    values: bytes | None
    structure: Structure | None
    zero: bool
    share: int | None = 1
    limited: bool = False


def contains(outer: Parts | None, inner: Parts | None) -> bool:
    """Whether one problem of a layer allows all weights that another does; False if that is not known."""
    if outer is None or inner is None or outer.limited or (outer.values is not None and outer.values != inner.values):
        return False
    if outer.structure is None:
        return inner.structure is None or outer.zero
    return inner.structure is not None and _shares(inner, outer) and _fits(inner.structure, outer.structure)


def _shares(inner: Parts, outer: Parts) -> bool:
    """Whether rows that must have one mask in the outer problem have one in the inner."""
    if outer.share == 1 or inner.share is None:
        return True
    return outer.share is not None and inner.share % outer.share == 0


def _fits(inner: Structure, outer: Structure) -> bool:
    """Whether every choice of kept units of one structure is one of the other."""
    if np.array_equal(inner.unit, outer.unit) and np.array_equal(inner.group, outer.group):
        return bool(np.all(inner.capacity <= outer.capacity))
    # All inputs of one group, one by one: only their number counts.
    sizes = np.bincount(inner.unit)
    most = sum(
        int(np.sort(sizes[inner.group == group])[::-1][:capacity].sum())
        for group, capacity in enumerate(inner.capacity)
    )
    return len(outer.capacity) == 1 and len(outer.group) == len(outer.unit) and most <= int(outer.capacity[0])
