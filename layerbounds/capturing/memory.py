"""How much memory a capture takes, and how to stay below a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from layerbounds.arguments import readable
from layerbounds.capturing.geometry import BLOCK_BYTES
from layerbounds.capturing.moments import moment_bytes
from layerbounds.capturing.targets import Target


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
