"""What pruned and quantized weights cost to store, and the density of equal cost."""

from __future__ import annotations

import math
from typing import Literal

from layerbounds.arguments import one_of
from layerbounds.exceptions import InputError
from layerbounds.problems.pruning import DENSE_BITS

#: Of independent positions: patterns of finitely many inputs are in `layerbounds.problems.storage`.
Mask = Literal["none", "bitmap", "entropy"]


def equal_density(bits: float, mask: Mask = "none", zeros: float = 0.0) -> float:
    """Density at which pruned weights of 16 bits need as much storage as quantized ones.

    With d the density, z the share of quantized weights that are zero, and m the storage of a mask for each weight,
    16·d + m(d) = b without natural zeros. With them (z > 0) the quantized zeros are not stored either, which takes a
    mask of the same kind: 16·d + m(d) = b·(1 − z) + m(1 − z).

    Parameters
    ----------
    bits : float
        Bits b of a quantized weight, up to 16.
    mask : {"none", "bitmap", "entropy"}
        m = 0, one bit for each weight, or the entropy of independent positions,
        −d·log2(d) − (1 − d)·log2(1 − d), which no code for random masks can undercut.
    zeros : float
        z, in [0, 1]; 0 leaves the natural zeros out of account.

    Returns
    -------
    float
        b/16 by default. 0 where the mask alone costs as much as the quantized weights.

    Examples
    --------
    >>> lb.theory.equal_density(4)
    0.25
    >>> lb.theory.equal_density(4, mask="bitmap")
    0.1875
    """
    from scipy.optimize import brentq

    one_of(mask, "mask", ("none", "bitmap", "entropy"))
    if not 0 <= bits <= DENSE_BITS:
        raise InputError(f"bits is {bits}; pass a number from 0 to {DENSE_BITS}.")
    if not 0 <= zeros <= 1:
        raise InputError(f"zeros is {zeros}; pass the share of zeros, in [0, 1].")
    budget = bits * (1.0 - zeros) + (_mask_bits(1.0 - zeros, mask) if zeros > 0 else 0.0)
    if mask == "none":
        return budget / DENSE_BITS
    if budget <= _mask_bits(0.0, mask):
        return 0.0
    if budget >= DENSE_BITS:
        # Nothing pruned needs no mask.
        return 1.0
    return float(brentq(lambda d: DENSE_BITS * d + _mask_bits(d, mask) - budget, 0.0, 1.0, xtol=1e-15, rtol=1e-14))


def _mask_bits(density: float, mask: Mask) -> float:
    if mask == "none":
        return 0.0
    if mask == "bitmap":
        return 1.0
    if density <= 0.0 or density >= 1.0:
        return 0.0
    return -density * math.log2(density) - (1.0 - density) * math.log2(1.0 - density)
