"""What the channels of a layer share in the search of free codebooks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.free_codebook.relaxation import next_diagonal
from layerbounds.kernels.successive import factors_in_order, rounding_order

#: Fraction of the mean diagonal added for rounding in the order of GPTQ, as there.
DAMP = 0.01


@dataclass(frozen=True, eq=False)
class Preparation:
    """Of one Gram matrix.

    Attributes
    ----------
    d : ndarray of shape (n,)
        A proven minorant, equally large for all weights as far as possible; zeros where none is proven.
    order : ndarray of int64, shape (n,)
        In which weights are rounded, from the last to the first.
    pivots : ndarray of shape (n,)
    shifts : ndarray of shape (n, n)
        See `layerbounds.kernels.successive.factorize`.
    """

    d: Float
    order: Int
    pivots: Float
    shifts: Float


def prepare_group(gram: Float) -> Preparation:
    """The common part of all channels with a Gram matrix of at least one live input."""
    gram = np.ascontiguousarray(gram)
    order = rounding_order(gram, True)
    pivots, shifts = factors_in_order(gram, order, DAMP)
    return Preparation(next_diagonal(gram, np.ones(len(gram)), None, None), order, pivots, shifts)
