"""Dual points as tensors: a proven minorant for each, as certification proves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant
from layerbounds.bounds.pruning.dual import certified_block_minorant
from layerbounds.bounds.quantization.block_dual import proven_block_minorant
from layerbounds.bounds.quantization.form_terms import proven_weights
from layerbounds.bounds.quantization.rows import proven_diagonal
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.free_codebook import FreeLevels
from layerbounds.problems.levels import Levels
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.support import Support
from layerbounds.proofs import BlockDual, DualPoint, FormTerms

#: Tensors by the ends of their names; none where nothing is proven.
Parts = dict[str, NDArray[Any]]


def _diagonal(gram: Float, allowed: Levels | LevelsOnSupport, dual: DualPoint) -> Parts:
    """A proven diagonal and its shift."""
    if dual.split is not None:
        return _with_forms(gram, allowed, dual)
    return _shifted("d", proven_diagonal(gram, np.asarray(dual.d, dtype=np.float64)))


def _plain_diagonal(gram: Float, allowed: Support, dual: DualPoint) -> Parts:
    """A diagonal below the Gram matrix itself, as weights may take any value."""
    return {"d": certified_minorant(gram, np.asarray(dual.d, dtype=np.float64))}


def _nonnegative_diagonal(gram: Float, allowed: FreeLevels, dual: DualPoint) -> Parts:
    """The same, where negative entries count as zero."""
    return {"d": certified_minorant(gram, np.maximum(np.asarray(dual.d, dtype=np.float64), 0.0))}


def _with_forms(gram: Float, allowed: Any, dual: DualPoint) -> Parts:
    """A proven diagonal with integer forms, and their shift."""
    split = dual.split
    assert split is not None
    found = proven_weights(gram, _columns(allowed, split), np.asarray(dual.d, dtype=np.float64), split.weights)
    if found is None:
        return {}
    d, weights, shift = found
    return {**_shifted("d", (d, shift)), **_forms(split, weights)}


def _columns(allowed: Any, split: FormTerms) -> Float:
    """The forms divided by the scales."""
    return np.asarray(split.forms.astype(np.longdouble) / allowed.scale[:, None], dtype=np.float64)


def _forms(split: FormTerms, weights: Float) -> Parts:
    """Forms with proven weights."""
    small = np.abs(split.forms).max(initial=0.0) <= np.iinfo(np.int8).max
    return {"forms": np.asarray(split.forms, dtype=np.int8 if small else np.float64), "weights": weights}


def _blocks(gram: Float, allowed: AllowedSet, dual: BlockDual) -> Parts:
    """A proven block-diagonal matrix, block by block, and its shift; with integer forms where there are any."""
    block, own, matrix = _of_blocks(dual)
    matrix, forms = np.where(own, 0.5 * matrix + 0.5 * matrix.T, 0.0), {}
    if dual.split is None:
        proven = proven_block_minorant(gram, matrix)
    else:
        found = proven_weights(gram, _columns(allowed, dual.split), matrix, dual.split.weights)
        proven = None if found is None else (found[0], found[2])
        forms = {} if found is None else _forms(dual.split, found[1])
    if proven is None:
        return {}
    return {**_shifted("values", (entries(proven[0], block), proven[1])), "block": block, **forms}


def _blocks_of_support(gram: Float, allowed: Support, dual: BlockDual) -> Parts:
    """The same below the Gram matrix itself."""
    block, own, matrix = _of_blocks(dual)
    proven = certified_block_minorant(gram, np.where(own, 0.5 * (matrix + matrix.T), 0.0))
    return {"values": entries(proven, block), "block": block}


def _of_blocks(dual: BlockDual) -> tuple[Int, NDArray[np.bool_], Float]:
    block = np.asarray(dual.block, dtype=np.int64)
    return block, block[:, None] == block[None, :], np.asarray(dual.matrix, dtype=np.float64)


def entries(matrix: Float, block: Int) -> Float:
    """The entries of the blocks one after the other."""
    members = [np.flatnonzero(block == b) for b in np.unique(block)]
    return np.concatenate([np.zeros(0), *(matrix[np.ix_(m, m)].ravel() for m in members)])


def of_entries(values: Float, block: Int) -> Float:
    """The matrix of such entries."""
    matrix, first = np.zeros((len(block), len(block))), 0
    for b in np.unique(block):
        m = np.flatnonzero(block == b)
        matrix[np.ix_(m, m)] = values[first : first + len(m) ** 2].reshape(len(m), len(m))
        first += len(m) ** 2
    return matrix


def _shifted(name: str, proven: tuple[Float, Float] | None) -> Parts:
    """A matrix that is proven with a shift, which most do not need."""
    if proven is None:
        return {}
    return {name: proven[0], **({"shift": proven[1]} if np.any(proven[1]) else {})}


#: From a Gram matrix, an allowed set and a dual point to the parts of its minorant, proven as certification does.
MINORANTS: dict[tuple[type, type], Callable[[Float, Any, Any], Parts]] = {
    (Levels, DualPoint): _diagonal,
    (Levels, BlockDual): _blocks,
    (LevelsOnSupport, DualPoint): _diagonal,
    (LevelsOnSupport, BlockDual): _blocks,
    (Support, DualPoint): _plain_diagonal,
    (FreeLevels, DualPoint): _nonnegative_diagonal,
    (Support, BlockDual): _blocks_of_support,
}
