"""What the mask of a pattern costs to store, in bits for each weight (docs/patterns.md)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.problems.patterns import Structure

#: ``none``: nothing. ``bitmap``: a bit for each unit. ``entropy``: for each group the number of its choice among all
#: that use its capacity, in whole bits. ``metadata``: for each kept unit its place in the group, in whole bits, as
#: hardware stores 2:4.
Mask = Literal["none", "bitmap", "entropy", "metadata"]
MASKS: tuple[str, ...] = get_args(Mask)


def check_mask(mask: str) -> None:
    """Refuse what is no rule.

    Raises
    ------
    InputError
    """
    one_of(mask, "mask", MASKS)


def mask_bits(structure: Structure, mask: Mask) -> float:
    """Bits of a channel's mask, divided by the number of its inputs.

    Where nothing can be dropped there is no mask.

    Parameters
    ----------
    structure : Structure
    mask : {"none", "bitmap", "entropy", "metadata"}
    """
    return total_mask_bits(structure, mask) / max(len(structure.unit), 1)


def total_mask_bits(structure: Structure, mask: Mask) -> int:
    """Bits of one mask; see `mask_bits`."""
    check_mask(mask)
    sizes = np.bincount(structure.group, minlength=len(structure.capacity)).tolist()
    total = 0
    for size, kept in zip(sizes, structure.capacity.tolist(), strict=True):
        if kept >= size or mask == "none":
            continue
        if mask == "bitmap":
            total += size
        elif mask == "entropy":
            total += whole_bits(math.comb(size, kept))
        else:
            total += kept * whole_bits(size)
    return total


def whole_bits(choices: int) -> int:
    """⌈log₂ choices⌉."""
    return (choices - 1).bit_length()
