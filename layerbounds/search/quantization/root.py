"""Dual points of the root: what certification can derive for a channel that a foreign solver worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.quantization.block_forms import refine_block_forms
from layerbounds.bounds.quantization.block_relaxation import SIZE, BlockRelaxation, refine_blocks
from layerbounds.bounds.quantization.relaxation import refine
from layerbounds.bounds.quantization.split_relaxation import SplitWeights, refine_split
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BlockDual, Control, DualPoint, FormTerms
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
    scale, first_code = task.allowed.scale, task.allowed.codes[0, 0] if task.allowed.uniform else 0.0
    gram = task.gram * np.outer(scale, scale)
    unit = float(np.mean(np.diag(gram)))
    gram = np.ascontiguousarray(gram / unit)
    n = len(scale)
    levels = np.ascontiguousarray((task.allowed.codes - first_code).T)
    origin = task.target / scale + task.allowed.zero_point - first_code
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
    split = find_split(shifted, diagonal, later_than(0.5)) if forms else None
    covariance = symmetric_inverse(factor)
    members = make_clusters(shifted, SIZE, np.zeros(n, dtype=np.int64), np.arange(n)) if large else None
    blocks: BlockRelaxation | None = None
    if members is not None and forms and both_rounds(n, control.remaining()) >= FEWEST_BOTH_ROUNDS:
        began = control.elapsed()
        first = SplitWeights(np.zeros((n, 0)), diagonal, np.zeros(0)) if split is None else split
        blocks = refine_block_forms(
            shifted, covariance, origin, levels, count, first, found.z, members,
            spent=lambda: (control.elapsed() - began) / max(control.time_limit - began, 1e-9),
        )  # fmt: skip
    if members is not None and (blocks is None or blocks.value <= found.value):
        rounds = max(block_rounds(n, control.remaining()), FEWEST_ROUNDS)
        blocks = refine_blocks(
            shifted, origin, levels, count, diagonal, start, members, rounds=rounds, stop=later_than(1.0)
        )
    z, d, terms = found.z, found.d, None
    if blocks is not None and blocks.value > found.value:
        forms_of = blocks.split
        if forms_of is not None:
            terms = FormTerms(forms_of.forms, forms_of.weights * unit, forms_of.multipliers * unit)
        real = scale * (blocks.z + first_code - task.allowed.zero_point)
        return BlockDual(real, blocks.block, blocks.matrix * unit / np.outer(scale, scale), terms)
    if split is not None and not large:
        better = refine_split(shifted, covariance, origin, levels, split, z, REFITS, later_than(1.0))
        if better.value > found.value:
            z, d = better.z, better.split.units
            terms = FormTerms(better.split.forms, better.split.weights * unit, better.multipliers * unit)
    return DualPoint(scale * (z + first_code - task.allowed.zero_point), d * unit / scale**2, terms)
