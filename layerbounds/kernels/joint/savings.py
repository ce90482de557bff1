"""What keeping single inputs saves, for many rows."""

from __future__ import annotations

from layerbounds.kernels.compilation import kernel


@kernel()
def level_savings(levels, z, h, d, error, shift, dropped, saving, magnitude):
    """Per row Σ_i of the terms of the weight 0, per input how far its least term is below, and the size of the terms.

    The term of a level z_i + t is 2h_i t + d_i t², less what that may be off: 2 error_i|t| + shift_i t².

    Parameters
    ----------
    levels : ndarray of shape (rows, n, levels)
        Zero is not needed among them.
    z, h, error : ndarray of shape (rows, n)
    d, shift : ndarray of shape (n,)
    dropped : ndarray of shape (rows,)
        Returned.
    saving : ndarray of shape (rows, n)
        Returned; nonnegative.
    magnitude : ndarray of shape (rows,)
        Returned; of all terms of all levels the largest, summed over the inputs.
    """
    rows, n, count = levels.shape
    for r in range(rows):
        total = 0.0
        size = 0.0
        for i in range(n):
            slope = 2.0 * h[r, i]
            curvature = d[i]
            off = 2.0 * error[r, i]
            share = shift[i]
            step = -z[r, i]
            drop = (slope + curvature * step) * step - (off + share * abs(step)) * abs(step)
            least = drop
            farthest = abs(step)
            for k in range(count):
                step = levels[r, i, k] - z[r, i]
                reach = abs(step)
                least = min(least, (slope + curvature * step) * step - (off + share * reach) * reach)
                farthest = max(farthest, reach)
            total += drop
            saving[r, i] = drop - least
            size += (abs(slope) + off + (abs(curvature) + share) * farthest) * farthest
        dropped[r] = total
        magnitude[r] = size
