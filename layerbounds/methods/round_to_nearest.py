"""Round-to-nearest."""

from __future__ import annotations

from layerbounds.arrays import Float
from layerbounds.methods.base import ChannelView
from layerbounds.problems.levels import nearest_levels


def round_to_nearest(view: ChannelView) -> Float:
    """Round each weight to its nearest level, whatever the inputs are."""
    return nearest_levels(view.levels, view.target)
