"""Lower bounds from the leaves of a tree of boxes of codes: B + U diag(g) Uᵀ ⪯ H, U = forms / scale, at each.

As `forms.with_forms` for many points, in float64; what rounding can add is deducted
(docs/certificates.md).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit

from layerbounds_verify.bounds import Minorant
from layerbounds_verify.box_blocks import least_of_block, prepared
from layerbounds_verify.exact import RefusedError, U
from layerbounds_verify.leaves import tree

#: Multipliers are stored in units of this share of the weights.
GRAIN = 2.0**-14
#: Values of forms beyond this are refused: smaller ones are known to less than a half.
_FARTHEST = 2.0**44


@njit(cache=True, nogil=True)
def _bounds(
    values: Any, z: Any, h: Any, size: Any, value: Any, d: Any, start: Any, index: Any, entry: Any, weights: Any,
    rho: Any, scale: Any, zero: Any, away: Any, evidence: Any, low: Any, high: Any, first: Any, member: Any, b: Any,
    factor: Any, differs: Any,
) -> Any:  # fmt: skip  # pragma: no cover - compiled
    """The bound of each leaf: its evidence, and the first and last code of each input."""
    n, m, leaves = len(d), len(weights), len(evidence)
    found = np.empty(leaves)
    slope, reach, alone = np.empty(n), np.empty(n), np.ones(n, dtype=np.bool_)
    alone[member] = False
    for leaf in range(leaves):
        e, total, charge, much = evidence[leaf], value[evidence[leaf], 0], 0.0, value[evidence[leaf], 1]
        for i in range(n):
            slope[i], reach[i] = h[e, i], size[e, i]
        for j in range(m):
            y, about, near, least, most, r = 0.0, 0.0, 0.0, 0.0, 0.0, rho[e, j]
            for p in range(start[j], start[j + 1]):
                i, c = index[p], entry[p]
                y += c * (z[e, i] / scale[i] + zero[i])
                about += abs(c) * (abs(z[e, i] / scale[i]) + abs(zero[i]))
                near += abs(c) * away[i]
                least += c * (low[leaf, i] if c > 0 else high[leaf, i])
                most += c * (high[leaf, i] if c > 0 else low[leaf, i])
                slope[i] -= c * r / scale[i]
                reach[i] += abs(c * r / scale[i])
            if not abs(y) < _FARTHEST:
                return found[:0]
            g, best, far = weights[j], np.inf, max(abs(least - y), abs(most - y))
            vertex = min(max(y - r / g, least), most) if g > 0.0 else least
            for t in (least, most, np.floor(vertex), np.ceil(vertex), np.floor(vertex) - 1.0, np.ceil(vertex) + 1.0):
                step = min(max(t, least), most) - y
                best = min(best, step * (2.0 * r + g * step))
            total += best
            much += far * (2.0 * abs(r) + 2.0 * g * far)
            charge += (near + (n + 8) * U * about) * (2.0 * abs(r) + 2.0 * g * far)
        for i in range(n):
            best, far = np.inf, 0.0
            for v in range(int(low[leaf, i]), int(high[leaf, i]) + 1):
                step = values[i, v] - z[e, i]
                best, far = min(best, step * (2.0 * slope[i] + d[i] * step)), max(far, abs(step))
            total += best if alone[i] else 0.0
            much += far * (2.0 * reach[i] + abs(d[i]) * far)
        for k in range(len(first) - 1):
            inputs = member[first[k] : first[k + 1]]
            least, more, added = least_of_block(
                values, z[e], slope, low[leaf], high[leaf], inputs, b[k], factor[k], differs[k]
            )
            total, charge, much = total + least, charge + more, much + added
        found[leaf] = total - 1.02 * (charge + 2.0 * (n + m + 16) * U * much) - 1e-290
    return found


def over_boxes(
    target: Any, gram: Any, values: Any, minorant: Minorant, parts: Any, scale: Any, zero: Any, count: Any
) -> Fraction:
    """The least bound of all leaves.

    Parameters
    ----------
    target : ndarray of shape (n,)
    gram : ndarray of shape (n, n)
    values : ndarray of shape (n, levels)
        Sorted.
    minorant : Minorant
        Proven, with forms; of a diagonal or of blocks.
    parts : dict
        The tensors ``axis``, ``at``, ``child``, ``z``, ``multipliers`` of the proof.
    scale, zero : ndarray of shape (n,)
        With which levels are near scale · (code − zero), codes 0, 1, 2, ….
    count : ndarray of int, shape (n,)
        How many codes each input has; further levels are the same again.
    """
    n, levels = values.shape
    z, forms, weights = parts["z"].astype(np.float64), minorant.forms.astype(np.float64), minorant.weights
    if z.shape[1:] != (n,) or parts["multipliers"].shape != (len(z), len(weights)):
        raise RefusedError("its points or multipliers have a wrong shape")
    evidence, _, ranges = tree(parts, 0, n, levels)
    ends = np.tile(np.stack([np.zeros(n), count - 1.0], axis=1), (len(evidence), 1, 1))
    for own, limits in zip(ends, ranges, strict=True):
        for i, (begin, end) in limits.items():
            own[i] = begin, min(end - 1, own[i, 1])
    left = np.all(ends[:, :, 0] <= ends[:, :, 1], axis=1)
    evidence, ends = evidence[left], ends[left]
    if not len(evidence) or not 0 <= evidence.min() <= evidence.max() < len(z):
        raise RefusedError("a leaf of its tree names evidence that is not there, or no leaf holds anything")
    away = [
        float(max(abs(Fraction(v) / Fraction(s) - code + Fraction(o)) for code, v in enumerate(row[:k]))) * (1 + 2 * U)
        for row, s, o, k in zip(values.tolist(), scale.tolist(), zero.tolist(), count.tolist(), strict=True)
    ]
    deviation = z - target
    with np.errstate(over="ignore", invalid="ignore"):
        h, size = deviation @ gram, np.abs(deviation) @ np.abs(gram)
        value = np.stack([np.sum(deviation * h, axis=1), 2.0 * np.sum(np.abs(deviation) * size, axis=1)], axis=1)
    place, index = np.nonzero(forms.T)
    start, own = np.searchsorted(place, np.arange(len(weights) + 1)), forms.T[place, index]
    found = _bounds(
        np.ascontiguousarray(values), z, h, size, value, np.nextafter(minorant.d - minorant.shift, -np.inf), start,
        index, own, weights, parts["multipliers"] * (weights * GRAIN), scale, zero, np.array(away),
        evidence, ends[:, :, 0], ends[:, :, 1], *prepared(minorant),
    )  # fmt: skip
    if not len(found) or not np.all(np.isfinite(found)):
        raise RefusedError("its numbers are too large for float64, or a block of its minorant has too many choices")
    return Fraction(float(found.min()))
