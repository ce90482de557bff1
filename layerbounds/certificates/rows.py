"""Dual points of rows that have one mask, of masks of units, and of choices of whole output channels, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.filters.transposed import counting
from layerbounds.bounds.masks.form import MaskForm, row_form, unit_form
from layerbounds.bounds.minorants.diagonal import certified_minorant
from layerbounds.bounds.pruning.dual import certified_block_minorant
from layerbounds.certificates.dual import Parts, entries
from layerbounds.certificates.tiles import tile_dual
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.masked_weights import MaskedWeights
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import FilterDual, MaskBlocksDual, MaskDual, SharedDual, TiledDual


@dataclass(frozen=True, eq=False)
class Packed:
    """A dual point.

    Attributes
    ----------
    parts : dict
        Tensors of the proof.
    minorants : list of (object, dict)
        Something whose identity tells minorants apart, and tensors of each.
    """

    parts: Parts = field(default_factory=dict)
    minorants: list[tuple[Any, Parts]] = field(default_factory=list)


def _shared(task: Task[SharedSupport], dual: SharedDual) -> Packed:
    return _points(task.gram, dual)


def _points(gram: Float, dual: SharedDual) -> Packed:
    """A point of each row, and the blocks of each class of rows, proven as certification does."""
    block = np.asarray(dual.block, dtype=np.int64)
    single, own = len(np.unique(block)) == len(block), block[:, None] == block
    minorants: list[tuple[Any, Parts]] = []
    for k, matrix in enumerate(np.asarray(dual.matrices, dtype=np.float64)):
        if single:
            parts: Parts = {"d": certified_minorant(gram, np.diag(matrix))}
        else:
            proven = certified_block_minorant(gram, np.where(own, 0.5 * (matrix + matrix.T), 0.0))
            parts = {"values": entries(proven, block), "block": block}
        minorants.append(((id(dual.matrices), k), parts))
    points = np.atleast_2d(np.asarray(dual.points, dtype=np.float64))
    return Packed({"z": points, "row_class": np.asarray(dual.row_class, dtype=np.int64)}, minorants)


def mask_form(task: Task[Any]) -> MaskForm:
    """The quadratic form of masks of units, or of output channels."""
    allowed = task.allowed
    if isinstance(allowed, KeptRows):
        assert task.metric is not None
        return row_form(task.gram, task.targets, allowed.original, task.metric, allowed.capacity)
    return unit_form(task.gram, task.targets, np.atleast_2d(allowed.original), allowed.structure)


def _mask(task: Task[Any], dual: MaskDual) -> Packed:
    form, d = mask_form(task), np.zeros(np.shape(dual.d))
    active = np.flatnonzero(~form.idle)
    d[active] = certified_minorant(form.restricted(active).a, np.asarray(dual.d, dtype=np.float64)[active])
    return Packed({"z": np.asarray(dual.z, dtype=np.float64)}, [(object(), {"d": d})])


def _mask_blocks(task: Task[Any], dual: MaskBlocksDual) -> Packed:
    form, matrix = mask_form(task), np.asarray(dual.matrix, dtype=np.float64)
    active = np.flatnonzero(~form.idle)
    # Units that change nothing are blocks of their own.
    block = np.where(form.idle, int(np.max(dual.block)) + 1 + np.arange(len(form.idle)), np.asarray(dual.block))
    own = np.where(block[:, None] == block, 0.5 * (matrix + matrix.T), 0.0)
    proven, place = np.zeros_like(own), np.ix_(active, active)
    proven[place] = certified_block_minorant(form.restricted(active).a, own[place])
    parts = {"values": entries(proven, block), "block": block}
    return Packed(
        {"z": np.asarray(dual.z, dtype=np.float64), "price": np.maximum(dual.price, 0.0)}, [(object(), parts)]
    )


def _filters(task: Task[KeptRows], dual: FilterDual) -> Packed:
    if task.metric is None or dual.rows is None or dual.dual is None:
        return Packed()
    live = counting(task.metric)
    packed = _points(np.ascontiguousarray(task.metric[np.ix_(live, live)]), dual.dual)
    return Packed({**packed.parts, "rows": np.asarray(dual.rows, dtype=np.float64)}, packed.minorants)


def _tiles(task: Task[TiledSupport], dual: TiledDual) -> Packed:
    return Packed(tile_dual(task.gram, dual))


#: From a task and a dual point to tensors.
PACKED: dict[tuple[type, type], Callable[[Task[Any], Any], Packed]] = {
    (SharedSupport, SharedDual): _shared,
    (SharedSupport, MaskDual): _mask,
    (SharedSupport, MaskBlocksDual): _mask_blocks,
    (KeptRows, MaskDual): _mask,
    (KeptRows, MaskBlocksDual): _mask_blocks,
    (KeptRows, FilterDual): _filters,
    (TiledSupport, TiledDual): _tiles,
}


def about_units(task: Task[Any]) -> bool:
    """Whether proofs are about the quadratic form of masks of units, or of output channels."""
    allowed = task.allowed
    if isinstance(allowed, KeptRows):
        return not allowed.refit and task.metric is not None
    several = isinstance(allowed, SharedSupport)
    return isinstance(allowed, MaskedWeights) and not allowed.refit and (several or has_wide_units(allowed))


def has_wide_units(allowed: MaskedWeights) -> bool:
    """Whether some units have several inputs."""
    return len(allowed.structure.group) < len(allowed.structure.unit)
