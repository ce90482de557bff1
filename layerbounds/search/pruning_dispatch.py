"""Which search treats which pruning problem."""

from __future__ import annotations

import math
import threading

import numpy as np

from layerbounds.backends.base import Control, PruningTask, RawSolve
from layerbounds.patterns import Structure
from layerbounds.search.blocks import search_blocks
from layerbounds.search.groups import search_groups
from layerbounds.search.masks import search_mask
from layerbounds.search.pruning import SubsetSearch, search_subset

#: More live inputs than this, and N:M patterns are better treated with the block dual in the whole tree.
LARGE = 160
#: Choices of a group up to which its block is minimised by enumeration.
MANY_CHOICES = 40


def _choices(task: PruningTask) -> int:
    """Most choices that a group of the pattern leaves."""
    sizes = np.bincount(task.structure.group)
    return max(math.comb(int(size), int(kept)) for size, kept in zip(sizes, task.structure.capacity, strict=True))


def search_pruning(task: PruningTask, control: Control) -> RawSolve:
    """Solve one channel of at least one live input."""
    structure = task.structure
    if not task.refit:
        return search_mask(task, control)
    if len(structure.group) == len(structure.unit):
        # Units are numbered in the order of the inputs.
        assert np.array_equal(structure.unit, np.arange(len(structure.unit)))
        if len(structure.unit) > LARGE and len(structure.capacity) > 1 and _choices(task) <= MANY_CHOICES:
            return search_groups(task, control)
        return search_subset(task, control)
    return search_blocks(task, control)


def compile_kernels() -> None:
    """Run the compiled loops once on a small instance, so that compilation is no part of a channel's time."""
    size = 6
    gram = np.eye(size) + 0.5
    index = np.arange(size)
    for refit in (True, False):
        for group in (np.zeros(size, dtype=np.int64), index // 3):
            structure = Structure(index, group, np.full(int(group[-1]) + 1, 2, dtype=np.int64))
            weights = np.linspace(1.0, 2.0, size)
            live = np.ones(size, dtype=bool)
            task = PruningTask(0, gram, weights, 0.0, 1.0, live, weights, structure, refit, None, None)
            search_pruning(task, Control(10.0, 0.0, 50, 0, 1, threading.Event()))
            if refit:
                SubsetSearch(task, Control(10.0, 0.0, 50, 0, 1, threading.Event())).warm_up()
