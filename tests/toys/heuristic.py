"""Round down: the level below each weight."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.methods.base import ChannelView


def toy(view: ChannelView) -> Float:
    """The largest level that is not above the weight, or the lowest one."""
    below = np.sum(view.levels <= view.target[:, None], axis=1)
    return np.asarray(view.levels[np.arange(len(below)), np.maximum(below - 1, 0)])
