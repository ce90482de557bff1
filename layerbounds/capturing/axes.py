"""What the axes of a layer's inputs can be, by how their sizes follow those of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axes:
    """Where the positions of a layer's inputs have the sequences and the tokens.

    Attributes
    ----------
    sequences, tokens : int, optional
        Axes; None where there is none: a pooler has no tokens, and a single sequence needs no axis.
    both : int, optional
        One axis for both, instead.
    tokens_outside : bool
        Whether the tokens change slowly along that axis, and the sequences quickly.
    """

    sequences: int | None = None
    tokens: int | None = None
    both: int | None = None
    tokens_outside: bool = False

    def rows(self, mask: Tensor, shape: Sequence[int]) -> Tensor | None:
        """The mask of (sequences, tokens) at each position of an input; None where the sizes are others."""
        sizes = dict(zip((self.sequences, self.tokens), mask.shape, strict=True))
        if self.both is not None:
            values, sizes = mask.T if self.tokens_outside else mask, {self.both: mask.numel()}
        elif self.tokens is None:
            values = mask.any(1)
            if torch.Size(shape).numel() != len(values):
                return None
        elif self.sequences is not None and self.sequences > self.tokens:
            values = mask.T
        else:
            values = mask
        sizes.pop(None, None)
        if any(shape[axis] != size for axis, size in sizes.items()):  # type: ignore[index]
            return None
        if values.numel() != torch.Size(sizes.values()).numel():
            return None
        return values.reshape([sizes.get(axis, 1) for axis in range(len(shape))]).expand(*shape).reshape(-1)

    def by_token(self, positions: Tensor, sequences: int, tokens: int) -> Tensor:
        """Positions of an input, features last, as (sequences, tokens, rest); one token where there is none."""
        if self.both is not None:
            outside = (tokens, sequences) if self.tokens_outside else (sequences, tokens)
            rows = positions.movedim(self.both, 0).reshape(*outside, -1)
            return rows.transpose(0, 1) if self.tokens_outside else rows
        if self.sequences is not None and self.tokens is not None:
            return positions.movedim((self.sequences, self.tokens), (0, 1)).flatten(2)
        if self.tokens is not None:
            return positions.movedim(self.tokens, 0).reshape(1, tokens, -1)
        return positions.reshape(sequences, 1, -1)


def candidates(
    sizes: Sequence[tuple[int, int, int]], batch: tuple[int, int], part: tuple[int, int]
) -> list[Axes] | str:
    """What the sizes of an input's axes admit, or why nothing.

    Parameters
    ----------
    sizes : sequence of (int, int, int)
        Of each axis: in the batch, in some sequences of it, and in these with some tokens cut off.
    batch : (int, int)
        Sequences and tokens of the batch.
    part : (int, int)
        Sequences of the part, and tokens that are left of them.
    """
    kinds = [_kind(size, batch, part) for size in sizes]
    if "unknown" in kinds:
        return "it sees selected tokens, or others than those of the mask"
    found = {kind: [axis for axis, k in enumerate(kinds) if k == kind] for kind in ("sequences", "tokens", "both")}
    sequences, tokens, both = found["sequences"], found["tokens"], found["both"]
    if both:
        if sequences or tokens or len(both) > 1:
            return "several of its axes follow the tokens"
        return [Axes(both=both[0]), Axes(both=both[0], tokens_outside=True)]
    if len(sequences) > 1 or len(tokens) > 1:
        return "several of its axes follow the sequences or the tokens"
    if not sequences and batch[0] > 1:
        return "none of its axes follows the sequences"
    if not tokens and any(size[0] > 1 for size, kind in zip(sizes, kinds, strict=True) if kind == "other"):
        return "its rows are not tokens"
    return [Axes(sequences[0] if sequences else None, tokens[0] if tokens else None)]


def _kind(size: tuple[int, int, int], batch: tuple[int, int], part: tuple[int, int]) -> str:
    (sequences, tokens), (some, fewer) = batch, part
    if size[0] == size[1] == size[2]:
        return "other"
    if size == (sequences, some, some):
        return "sequences"
    if size == (tokens, tokens, fewer):
        return "tokens"
    if size == (sequences * tokens, some * tokens, some * fewer):
        return "both"
    return "unknown"
