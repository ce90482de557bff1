"""The warning about layers that have fewer positions than inputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from layerbounds.capturing.warning import CaptureWarning

#: Positions for each input that are a good beginning; with fewer a target for compressed inputs follows the noise of
#: the calibration data.
FEW_POSITIONS = 4


def warn_of_few_positions(few: Mapping[str, int], inputs: Mapping[str, int]) -> None:
    """Warn once of all layers whose Gram matrix must be singular.

    Parameters
    ----------
    few : mapping of str to int
        Positions of the layers that have fewer than inputs; without any there is no warning.
    inputs : mapping of str to int
        Inputs of the layers.
    """
    if not few:
        return
    worst = max(few, key=lambda name: inputs[name] / few[name])
    least, better = (-(-times * inputs[worst] // few[worst]) for times in (1, FEW_POSITIONS))
    others = f" ({len(few) - 1} other layer{'s have' if len(few) > 2 else ' has'} too few, too)" if len(few) > 1 else ""
    warnings.warn(
        f"layer {worst!r} has {few[worst]} positions for {inputs[worst]} inputs{others}: its Gram matrix is "
        "singular, so that changes of the weights in directions which the calibration data never show cost "
        f"nothing, and errors and bounds are too low for other data; pass at least {least} times as much data, "
        f"better {better} times",
        CaptureWarning,
        stacklevel=4,
    )
