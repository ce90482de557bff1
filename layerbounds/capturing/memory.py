"""How much memory a capture takes, and how to stay below a limit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from layerbounds.arguments import shown
from layerbounds.capturing.geometry import BLOCK_BYTES
from layerbounds.capturing.moments import moment_bytes
from layerbounds.capturing.targets import Target
from layerbounds.exceptions import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class MemoryPlan:
    """In how many passes over the batches the layers are captured.

    Attributes
    ----------
    passes : tuple of tuple of Target
    bytes : int
        Sums of all layers together, which the resulting layers need too.
    peak : int
        Sums of the largest pass that are in memory, and the block of unfolded inputs.
    spilled : frozenset of str
        Layers larger than the limit, whose sums are kept on disk.
    """

    passes: tuple[tuple[Target, ...], ...]
    bytes: int
    peak: int
    spilled: frozenset[str]

    def __str__(self) -> str:
        layers = sum(map(len, self.passes))
        times = f"{len(self.passes)} passes" if len(self.passes) > 1 else "one pass"
        disk = f", {len(self.spilled)} of them on disk" if self.spilled else ""
        return (
            f"{layers} layer{'s' if layers > 1 else ''}{disk}: {readable(self.bytes)} of Gram matrices, at most "
            f"{readable(self.peak)} at once, {times} over the batches"
        )


def plan_memory(targets: Sequence[Target], limit: int | None, compressed: bool, dtype: torch.dtype) -> MemoryPlan:
    """Divide layers into passes whose sums fit into a limit.

    Parameters
    ----------
    targets : sequence of Target
    limit : int, optional
        Bytes for the sums of one pass. The model, its activations and the block of unfolded inputs come on top.
    compressed : bool
        Whether compressed inputs are captured too.
    dtype : torch.dtype
        Of the sums.
    """
    size = {t.name: moment_bytes(t.geometry, compressed, dtype) for t in targets}
    spilled = frozenset(name for name, value in size.items() if limit is not None and value > limit)
    passes: list[list[Target]] = []
    used: list[int] = []
    for target in targets:
        own = 0 if target.name in spilled else size[target.name]
        # Into the first pass that has room.
        place = next((i for i, sums in enumerate(used) if limit is None or sums + own <= limit), len(passes))
        if place == len(passes):
            passes.append([])
            used.append(0)
        passes[place].append(target)
        used[place] += own
    return MemoryPlan(tuple(map(tuple, passes)), sum(size.values()), max(used) + BLOCK_BYTES, spilled)


def parse_bytes(value: int | str | None) -> int | None:
    """Read a number of bytes such as ``2000000000``, ``"2GB"`` or ``"2GiB"``.

    Raises
    ------
    InputError
        If it is not a positive number of bytes.
    """
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", value.lower())
        if match is None or match.group(2) not in _UNITS:
            raise InputError(f"memory_limit is {shown(value)}; write a number of bytes such as 500MB, 2GB or 2GiB.")
        value = int(float(match.group(1)) * _UNITS[match.group(2)])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InputError(f"memory_limit is {shown(value)}; pass a positive number of bytes.")
    return value


def readable(size: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"
