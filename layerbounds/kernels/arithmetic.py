"""Large dense linear algebra in single precision, on the processor or an accelerator.

What is computed so is a direction or a point, never a proof: certification is float64 on the processor.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from layerbounds.arrays import Float

#: Single precision.
Single = npt.NDArray[np.float32]


class Arithmetic(Protocol):
    """A place where float32 matrices live.

    Its arrays know ``@``, ``+``, ``-``, ``*``, ``/``, ``**``, comparisons, slices, ``.T``, ``.sum(axis)``, ``.max()``
    and assignment to slices, as those of numpy and torch do.
    """

    @property
    def name(self) -> str:
        """How the user calls the device."""

    def put(self, array: Float | Single) -> Any:
        """A float32 copy there."""

    def get(self, array: Any) -> Float:
        """A float64 copy here."""

    def inverse(self, matrix: Any) -> Any | None:
        """Of a symmetric positive definite matrix, which is overwritten; None where the factorization breaks down."""

    def product(self, left: Single, right: Any) -> Single:
        """A matrix that is here times one that is there; the product is here."""


class Processor:
    """Arrays of numpy, in single precision or, where that breaks down, in double.

    Parameters
    ----------
    double : bool
    """

    name = "cpu"

    def __init__(self, double: bool = False) -> None:
        self._kind: type[np.floating[Any]] = np.float64 if double else np.float32
        self._factorize, self._invert = (lapack.dpotrf, lapack.dpotri) if double else (lapack.spotrf, lapack.spotri)

    def put(self, array: Float | Single) -> Any:
        """A copy in this precision."""
        return np.array(array, dtype=self._kind)

    def get(self, array: Any) -> Float:
        """A float64 copy."""
        return np.array(array, dtype=np.float64)

    def product(self, left: Single, right: Any) -> Single:
        """By BLAS."""
        return np.asarray(left @ right)

    def inverse(self, matrix: Any) -> Any | None:
        """By LAPACK, in place."""
        if not matrix.size:
            return matrix
        # A C-ordered symmetric matrix is its own transpose, which LAPACK takes without a copy.
        factor, info = self._factorize(matrix.T, lower=1, clean=0, overwrite_a=1)
        if info != 0 or not np.isfinite(factor[-1, -1]):
            return None
        inverse, info = self._invert(factor, lower=1, overwrite_c=1)
        if info != 0:
            return None
        mirror_lower(inverse)
        return inverse.T


#: Rows that are mirrored at a time.
STRIPE = 512


def mirror_lower(matrix: Any) -> None:
    """Copy the lower triangle of a square matrix to the upper one, without a second matrix."""
    n = len(matrix)
    for i in range(0, n, STRIPE):
        j = min(i + STRIPE, n)
        matrix[i:j, j:] = matrix[j:, i:j].T
        block = matrix[i:j, i:j]
        block[...] = np.tril(block) + np.tril(block, -1).T


CPU = Processor()
#: Where single precision breaks down.
DOUBLE = Processor(double=True)
