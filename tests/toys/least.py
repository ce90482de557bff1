"""Certified minimum over deletions: separable for a diagonal."""

from __future__ import annotations

import numpy as np
from layerbounds.problems.toy import Deletions

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import proven_minorant
from layerbounds.proofs import DualPoint


def diagonal(gram: Float, target: Float, allowed: Deletions, dual: DualPoint) -> float:
    """Every weight pays for staying; at most so many may save by going."""
    proven = proven_minorant(gram, dual.d)
    if proven is None or np.any(proven[1] != 0):
        return 0.0
    d, z = proven[0], dual.z
    h = gram @ (z - target)
    stay = 2 * h * (allowed.original - z) + d * (allowed.original - z) ** 2
    go = -2 * h * z + d * z**2
    saved = np.sort(np.maximum(stay - go, 0.0))[::-1][: allowed.most].sum()
    value = (z - target) @ h + stay.sum() - saved
    size = np.abs(z - target) @ np.abs(gram) @ np.abs(z - target) + np.abs(stay).sum() + np.abs(go).sum()
    return float(value - 1e-13 * size)


LEAST = {(Deletions, DualPoint): diagonal}
