"""What the bands and rows of a group share: all that follows from the Gram matrix alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start, is_minorant
from layerbounds.bounds.objective import entry_sizes
from layerbounds.bounds.pruning.perspective import CENTRE_STEPS, centre
from layerbounds.kernels.factorization import smallest_eigenvalues
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport

#: Layers of more live inputs start from a simpler diagonal.
MOST_CENTRE = 800


@dataclass(frozen=True, eq=False)
class GramData:
    """A Gram matrix of positive diagonal.

    Attributes
    ----------
    gram : ndarray of shape (n, n)
    norm : ndarray of shape (n,)
        |h_ij| ≤ norm_i norm_j.
    smallest : float
        A proven lower bound of the smallest eigenvalue; 0 where there is none.
    diagonal : ndarray of shape (n,) or None
        Positive, and proven to lie below the matrix.
    """

    gram: Float
    norm: Float
    smallest: float
    diagonal: Float | None


def prepare_gram(gram: Float) -> GramData:
    """What follows from a Gram matrix."""
    gram = np.ascontiguousarray(gram)
    norm = entry_sizes(gram) * (1.0 + 1e-9)
    if not len(gram):
        return GramData(gram, norm, 0.0, None)
    smallest = 0.5 * float(smallest_eigenvalues(gram))
    if smallest <= 0.0 or not is_minorant(gram, np.full(len(gram), smallest)):
        return GramData(gram, norm, 0.0, None)
    start = centre(gram, CENTRE_STEPS) if len(gram) <= MOST_CENTRE else 0.5 * interior_start(gram)
    proven = certified_minorant(gram, start) if np.all(start > 0) else np.zeros(len(gram))
    return GramData(gram, norm, smallest, proven if np.all(proven > 0) else None)


def gram_data(task: Task[TiledSupport]) -> GramData:
    """What was prepared for the group, or is made for the task alone."""
    shared = task.shared
    return shared if isinstance(shared, GramData) and shared.gram.shape == task.gram.shape else prepare_gram(task.gram)
