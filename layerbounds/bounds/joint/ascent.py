"""Improvement of the block-diagonal minorant of a node (docs/joint-blocks.md)."""

from __future__ import annotations

import itertools

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.joint.views import AllowedView
from layerbounds.bounds.minorants.blocks import BlockMinorant, improve_blocks
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.kernels.factorization import UNIT, cholesky, symmetric_inverse
from layerbounds.kernels.pruning.cluster_minorant import ascend

#: Inputs from which blocks are improved with BLAS.
LARGE = 800
#: Factors tried where a minorant is too close to the boundary of the cone for its proof.
SHRINKS = (1.0, 1.0 - 1e-9, 1.0 - 1e-6, 0.999, 0.97, 0.8)
#: Floor of the spreads relative to their mean.
FLOOR = 0.03


def improve(view: AllowedView, spread: Float, mu: float, side: float = 0.05) -> bool:
    """One sweep of block coordinate ascent on B; False, and nothing changed, where it fails or cannot be proven."""
    size = len(view.inputs)
    mean = float(np.einsum("gii->", spread)) / size
    lifted = spread + (FLOOR * mean + np.finfo(np.float64).tiny) * np.eye(spread.shape[1])
    if size >= LARGE and 4 * len(view.size) <= size:
        return _improve_large(view, lifted, mu)
    factor = cholesky(view.rest() + np.diag(view.shift[view.inputs]))
    if factor is None:
        return False
    inverse = np.ascontiguousarray(symmetric_inverse(factor))
    block = view.block.copy()
    place = np.concatenate([np.arange(s) for s in view.size]) if size else np.zeros(0, dtype=np.int64)
    if not ascend(
        inverse, np.arange(size), block, view.first, np.arange(size), place, view.size, lifted, mu, side
    ):  # fmt: skip
        return False
    return adopt(view, block)


def _improve_large(view: AllowedView, lifted: Float, mu: float) -> bool:
    gram = view.gram.take(view.inputs, 0).take(view.inputs, 1) + np.diag(view.shift[view.inputs])
    members = [np.arange(a, b) for a, b in itertools.pairwise(view.first)]
    matrix = np.zeros_like(gram)
    matrix[view.at] = view.block[view.pair]
    blocks = [b[:m, :m] for b, m in zip(view.block, view.size, strict=True)]
    gradients = [a[:m, :m] for a, m in zip(lifted, view.size, strict=True)]
    better = improve_blocks(gram, members, BlockMinorant(matrix, blocks, blocks, np.zeros(len(blocks))), gradients, mu)
    if better is None:
        return False
    block = np.zeros_like(view.block)
    block[view.pair] = better.matrix[view.at]
    return adopt(view, block)


def adopt(view: AllowedView, block: Float) -> bool:
    """Take over other blocks, lowered until they are proven."""
    block = np.where(view.pair, 0.5 * (block + block.transpose(0, 2, 1)), 0.0)
    gram = view.gram.take(view.inputs, 0).take(view.inputs, 1)
    gram[np.diag_indices(len(gram))] += view.shift[view.inputs] * (1.0 - 2 * UNIT)
    for shrink in SHRINKS:
        matrix = gram.copy()
        matrix[view.at] -= shrink * block[view.pair]
        if is_positive_semidefinite(matrix):
            break
    else:
        return False
    before, old = view.block, view.factor
    view.block = np.ascontiguousarray(shrink * block)
    if view.prepare():
        return True
    view.block, view.factor = before, old
    return False
