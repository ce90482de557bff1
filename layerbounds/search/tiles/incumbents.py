"""Masks of small error for a band of rows: by scores, then by the best masks of one group of inputs after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.kernels.tiles import descent, mask_descent
from layerbounds.problems.tasks import Task
from layerbounds.problems.tile_masks import column_choices
from layerbounds.problems.tiled_support import TiledSupport

#: Most codes of a group, most work of the best masks of a group, and most numbers in the rows' tableaux.
MOST_CODES, MOST_WORK, MOST_NUMBERS = 2000, 2e7, 2**26


def scores(gram: Float, targets: Float) -> Iterator[Float]:
    """What inputs of each row are worth: energy alone, what dropping one alone costs, and magnitude.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    targets : ndarray of shape (rows, n)
    """
    yield targets**2 * np.diag(gram)
    factor = cholesky(gram)
    if factor is not None:
        inverse = np.diag(symmetric_inverse(factor))
        if np.all(inverse > 0):
            yield targets**2 / inverse
    yield targets**2


@dataclass(frozen=True, eq=False)
class TileDescent:
    """The groups of a band as the kernel wants them; see `layerbounds.kernels.tiles.descent.improve`."""

    groups: Any

    @classmethod
    def of(cls, allowed: TiledSupport) -> Self | None:
        """None where groups have too many masks, or rows too many inputs."""
        rows, n = allowed.original.shape
        structure, limits = allowed.structure, allowed.limits
        if rows * n * n > MOST_NUMBERS:
            return None
        inputs = [np.flatnonzero(structure.group == g) for g in range(len(structure.capacity))]
        members = np.zeros((len(inputs), max(map(len, inputs))), dtype=np.int64)
        codes, unions, begin, union_begin, most = [], [], [0], [0], []
        for g, (own, capacity) in enumerate(zip(inputs, structure.capacity.tolist(), strict=True)):
            members[g, : len(own)] = own
            found = _codes(len(own), capacity)
            used = int(limits.columns.capacity[limits.columns.group[own[0]]])
            most.append(int(limits.most[own[0]]))
            if found is None:
                return None
            if used < len(own):
                choices = column_choices(len(own), used)
                if choices is None or len(choices) * len(found) * rows > MOST_WORK:
                    return None
                unions += np.left_shift(1, choices).sum(axis=1).tolist()
            elif most[-1] >= rows:
                unions.append(2 ** len(own) - 1)
            elif (most[-1] + 1.0) ** len(own) * len(found) * rows > MOST_WORK:
                return None
            codes += found
            begin.append(len(codes))
            union_begin.append(len(unions))
        lists = ([len(own) for own in inputs], begin, codes, most, union_begin, unions)
        return cls((members, *(np.array(part, dtype=np.int64) for part in lists)))

    def improve(self, task: Task[TiledSupport], chosen: Bool, kicks: int, state: Any) -> Bool:
        """Better masks, or the same.

        Parameters
        ----------
        task : Task
        chosen : ndarray of bool, shape (rows, n)
        kicks : int
        state : ndarray of uint64, shape (1,)
            Of the random generator.
        """
        result = chosen.copy()
        targets, b = np.ascontiguousarray(task.targets), np.ascontiguousarray(task.targets @ task.gram)
        floor = 1e-12 * float(np.sum(b * targets))
        gram = np.ascontiguousarray(task.gram)
        if task.allowed.refit:
            value = descent.improve(gram, b, np.zeros(b.shape), result, self.groups, floor, kicks, state)
        else:
            original = np.ascontiguousarray(task.allowed.original)
            value = mask_descent.improve(gram, targets, original, result, self.groups, floor, kicks, state)
        return result if np.isfinite(value) else chosen


def _codes(size: int, capacity: int) -> list[int] | None:
    """Bits of the inputs that a row may keep of a group; None where they are too many."""
    count, term = 1.0, 1.0
    for k in range(capacity):
        term *= (size - k) / (k + 1.0)
        count += term
    if size > 62 or count > MOST_CODES:
        return None
    return [sum(1 << i for i in c) for k in range(capacity + 1) for c in combinations(range(size), k)]
