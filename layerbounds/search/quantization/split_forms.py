"""Split cuts of a layer: forms and weights that serve every channel, found once (docs/bounds.md)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.cuts import certified_weights, generate_cuts, strongest
from layerbounds.bounds.quantization.split_relaxation import SplitWeights
from layerbounds.search.quantization.preparation import Preparation
from layerbounds.search.shared_results import once

#: Above this size blocks of inputs bound the root better in the same time.
LARGEST = 400


def rounds_and_share(n: int) -> tuple[int, float]:
    """Rounds of separation, each adding up to n forms, and the number of forms kept as a multiple of n."""
    return (6 if n <= 160 else 2), 1.5


@once
def prepare_split(prep: Preparation) -> SplitWeights | None:
    """Forms for a preparation, computed once; None where none are worth having."""
    return find_split(prep.gram, prep.minorants[prep.size])


def find_split(gram: Float, units: Float, stop: Callable[[], bool] | None = None) -> SplitWeights | None:
    """Forms and proven weights for a Gram matrix in grid units.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    units : ndarray of shape (n,)
        A diagonal minorant to start from.
    stop : callable, optional
        Asked all the time whether to end with what there is.
    """
    n = len(gram)
    if not 2 <= n <= LARGEST or not np.any(units):
        return None
    rounds, share = rounds_and_share(n)
    found = generate_cuts(gram, units, rounds, stop)
    if found is None:
        return None
    cuts, found_units, found_weights = strongest(*found, int(share * n))
    return SplitWeights(cuts.forms, *certified_weights(gram, cuts.forms, found_units, found_weights))
