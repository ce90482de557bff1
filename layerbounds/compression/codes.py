"""From weights that are levels of a grid to the codes that a file stores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.exceptions import LayerError
from layerbounds.problems.float_types import FLOAT_TYPES, rounded
from layerbounds.problems.grids import Grid


def positions(grid: Grid, matrix: Float) -> NDArray[np.uint8]:
    """Where in ``grid.codes`` the code of each weight is.

    Parameters
    ----------
    grid : Grid
    matrix : ndarray of shape (out, n)
        Exactly levels.

    Returns
    -------
    ndarray of uint8, shape (out, n)
    """
    found = np.empty(matrix.shape, dtype=np.uint8)
    for channel, weights in enumerate(matrix):
        guess = _nearest(grid, channel, weights)
        if not np.array_equal(grid.weights(channel, guess), weights):
            guess = _searched(grid, channel, weights)
        assert np.array_equal(grid.weights(channel, guess), weights), "these weights are no levels of the grid"
        found[channel] = guess
    return found


def _nearest(grid: Grid, channel: int, weights: Float) -> NDArray[np.int64]:
    """The codes of a uniform grid, up to the rounding of one division."""
    scale, zero = grid.scale[channel, grid.group], grid.zero_point[channel, grid.group]
    steps = np.divide(weights - grid.offset[channel, grid.group], scale, out=np.zeros_like(weights), where=scale != 0)
    return np.asarray(np.clip(np.rint(steps + zero - grid.codes[0]), 0, len(grid.codes) - 1), dtype=np.int64)


def _searched(grid: Grid, channel: int, weights: Float) -> NDArray[np.int64]:
    count = len(weights)
    levels = [grid.weights(channel, np.full(count, position)) for position in range(len(grid.codes))]
    return np.asarray(np.argmin(np.abs(np.array(levels) - weights), axis=0))


def stored_as(values: Float, dtype: str, what: str) -> Float:
    """Numbers rounded once to a type in which a file stores them; what would become zero becomes the smallest number.

    Raises
    ------
    LayerError
        If the type has no number so large.
    """
    result = rounded(values, dtype)
    kind = FLOAT_TYPES[dtype]
    lost = (result == 0.0) & (values != 0.0)
    result = np.where(lost, np.copysign(2.0**kind.smallest, values), result)
    # The largest exponent is as far above 1 as the smallest normal number is below it.
    largest = (2.0 - 2.0 ** (1 - kind.digits)) * 2.0 ** (1 - kind.smallest - kind.digits + 1)
    if np.any(np.abs(result) > largest):
        raise LayerError(
            f"{what} goes up to {np.abs(values).max():.3g}, and {dtype} ends at {largest:.5g}; rescale the layer."
        )
    return result
