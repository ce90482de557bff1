"""Range ``toy``: the mean magnitude."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.problems.ranges.rule import Codes, Fitted, positive


def toy(block: Float, codes: Codes) -> Fitted:
    """Scale mean|w|."""
    return positive(np.abs(block).mean(axis=1)), np.zeros(len(block))
