"""Range ``awq``: the clipping search of AWQ."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import Grid
from layerbounds.problems.ranges.rule import Codes, Fitted, positive, rounded

#: Shares of max|w| to which weights are clipped: 1, 0.95, …, 0.55.
SHARES = 1.0 - np.arange(10) / 20.0


def awq(layer: Layer, start: Grid, codes: Codes, tensor: bool) -> Fitted:
    """The share p of max|w| to which clipping gives the smallest output error of the group, p = 1, 0.95, …, 0.55.

    Lin et al., "AWQ" (MLSys 2024), the clipping search of its code (n_grid 20, max_shrink 0.5): each group of inputs is
    clipped to ±p·max|w|, rounded to nearest on the range of the clipped weights, and judged by the output error of its
    own inputs alone, dᵀH_gg d with d = level − w; the largest of equal p stays. Symmetric: s = p·max|w|/(2^(b−1) − 1).
    Asymmetric: s = (max − min)/(2^b − 1) of the clipped weights, zero point −min/s rounded and clipped to the codes.
    AWQ's own error is over a sample of at most 512 tokens, this one over all that the Gram matrix holds. One scale for
    the tensor, which AWQ does not have, is judged by the sum over the channels.
    """
    scale, zero = start.scale.copy(), start.zero_point.copy()
    for k in range(start.scale.shape[1]):
        own = np.flatnonzero(start.group == k)
        block = layer.matrix[:, own]
        best = np.full(len(block), np.inf)
        for share in SHARES:
            s, z, level = _clipped(block, share, codes, tensor)
            deviation = level - block
            error = np.empty(len(block))
            for g, members in enumerate(layer.group_rows()):
                rows = deviation[members]
                error[members] = np.einsum("ij,ij->i", rows @ layer.gram[g][np.ix_(own, own)], rows)
            if tensor:
                error[:] = error.sum()
            better = error < best
            best[better], scale[better, k], zero[better, k] = error[better], s[better], z[better]
    return scale, zero


def _clipped(block: Float, share: float, codes: Codes, tensor: bool) -> tuple[Float, Float, Float]:
    """Scales, zero points and rounded weights after clipping."""
    rows = block.reshape(1, -1) if tensor else block
    limit = share * np.abs(rows).max(axis=1)
    clipped = np.clip(rows, -limit[:, None], limit[:, None])
    if codes.kind == "symmetric":
        scale = positive(limit / codes.high)
        zero = np.zeros(len(rows))
    else:
        low, high = clipped.min(axis=1), clipped.max(axis=1)
        # Equal weights have no range of their own: 0 is included.
        flat = ~(high > low)
        low, high = np.where(flat, np.minimum(low, 0.0), low), np.where(flat, np.maximum(high, 0.0), high)
        scale = positive((high - low) / codes.high)
        zero = np.clip(-np.rint(low / scale), 0, codes.high)
    level = rounded(clipped, scale, zero, codes).reshape(block.shape)
    return np.broadcast_to(scale, len(block)), np.broadcast_to(zero, len(block)), level
