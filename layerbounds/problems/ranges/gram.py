"""Range ``gram``: scales that good rounding makes the most of, found by rounding and re-scaling in turn."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import Grid
from layerbounds.problems.ranges.alternation import Alternation, Channel, Found, Inputs
from layerbounds.problems.ranges.piso import piso
from layerbounds.problems.ranges.rule import Codes, Fitted

#: Factors of the scales of "mse" that are tried.
FACTORS = 2.0 ** (np.arange(-20, 21) / 20.0)
#: For scales that have to stay powers of two.
POWERS_OF_TWO = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
#: Factors of the best scales found, and how often they are tried.
NEARBY, _NEARBY_ROUNDS = 1.0 + 0.005 * np.delete(np.arange(-8, 9), 8), 3
#: Partial assignments kept when a factor is tried, and when it is followed up.
_GLANCE, _WIDTH = 4, 32
#: Products of inputs and width beyond which the width is smaller.
_WORK = 4096
#: Factors that are followed up, how far scales must lie apart for that, and rounds of rounding and re-scaling.
_STARTS, _APART, _ROUNDS = 4, 0.01, 4
#: Best ends that are improved by enumeration over subsets, how often, and the number of subsets.
_ENDS, _REPEATS, _SUBSETS = 3, 2, 64


def gram(layer: Layer, start: Grid, codes: Codes, tensor: bool) -> Fitted:
    """The scales of the least output error found for any scales, by rounding and re-scaling in turn.

    The package's own. Starts are the scales of "mse" and of "piso" and the best 4 of 41 factors between ½ and 2 of the
    former, judged by a narrow beam search. From each start a beam search with descent rounds, the best scales
    s = wᵀHq/qᵀHq of its codes q replace the start, and so on; the best end is tried again at 16 scales within 4 % of
    it. Enumeration over subsets of the weights, re-scaled at each gain, improves the best of all. Zero points stay
    those of "mse".

    The weights found are on the fitted grid, and their error is at most that of the same beam search, descent and
    enumeration at the scales of "mse" (for one scale: the sum over the channels).
    """
    scale = start.scale.copy()
    other = start.scale if codes.powers_of_two else piso(layer, start, codes, tensor)[0]
    everything: list[Channel] = []
    for g, members in enumerate(layer.group_rows()):
        live = np.flatnonzero(layer.live(g))
        if not len(live):
            continue
        inputs = Inputs(layer.gram[g][np.ix_(live, live)])
        # Scales of groups without a live input are left out.
        used, group = np.unique(start.group[live], return_inverse=True)
        for c in range(layer.out_features)[members]:
            zero = start.zero_point[c, used][group]
            target = np.ascontiguousarray(layer.target[c][live])
            channel = Channel(inputs, target, codes.values[None, :] - zero[:, None], group.astype(np.int64))
            if tensor:
                everything.append(channel)
            elif np.any(target):
                scale[c, used] = _search([channel], start.scale[c, used], other[c, used], codes).scale
    if everything and np.any(layer.target):
        scale[:] = _search(everything, start.scale[0], other[0], codes).scale
    return scale, start.zero_point


def _search(channels: list[Channel], start: Float, other: Float, codes: Codes) -> Found:
    """The best scales found, from two starts and multiples of the first."""
    work = Alternation(channels, codes.powers_of_two)
    width = int(np.clip(_WORK // max(len(c.target) for c in channels), _GLANCE, _WIDTH))
    factors = POWERS_OF_TWO if codes.powers_of_two else FACTORS
    starts = [start, other]
    for found in sorted((work.glance(factor * start, _GLANCE) for factor in factors), key=_error):
        if len(starts) == _STARTS + 2:
            break
        if all(np.max(np.abs(found.scale / known - 1.0)) > _APART for known in starts):
            starts.append(found.scale)
    first = work.round(start, width)
    ends = [first, *(work.follow(scale, width, _ROUNDS) for scale in starts)]
    for _ in range(0 if codes.powers_of_two else _NEARBY_ROUNDS):
        best = min(ends, key=_error)
        ends += [work.round(factor * best.scale, width) for factor in NEARBY]
        ends.append(work.follow(min(ends, key=_error).scale, width, _ROUNDS))
        if not ends[-1].error < best.error * (1.0 - 1e-9):
            break
    # What the first start reaches is enumerated at its own scales, too.
    improved = [Found(work.error(start, first.choices), start, first.choices)]
    for found in sorted(ends, key=_error):
        if len(improved) > _ENDS:
            break
        if not any(found.error == known.error for known in improved):
            improved.append(found)
    for k in range(len(improved)):
        for repeat in range(_REPEATS):
            improved[k] = work.improve(improved[k], _SUBSETS, 100 * k + repeat)
    return min([*improved, *ends], key=_error)


def _error(found: Found) -> float:
    return found.error
