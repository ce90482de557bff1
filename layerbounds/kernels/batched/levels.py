"""Levels ``scale · (codes − zero_point)`` in compiled loops: the nearest one, and the distances to its neighbours."""

from __future__ import annotations

from layerbounds.kernels.compilation import kernel


@kernel(force_inline=True, nested=True)
def nearest_code(position, codes, uniform):
    """Index of the code nearest to a position in units of the codes; ties go to the lower one where it is cheap."""
    last = codes.shape[0] - 1
    if not position > codes[0]:
        return 0
    if position >= codes[last]:
        return last
    if uniform:
        return min(last, int(position - codes[0] + 0.5))
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        if codes[middle] <= position:
            low = middle
        else:
            high = middle
    return low if position - codes[low] <= codes[high] - position else high


@kernel()
def round_nearest(points, codes, scale, zero, group, uniform, choice):
    """The nearest levels of all weights.

    Parameters
    ----------
    points : (rows, n) float32 or float64
    codes : (levels,) float64
        Sorted.
    scale, zero : (rows, groups) float64
    group : (n,) int64
        Column of ``scale`` of each input.
    uniform : bool
        Whether the codes are consecutive numbers.
    choice : (rows, n) int16
        Filled: indices of codes.
    """
    for r in range(points.shape[0]):
        for i in range(points.shape[1]):
            k = group[i]
            choice[r, i] = nearest_code(points[r, i] / scale[r, k] + zero[r, k], codes, uniform)


@kernel()
def deviations(choice, targets, codes, scale, zero, group, result):
    """Levels minus targets, shape (rows, n), in the type of ``result``."""
    for r in range(choice.shape[0]):
        for i in range(choice.shape[1]):
            k = group[i]
            result[r, i] = scale[r, k] * (codes[choice[r, i]] - zero[r, k]) - targets[r, i]
