"""Which axes of a layer's inputs are the sequences and the tokens of a mask: found out by running parts of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.axes import Axes, candidates
from layerbounds.capturing.batches import Forward, StopRun, run_batch
from layerbounds.capturing.geometry import ConvGeometry
from layerbounds.capturing.parts import no_such_tensor, part_of_batch, tensors
from layerbounds.capturing.row_pairs import dissimilarity
from layerbounds.capturing.sides import Side, Sides
from layerbounds.capturing.state import preserved, seeded
from layerbounds.capturing.targets import CaptureWarning, Target
from layerbounds.capturing.watching import Call, hooks
from layerbounds.exceptions import InputError, LayerError

#: Sequences of a part, and features of a row that are kept of its inputs for comparison.
_SEQUENCES, _FEATURES = 2, 64
#: Dissimilarity of the rows of two runs below which they belong to the same tokens, and above which cutting off the
#: padding has changed them.
_SAME, _CHANGED = 0.25, 0.01


@dataclass(frozen=True)
class _Part:
    """Some sequences of a batch, whole (first run) and with columns cut off (second run).

    ``first`` and ``second`` hold, for each call of a module, the positions with at most `_FEATURES` features.
    ``padding_only`` says that what was cut off is padding, and ``at_the_start`` where.
    """

    index: int
    mask: Tensor
    chosen: list[int]
    columns: slice
    padding_only: bool
    at_the_start: bool
    first: Mapping[tuple[nn.Module, int], Tensor]
    second: Mapping[tuple[nn.Module, int], Tensor]


class TokenAxes:
    """Applies the masks of batches to the inputs of layers.

    Where a model has an encoder and a decoder, each layer follows the tokens of one of them, as `SideAxes` finds out.

    Parameters
    ----------
    model : nn.Module
    targets : sequence of Target
    forward : callable, optional
        As in `capture`.
    stop_after : int, optional
        As in `Pass`.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        forward: Forward | None,
        stop_after: int | None = None,
    ) -> None:
        self._sides = {side: SideAxes(model, targets, forward, stop_after) for side in (None, False, True)}
        self._now: list[SideAxes] = []
        self._rest = False

    def begin(self, batch: Any, sides: Sides, index: int, seed: int) -> None:
        """Take up a batch; the model must be ready to run. It will draw the numbers of the seed.

        Raises
        ------
        InputError
            If a mask leaves positions out and does not fit the batch, or the model does not run on a part of it.
        """
        self._rest = sides.rest
        self._now = [self._sides[side.decoder] for side in sides.masks]
        for own, side in zip(self._now, sides.masks, strict=True):
            own.begin(batch, side, index, seed)

    def keep(self, call: Call) -> Tensor | None:
        """Which of a module's inputs count, shape (positions,), at a call of it; None where all do.

        For an expert these are the tokens from which its own are chosen.

        Raises
        ------
        LayerError
            If it is not certain which rows belong to which tokens.
        """
        found: list[Tensor | None] = []
        error: LayerError | None = None
        for side in self._now:
            try:
                found.append(side.keep(call))
            except LayerError as reason:
                if self._rest and side.is_elsewhere(call):
                    return None
                error = error or reason
        if error is not None and not found:
            raise error
        # A row for each sequence follows both sides.
        kept = [keep for keep in found if keep is not None]
        return torch.stack(kept).all(0) if kept else None


class SideAxes:
    """Applies one mask to the inputs of layers.

    Sizes do not say which axis is which: there may be as many heads, or patches of an image, as tokens. So some
    sequences of the first batch with padding are run alone, and again without some of their columns. The sequences are
    the axis that follows the first change, the tokens the one that follows the second, and rows that belong to the same
    token must have stayed nearly the same. Whatever remains open is refused.

    Parameters
    ----------
    model : nn.Module
    targets : sequence of Target
    forward : callable, optional
        As in `capture`.
    stop_after : int, optional
        As in `Pass`.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        forward: Forward | None,
        stop_after: int | None = None,
    ) -> None:
        self._model, self._targets, self._forward, self._stop_after = model, targets, forward, stop_after
        self._part: _Part | None = None
        self._axes: dict[tuple[nn.Module, int], Axes | None] = {}
        self._own: set[tuple[nn.Module, int]] = set()
        self._mask: Tensor | None = None
        self._index = -1
        self._warned: set[str] = set()

    def begin(self, batch: Any, side: Side, index: int, seed: int) -> None:
        """See `TokenAxes.begin`."""
        self._index = index
        self._mask = None
        mask = side.mask
        own = tensors(batch)
        if own and not any(tensor.numel() % max(1, mask.numel()) == 0 for tensor in own):
            raise no_such_tensor(mask.shape)
        if side.decoder is None and bool(mask.all()):
            # Every position counts, whatever the axes are.
            return
        self._mask = mask
        old = self._part
        later = old is not None and bool(old.mask.all()) and not bool(mask.all())
        if old is None or later or any(a == 1 < b for a, b in zip(old.mask.shape, mask.shape, strict=True)):
            # An axis of size 1 could not be told from others.
            self._axes, self._own = {}, set()
            self._part = self._run_parts(batch, side, index, seed)

    def is_elsewhere(self, call: Call) -> bool:
        """Whether the sizes of a layer's inputs do not change when tokens are cut off."""
        part, key = self._part, (call.module, call.number)
        if part is None or key not in part.first or key not in part.second:
            return False
        return part.first[key].shape == part.second[key].shape

    def keep(self, call: Call) -> Tensor | None:
        """See `TokenAxes.keep`."""
        if self._mask is None:
            return None
        target, x = call.target, call.tokens
        key = call.module, call.number
        if bool(self._mask.all()):
            # In which order the rows are does not matter; only whether they are those of this side.
            if key not in self._axes and key not in self._own:
                self._possible(target, key, x)
                self._own.add(key)
            return None
        if key not in self._axes:
            self._axes[key] = self._find(target, key, x)
        axes = self._axes[key]
        if axes is None:
            return None
        keep = axes.rows(self._mask.to(x.device), target.geometry.positions(x).shape[:-1])
        if keep is None:
            raise self._refusal(target, x, "its sizes are not those of the mask")
        return None if bool(keep.all()) else keep

    def _refusal(self, target: Target, x: Tensor, reason: str) -> LayerError:
        assert self._mask is not None
        return LayerError(
            f"layer {target.name!r} sees inputs of shape {tuple(x.shape)}, to which the mask of shape "
            f"{tuple(self._mask.shape)} cannot be applied ({reason}); choose other layers, or pass unpadded batches "
            "and mask=None."
        )

    def _run_parts(self, batch: Any, side: Side, index: int, seed: int) -> _Part:
        mask = side.mask
        own = batch.get(side.name) if isinstance(batch, Mapping) else None
        padding = None
        if isinstance(own, Tensor) and own.shape == mask.shape:
            padding = (own == 0).cpu()
        chosen, columns, padding_only, at_the_start = _choose(mask.cpu(), padding)
        shape = mask.shape[0], mask.shape[1]
        parts = (part_of_batch(batch, shape, chosen, cut, side.owns) for cut in (slice(None), columns))
        try:
            first, second = (self._inputs(part, index, seed) for part in parts)
        except InputError as error:
            if isinstance(error, LayerError):
                raise
            raise InputError(
                f"batch {index} has padding, and which axes of the layers are sequences and tokens cannot be found out "
                f"by running a part of it ({error}); pass unpadded batches and mask=None."
            ) from error
        return _Part(index, mask, chosen, columns, padding_only, at_the_start, first, second)

    @torch.no_grad()
    def _inputs(self, part: Any, index: int, seed: int) -> dict[tuple[nn.Module, int], Tensor]:
        seen: dict[tuple[nn.Module, int], Tensor] = {}

        def note(call: Call) -> None:
            # All experts of a module get their tokens from the same ones.
            if (call.module, call.number) in seen:
                return
            positions = call.target.geometry.positions(call.tokens)
            step = max(1, positions.shape[-1] // _FEATURES)
            seen[call.module, call.number] = positions[..., ::step].clone()
            if len(seen) == self._stop_after:
                raise StopRun

        with preserved(self._model), seeded(seed), hooks(self._targets, note), suppress(StopRun):
            run_batch(self._model, part, self._forward, index)
        return seen

    def _possible(self, target: Target, key: tuple[nn.Module, int], x: Tensor) -> list[Axes] | None:
        """What the sizes of a layer's inputs admit; None for pixels of images, which are not tokens."""
        part = self._part
        assert part is not None and self._mask is not None
        first, second = part.first.get(key), part.second.get(key)
        positions = target.geometry.positions(x)
        if first is None or second is None:
            raise self._refusal(target, x, "it was not called, or less often, when parts of a padded batch were run")
        if not positions.ndim == first.ndim == second.ndim:
            raise self._refusal(target, x, "its number of axes depends on the batch")
        sizes = list(zip(positions.shape[:-1], first.shape[:-1], second.shape[:-1], strict=True))
        if isinstance(target.geometry, ConvGeometry) and len(target.geometry.kernel) > 1:
            if any(whole != cut for _, whole, cut in sizes):
                raise self._refusal(target, x, "tokens are among its pixels")
            return None
        if not target.geometry.row_for_each(x):
            raise self._refusal(target, x, "a convolution has other positions than tokens")
        if self._index != part.index:
            # The values can be compared for the batch alone of which the parts were run.
            raise self._refusal(target, x, "it was not called in the first padded batch")
        sequences, tokens = part.mask.shape
        left = len(range(tokens)[part.columns])
        possible = candidates(sizes, (sequences, tokens), (len(part.chosen), left))
        if isinstance(possible, str):
            raise self._refusal(target, x, possible)
        return possible

    def _find(self, target: Target, key: tuple[nn.Module, int], x: Tensor) -> Axes | None:
        possible = self._possible(target, key, x)
        if possible is None:
            return None
        part, positions = self._part, target.geometry.positions(x)
        assert part is not None
        first, second = part.first[key], part.second[key]
        step = max(1, positions.shape[-1] // _FEATURES)
        positions = positions[..., ::step]
        misfits = {axes: self._misfit(axes, positions, first, second, part) for axes in possible}
        axes = min(possible, key=lambda candidate: misfits[candidate][0])
        order, cut = misfits[axes]
        if order > _SAME:
            raise self._refusal(target, x, "its rows are not in the order of the sequences and tokens")
        if len(possible) > 1:
            # The tokens that do not count tell the order, too.
            orders = {c: misfits[c][0] + self._misfit(c, positions, first, second, part, False)[0] for c in possible}
            axes, other = sorted(possible, key=lambda candidate: orders[candidate])
            if not orders[axes] < 0.1 * orders[other]:
                raise self._refusal(target, x, "whether its rows go by sequences or by tokens cannot be told")
            cut = misfits[axes][1]
        self._check_cut(target, x, cut, part)
        return axes

    def _check_cut(self, target: Target, x: Tensor, cut: float, part: _Part) -> None:
        """What happened to the tokens that count when columns were cut off."""
        if part.padding_only and part.at_the_start and cut > _CHANGED:
            raise self._refusal(
                target,
                x,
                "its inputs at the tokens that count change when padding before them is cut off, so that they depend "
                "on the other sequences of a batch: pad at the end, or pass position_ids that count from the first "
                "token",
            )
        if cut > _SAME:
            raise self._refusal(target, x, "its rows do not follow the tokens when columns are cut off")
        if part.padding_only and cut > _CHANGED and target.name not in self._warned:
            self._warned.add(target.name)
            warnings.warn(
                f"the inputs of layer {target.name!r} at the tokens that count change when padding is cut off: what is "
                "captured depends on how sequences are put into batches",
                CaptureWarning,
                stacklevel=2,
            )

    @staticmethod
    def _misfit(
        axes: Axes, positions: Tensor, first: Tensor, second: Tensor, part: _Part, counting: bool = True
    ) -> tuple[float, float]:
        """Dissimilarity of the rows of the batch and of the part, and of the part whole and cut.

        Of the tokens that count, or of all.
        """
        sequences, tokens = part.mask.shape
        counted = part.mask[part.chosen].to(positions.device)
        if not counting:
            counted = torch.ones_like(counted)
        whole = axes.by_token(positions, sequences, tokens)[part.chosen]
        alone = axes.by_token(first, len(part.chosen), tokens)
        left = counted[:, part.columns]
        cut = axes.by_token(second, len(part.chosen), left.shape[1])
        if alone.shape[1] != tokens:
            # One row for each sequence.
            rows = left.any(1, keepdim=True)
            return dissimilarity(whole[rows], alone[rows]), dissimilarity(alone[rows], cut[rows])
        return (
            dissimilarity(whole[counted], alone[counted]),
            dissimilarity(alone[:, part.columns][left], cut[left]),
        )


def _choose(mask: Tensor, padding: Tensor | None) -> tuple[list[int], slice, bool, bool]:
    """Sequences of a part, its columns when it is cut, whether only padding is cut off, and whether at the start."""
    sequences, tokens = mask.shape
    number = min(_SEQUENCES, max(1, sequences - 1))
    if padding is not None:
        for flip in (False, True):
            edge = padding.flip(1) if not flip else padding
            run = edge.long().cumprod(1).sum(1).clamp(max=tokens - 1)
            chosen = [b for b in range(sequences) if run[b] and mask[b].any()][-number:][::-1]
            if chosen:
                amount = int(run[chosen].min())
                return chosen, slice(amount, None) if flip else slice(tokens - amount), True, flip
    chosen = ([b for b in range(sequences) if mask[b].any()] or list(range(sequences)))[-number:][::-1]
    return chosen, slice(max(1, tokens - 1)), False, False
