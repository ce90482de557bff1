"""Dual points of the root: what certification can derive for a channel that a foreign solver worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.quantization.block_forms import refine_block_forms
from layerbounds.bounds.quantization.block_relaxation import SIZE, BlockRelaxation, refine_blocks
from layerbounds.bounds.quantization.relaxation import refine
from layerbounds.bounds.quantization.split_relaxation import SplitWeights, refine_split
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, DualPoint
from layerbounds.search.quantization.channel_search import (
    CLOSE_AT_ONCE,
    FEWEST_BOTH_ROUNDS,
    FEWEST_ROUNDS,
    block_rounds,
    both_rounds,
)
from layerbounds.search.quantization.preparation import regularizations
from layerbounds.search.quantization.split_forms import LARGEST, find_split

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
    forms = task.allowed.uniform and len(levels) > 2 and n <= LARGEST
    found = refine(shifted, origin, levels, count, diagonal, start, 0 if forms or large else REFITS, later_than(1.0))

    def real(z: Float) -> Float:
        return np.asarray(scale * (z + first - task.allowed.zero_point))

    problem, covariance = (shifted, origin, levels, count), symmetric_inverse(factor)
    if large:
        blocks = _relax_blocks(problem, covariance, diagonal, start, found.z, forms, control)
        if blocks is not None and blocks.value > found.value:
            terms = None if blocks.split is None else blocks.split.scaled(unit)
            return BlockDual(real(blocks.z), blocks.block, blocks.matrix * unit / np.outer(scale, scale), terms)
    split = find_split(shifted, diagonal, later_than(0.5)) if forms and not large else None
    if split is not None:
        better = refine_split(shifted, covariance, origin, levels, split, found.z, REFITS, later_than(1.0))
        if better.value > found.value:
            return DualPoint(real(better.z), better.split.units * unit / scale**2, better.form_terms.scaled(unit))
    return DualPoint(real(found.z), found.d * unit / scale**2)


def _relax_blocks(
    problem: tuple[Float, Float, Float, Int],
    covariance: Float,
    diagonal: Float,
    start: Float,
    point: Float,
    forms: bool,
    control: Control,
) -> BlockRelaxation | None:
    """Blocks with integer forms where these are wanted and there is time, else blocks alone."""
    gram, origin, levels, count = problem
    n, began = len(origin), control.elapsed()
    members = make_clusters(gram, SIZE, np.zeros(n, dtype=np.int64), np.arange(n))
    if members is None:
        return None

    def spent() -> float:
        return (control.elapsed() - began) / max(control.time_limit - began, 1e-9)

    found: BlockRelaxation | None = None
    if forms and both_rounds(n, control.remaining()) >= FEWEST_BOTH_ROUNDS:
        split = find_split(gram, diagonal, lambda: spent() > 0.5)
        if split is None:
            split = SplitWeights.without_forms(diagonal)
        found = refine_block_forms(gram, covariance, origin, levels, count, split, point, members, spent=spent)
    rounds = max(block_rounds(n, control.remaining()), FEWEST_ROUNDS)
    if found is None or found.value <= 0.0:
        found = refine_blocks(
            gram, origin, levels, count, diagonal, start, members, rounds, lambda: control.remaining() <= 0
        )
    return found
