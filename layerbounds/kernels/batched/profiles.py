"""Separable bounds as functions of the scale, for many points: Σ_i min_c [d_i (s c)² − 2 b_i s c] (docs/numerics.md).

Divided by s it is r(s) = Σ_i min_c [d_i s c² − 2 b_i c], a sum of minima of affine functions, hence concave: between
two scales it lies above its chord, beyond the last one above a ray with its slope at ∞.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel

#: Unit roundoff.
UNIT = 2.0**-53


@kernel(nested=True, error_model="numpy", fastmath=REORDER)
def _ratio(d, b, codes, uniform, s):
    """A number below r(s): every candidate's rounding is charged, and that of the sum.

    For consecutive codes the two around the vertex b/(ds) are the candidates: one of them is the nearest, as rounding
    moves a vertex across a code only where that code remains a candidate.
    """
    margin = 16.0 * UNIT
    last = len(codes) - 1
    total = 0.0
    size = 0.0
    for i in range(len(d)):
        a = d[i] * s
        slope = 2.0 * b[i]
        if uniform:
            low = codes[0] + min(max(np.floor(b[i] / a - codes[0]), 0.0), last - 1.0)
            high = low + 1.0
            square = a * low * low
            linear = slope * low
            least = square - linear - margin * (square + abs(linear))
            square = a * high * high
            linear = slope * high
            least = min(least, square - linear - margin * (square + abs(linear)))
        else:
            least = np.inf
            for k in range(last + 1):
                square = a * codes[k] * codes[k]
                linear = slope * codes[k]
                least = min(least, square - linear - margin * (square + abs(linear)))
        total += least
        size += abs(least)
    return total - 2.0 * (len(d) + 8) * UNIT * size


@kernel()
def ratios(d, b, codes, which, uniform, scales, first, last, out):
    """Values of r at some scales for every point, in ``out``; other entries stay.

    Parameters
    ----------
    d : ndarray of shape (n,)
        Positive.
    b : ndarray of shape (points, n)
    codes : ndarray of shape (lists, levels)
    which : ndarray of int64, shape (points,)
        The list of each point.
    uniform : bool
        Whether all lists are two or more consecutive integers.
    scales, out : ndarray of shape (points, scales)
    first, last : ndarray of int64, shape (points,)
        The scales that are wanted: from first to before last.
    """
    for p in range(len(b)):
        for j in range(first[p], last[p]):
            out[p, j] = _ratio(d, b[p], codes[which[p]], uniform, scales[p, j])


@kernel(nested=True, error_model="numpy")
def _chord(a, at_a, b, at_b):
    """A number below the least value of s·r(s) for a ≤ s ≤ b, r the chord between its values at the ends."""
    low = a * at_a
    low -= 4.0 * UNIT * abs(low)
    high = b * at_b
    high -= 4.0 * UNIT * abs(high)
    width = b - a
    rise = at_b - at_a
    ends = min(low, high)
    if not rise > 0.0:
        return ends
    # (a + θ·width)(at_a + θ·rise) is convex in θ.
    linear = a * rise + width * at_a
    off = 8.0 * UNIT * (a * rise + width * abs(at_a))
    square = width * rise
    if linear - off >= 0.0:
        return low
    if linear + off + 2.0 * square * (1.0 + 8.0 * UNIT) <= 0.0:
        return high
    top = abs(linear) + off
    # The square of top may underflow. What overflows is NaN, which a minimum would hide.
    inside = low - top * (top / (4.0 * square)) * (1.0 + 32.0 * UNIT)
    return ends if inside > ends else inside


@kernel(nested=True, error_model="numpy")
def _slope_at_zero(b, codes):
    """A number below r(0) = −2 Σ max b_i c."""
    total = 0.0
    size = 0.0
    for i in range(len(b)):
        most = max(b[i] * codes[0], b[i] * codes[-1])
        total += most
        size += abs(most)
    return -2.0 * total - 4.0 * (len(b) + 8) * UNIT * size


@kernel(nested=True, error_model="numpy")
def _slope_at_infinity(d, codes):
    """A number below the slope Σ d_i min c² of r at ∞, not negative."""
    nearest = np.inf
    for c in codes:
        nearest = min(nearest, c * c)
    total = 0.0
    for i in range(len(d)):
        total += d[i] * nearest
    return total * (1.0 - 4.0 * (len(d) + 8) * UNIT)


@kernel(nested=True, error_model="numpy")
def _last_break(d, b, codes):
    """A scale beyond which no code changes."""
    gap = np.inf
    for k in range(len(codes)):
        if codes[k] != 0.0:
            gap = min(gap, abs(codes[k]))
    for k in range(len(codes) - 1):
        middle = abs(codes[k] + codes[k + 1])
        if middle > 0.0:
            gap = min(gap, middle)
    last = 0.0
    for i in range(len(d)):
        last = max(last, abs(b[i]) / d[i])
    return 2.0 * last / gap * (1.0 + 1e-12)


@kernel(nested=True, error_model="numpy")
def _in_range(d, b, codes, high):
    """Whether nothing overflows up to a scale."""
    reach = max(abs(codes[0]), abs(codes[-1]))
    top = 0.0
    for i in range(len(d)):
        top = max(top, max(d[i] * reach * high, abs(b[i])) * reach)
    return top < 1e280


@kernel(nested=True, error_model="numpy")
def _ray(a, at_a, slope):
    """A number below the least value of s·(r(a) + slope·(s − a)) for s ≥ a; slope ≥ 0."""
    if slope == 0.0:
        return 0.0 if at_a >= 0.0 else -np.inf
    here = a * at_a
    here -= 4.0 * UNIT * abs(here)
    off = 8.0 * UNIT * (abs(at_a) + slope * a)
    if at_a + slope * a - off >= 0.0:
        return here
    top = abs(at_a - slope * a) + off
    inside = -top * (top / (4.0 * slope)) * (1.0 + 32.0 * UNIT)
    return here if inside > here else inside


@kernel(error_model="numpy")
def least_between(d, b, point, codes, which, uniform, low, high, enough, share, most, value, met):
    """Lower bounds on the least value of s·r(s) over intervals, by chords; scales are added where it is least.

    Parameters
    ----------
    d : ndarray of shape (minorants, n)
        Positive.
    b : ndarray of shape (points, n)
    point, which : ndarray of int64, shape (intervals, 2) and (intervals,)
        Point and minorant of each interval; its list of codes.
    codes : ndarray of shape (lists, levels)
    uniform : bool
        As in `ratios`.
    low, high : ndarray of shape (intervals,)
        0 ≤ low ≤ high, infinity included.
    enough : ndarray of shape (intervals,)
        No scales are added where the least value is above.
    share : ndarray of shape (intervals,)
        Nor where it is within this of the least value met.
    most : int
        Scales of an interval.
    value, met : ndarray of shape (intervals,)
        Return values: the bound, −∞ where there is none; the least value at a scale.
    """
    at = np.empty(most + 2)
    ratio = np.empty(most + 2)
    least = np.empty(most + 2)
    for k in range(len(low)):
        if high[k] == 0.0:
            value[k] = 0.0
            met[k] = 0.0
            continue
        own = codes[which[k]]
        weights = d[point[k, 1]]
        slopes = b[point[k, 0]]
        thin = 1e-280 / np.min(weights)
        behind = np.inf
        end = high[k]
        if np.isinf(end):
            end = max(_last_break(weights, slopes, own), low[k])
            if end == 0.0:
                end = 1.0
            last = _ratio(weights, slopes, own, uniform, end)
            behind = _ray(end, last, _slope_at_infinity(weights, own))
        at[0] = low[k]
        ratio[0] = _slope_at_zero(slopes, own) if low[k] == 0.0 else _ratio(weights, slopes, own, uniform, low[k])
        count = 1
        if end > low[k]:
            at[1] = end
            ratio[1] = _ratio(weights, slopes, own, uniform, end)
            least[0] = _chord(at[0], ratio[0], at[1], ratio[1])
            count = 2
        lowest = at[0] * ratio[0]
        if count == 2:
            lowest = min(lowest, at[1] * ratio[1])
        broken = np.isnan(behind) or not (np.isfinite(ratio[0]) and (count == 1 or np.isfinite(ratio[1])))
        broken |= not (low[k] == 0.0 or low[k] > thin) or not (end > thin and _in_range(weights, slopes, own, end))
        while count >= 2 and not broken:
            worst = 0
            for j in range(1, count - 1):
                if not least[j] >= least[worst]:
                    worst = j
            found = least[worst]
            if count >= most or found >= enough[k] or lowest - found <= share[k]:
                break
            left = at[worst]
            right = at[worst + 1]
            new = 0.125 * right if left == 0.0 else np.sqrt(left) * np.sqrt(right)
            if not (left < new and new < right and new > thin):
                break
            for j in range(count, worst + 1, -1):
                at[j] = at[j - 1]
                ratio[j] = ratio[j - 1]
                least[j] = least[j - 1]
            at[worst + 1] = new
            ratio[worst + 1] = _ratio(weights, slopes, own, uniform, new)
            broken |= not np.isfinite(ratio[worst + 1])
            lowest = min(lowest, new * ratio[worst + 1])
            least[worst] = _chord(left, ratio[worst], new, ratio[worst + 1])
            least[worst + 1] = _chord(new, ratio[worst + 1], right, ratio[worst + 2])
            count += 1
        bound = behind
        if count == 1:
            bound = min(bound, lowest - 4.0 * UNIT * abs(lowest))
        for j in range(count - 1):
            bound = min(bound, least[j])
            broken |= np.isnan(least[j])
        value[k] = -np.inf if broken else bound
        met[k] = lowest
