"""Thanos."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.exceptions import InputError
from layerbounds.kernels.successive import damped
from layerbounds.methods.base import check_damp
from layerbounds.methods.pruning import PruningView, damped_inverse, finish_pass, single_inputs


def thanos(view: PruningView, damp: float = 0.01, block_size: int = 128, refit: bool = False) -> Float:
    """Go through blocks of inputs once; drop all weights of a block at the same time, at the least cost for the rest.

    Ilin & Richtárik, "Thanos: A Block-wise Pruning Algorithm for Efficient Large Language Model Compression" (arXiv
    2504.05346), for one output channel: before each block the weights of least |w_i|·‖X_i‖ among all that are left say
    which ones of the block go (the residual mask), and one linear system makes up for all of them with the weights of
    this block and the later ones. Patterns of several groups choose within each group; a block then holds whole groups.

    Parameters
    ----------
    view : PruningView
    damp : float
        Fraction of the mean diagonal added to the Gram matrix.
    block_size : int
        Inputs of a block.
    refit : bool
        Re-optimise the kept weights at the end; the paper does not.
    """
    single_inputs(view, "thanos")
    check_damp(damp)
    if block_size < 1:
        raise InputError(f"block_size is {block_size}; pass a number of inputs ≥ 1.")
    norms = np.sqrt(np.diag(view.gram))
    # Damped once for the whole matrix, as in the paper; blocks see the part that is left.
    gram = damped(view.gram, damp)
    weights = view.target.copy()
    kept = np.ones(len(weights), dtype=bool)
    for left, dropped in _blocks(view, weights, norms, int(block_size)):
        inverse = damped_inverse(np.ascontiguousarray(gram[np.ix_(left, left)]), 0.0)
        at = np.flatnonzero(np.isin(left, dropped))
        if len(at):
            force = np.linalg.lstsq(inverse[np.ix_(at, at)], weights[left[at]], rcond=None)[0]
            weights[left] -= inverse[:, at] @ force
        weights[dropped] = 0.0
        kept[dropped] = False
    return finish_pass(view, kept, weights, refit)


def _blocks(view: PruningView, weights: Float, norms: Float, size: int) -> Iterator[tuple[Int, Int]]:
    """For one block after the other the inputs from it on and those of it to drop; ``weights`` change in between."""
    structure, n = view.structure, len(weights)
    group = structure.group[structure.unit]
    if len(structure.capacity) == 1:
        excess = n - int(structure.capacity[0])
        for begin in range(0, n, size):
            left = np.arange(begin, n)
            worst = left[_smallest(np.abs(weights[left]) * norms[left], excess)]
            dropped = worst[worst < begin + size]
            excess -= len(dropped)
            yield left, dropped
        return
    # Groups in the order of their first inputs, each without a gap.
    first = np.full(len(structure.capacity), n)
    np.minimum.at(first, group, np.arange(n))
    order = np.lexsort((np.arange(n), first[group]))
    begin = 0
    while begin < n:
        end = begin
        while end < n and (end - begin < size or group[order[end]] == group[order[end - 1]]):
            end += 1
        block, score = order[begin:end], np.abs(weights) * norms
        chosen: Bool = np.zeros(n, dtype=bool)
        for g in np.unique(group[block]):
            members = block[group[block] == g]
            chosen[members[_smallest(score[members], len(members) - int(structure.capacity[g]))]] = True
        yield order[begin:], np.flatnonzero(chosen)
        begin = end


def _smallest(score: Float, count: int) -> Int:
    """Positions of the smallest scores; of equal ones the later go first, as elsewhere."""
    return np.lexsort((-np.arange(len(score)), score))[: max(count, 0)]
