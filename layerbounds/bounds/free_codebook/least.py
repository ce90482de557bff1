"""Certified minimum over free codebooks (docs/free-codebooks.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.free_codebook.dual import codebook_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.free_codebook import FreeLevels
from layerbounds.proofs import DualPoint


def diagonal(gram: Float, target: Float, allowed: FreeLevels, dual: DualPoint) -> float:
    """From a diagonal; levels that are not known have no integer forms."""
    if dual.split is not None:
        raise CertificationError("the backend returned an invalid dual point: free levels have no integer forms.")
    z, d = np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64)
    return codebook_bound(gram, target, allowed.count, z, d)


LEAST = {(FreeLevels, DualPoint): diagonal}
