"""Dual points of the root: what certification can derive for a channel that a foreign solver worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.quantization.block_relaxation import refine_blocks
from layerbounds.bounds.quantization.relaxation import refine
from layerbounds.bounds.quantization.split_relaxation import refine_split
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, DualPoint, FormTerms
from layerbounds.search.quantization.channel_search import CLOSE_AT_ONCE, FEWEST_ROUNDS, block_rounds
from layerbounds.search.quantization.preparation import regularizations
from layerbounds.search.quantization.split_forms import find_split

#: Refits of the weights.
REFITS = 5


def quantization_dual(task: Task[Levels], seconds: float) -> DualPoint | BlockDual | None:
    """A dual point of the relaxation at the root, without any search (docs/bounds.md, docs/block-relaxation.md).

    Parameters
    ----------
    task : Task
        Of at least one input.
    seconds : float
        Time for improving the dual point; the first one is always finished.
    """
    control = Control(seconds, 0.0, 0, 0, 1, threading.Event())
    scale, first = task.allowed.scale, task.allowed.codes[0, 0] if task.allowed.uniform else 0.0
    gram = task.gram * np.outer(scale, scale)
    unit = float(np.mean(np.diag(gram)))
    gram = np.ascontiguousarray(gram / unit)
    n = len(scale)
    levels = np.ascontiguousarray((task.allowed.codes - first).T)
    origin = task.target / scale + task.allowed.zero_point - first
    count = task.allowed.count
    # Certification charges what a singular matrix is shifted by, and proves the weights anew.
    factorized = ((m, cholesky(m)) for m in (gram + np.diag(s) for s in regularizations(gram)))
    shifted, factor = next((pair for pair in factorized if pair[1] is not None), (gram, None))
    if factor is None:
        return None

    def later_than(share: float) -> Callable[[], bool]:
        return lambda: control.remaining() <= (1.0 - share) * control.time_limit

    start = np.clip(origin, levels[0], levels[-1])
    distance = np.abs(levels - start).min(axis=0) ** 2
    diagonal = maximize_minorant(shifted, distance + 1 / 12, relative_gap=0.3, stop=later_than(0.5))
    large = n > CLOSE_AT_ONCE
    splits = task.allowed.uniform and len(levels) > 2 and not large
    refits = 0 if splits or large else REFITS
    found = refine(shifted, origin, levels, count, diagonal, start, refits, later_than(1.0))
    z, d, terms = found.z, found.d, None
    if large:
        rounds = max(block_rounds(n, control.remaining()), FEWEST_ROUNDS)
        blocks = refine_blocks(shifted, origin, levels, count, diagonal, start, rounds=rounds, stop=later_than(1.0))
        if blocks is not None and blocks.value > found.value:
            real = scale * (blocks.z + first - task.allowed.zero_point)
            return BlockDual(real, blocks.block, blocks.matrix * unit / np.outer(scale, scale))
    split = find_split(shifted, diagonal, later_than(0.5)) if splits else None
    if split is not None:
        better = refine_split(shifted, symmetric_inverse(factor), origin, levels, split, z, REFITS, later_than(1.0))
        if better.value > found.value:
            z, d = better.z, better.split.units
            terms = FormTerms(better.split.forms, better.split.weights * unit, better.multipliers * unit)
    return DualPoint(scale * (z + first - task.allowed.zero_point), d * unit / scale**2, terms)
