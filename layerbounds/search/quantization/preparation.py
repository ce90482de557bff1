"""What the search needs of a Gram matrix: order, pivots, shifts, minorants. Computed once for all channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import joblib
import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import certified_minorant, maximize_minorant
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.cancellation import checkpoint
from layerbounds.exceptions import InputError
from layerbounds.kernels.factorization import UNIT, cholesky, gamma
from layerbounds.kernels.successive import elimination_order
from layerbounds.search.shared_results import Recent

#: Order exponents λ of small and of large layers; docs/quantization-engine.md says what others cost.
SMALL_ORDER, LARGE_ORDER, LARGE = 1.0, 0.5, 100
#: Inverses of leading blocks are kept for the depths that fit into this many bytes.
COVARIANCE_BYTES = 96 * 2**20
_CACHE_SIZE = 8
#: Larger matrices, of which one diagonal serves all depths, get it in single precision.
DOUBLE_SIZE = 800
#: From this size on a few steps in single precision precede those in double.
SINGLE_START, SINGLE_STEPS = 200, 5
#: Residuals of larger matrices are not computed in extended precision.
_LONG_SIZE = 160


@dataclass(frozen=True, eq=False)
class Preparation:
    """Factorizations of one Gram matrix in the order in which the search fixes variables (last first).

    Attributes
    ----------
    order : ndarray of shape (n,)
        Position → index among the live inputs.
    gram : ndarray of shape (n, n)
        Ordered, with ``shift`` added to its diagonal.
    shift : ndarray of shape (n,)
        Zero unless the Gram matrix is numerically singular; certification charges it.
    pivots : ndarray of shape (n,)
        Squared Cholesky pivots, rounded down.
    shifts : ndarray of shape (n, n)
        Row k: move of the centre of the first k variables for a unit move of variable k.
    minorants : ndarray of shape (n + 1, n)
        Row k: proven diagonal minorant of the leading k × k block.
    covariance : ndarray of shape (n, n)
        Inverse of ``gram``.
    covariances : ndarray of shape (depths, n, n)
        Entry k − first_covariance: inverse of the leading k × k block.
    first_covariance : int
    shift_error : ndarray of shape (n,)
        Error of each row of ``shifts`` in the norm of the Gram matrix.
    covariance_error : float
        Largest error of a column of an inverse, in the norm of the Gram matrix, relative to √(its diagonal entry).
    """

    order: Int
    gram: Float
    shift: Float
    pivots: Float
    shifts: Float
    minorants: Float
    covariance: Float
    covariances: Float
    first_covariance: int
    shift_error: Float
    covariance_error: float

    @property
    def size(self) -> int:
        """Number of variables."""
        return len(self.order)


_cache: Recent[Preparation] = Recent(_CACHE_SIZE)


def order_exponent(n: int) -> float:
    """The exponent λ of the order in which so many inputs are fixed, see `elimination_order`."""
    return LARGE_ORDER if n > LARGE else SMALL_ORDER


def prepare(
    gram: Float,
    exponent: float,
    threads: int = 1,
    before: Callable[[], None] | None = None,
    first: tuple[int, ...] = (),
) -> Preparation:
    """Prepare a Gram matrix of live inputs, or return the cached preparation of an equal one.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    exponent : float
        Order exponent λ, see `elimination_order`.
    threads : int
        BLAS threads: they change the last digits.
    before : callable, optional
        Called where there is work to do.
    first : tuple of int
        Inputs that are fixed before all others.
    """
    key = (joblib.hash(gram), exponent, threads, first)

    def compute() -> Preparation:
        if before is not None:
            before()
        return _prepare(gram, exponent, first)

    return _cache.get(key, compute, threads)


def _prepare(gram: Float, exponent: float, early: tuple[int, ...] = ()) -> Preparation:
    n = gram.shape[0]
    shift, order, ordered, lower = factorize_ordered(gram, exponent, early)
    checkpoint()
    inverse = scipy.linalg.solve_triangular(lower, np.eye(n), lower=True, check_finite=False).T
    shifts = np.tril((inverse / np.diag(inverse)).T, -1)
    checkpoint()
    covariance = inverse @ inverse.T
    first, covariances = _leading_inverses(inverse)
    checkpoint()
    pivots, shift_error, spread = _residuals(ordered, shifts, covariance)
    return Preparation(
        order=order,
        gram=ordered,
        shift=shift[order],
        pivots=pivots,
        shifts=np.ascontiguousarray(shifts),
        minorants=minorant_schedule(ordered, np.ones(n)),
        covariance=covariance,
        covariances=covariances,
        first_covariance=first,
        shift_error=shift_error,
        covariance_error=_inverse_error(ordered, covariance, covariances, first, spread),
    )


def factorize_ordered(gram: Float, exponent: float, early: tuple[int, ...] = ()) -> tuple[Float, Int, Float, Float]:
    """Shift, order, ordered matrix and its lower Cholesky factor; what is fixed early stands at the end."""
    ends = np.array(early, dtype=np.int64)
    others = np.setdiff1d(np.arange(len(gram)), ends)
    for shift in regularizations(gram):
        shifted = gram + np.diag(shift)
        if cholesky(shifted) is None:
            continue
        order = others[elimination_order(np.ascontiguousarray(shifted[np.ix_(others, others)]), exponent, checkpoint)]
        order = np.concatenate([order, ends])
        ordered = np.ascontiguousarray(shifted[np.ix_(order, order)])
        lower = cholesky(ordered)
        if lower is not None and np.all(np.diag(lower) ** 2 > 1024 * len(gram) * UNIT * np.diag(ordered)):
            return shift, order, ordered, lower
    raise InputError("the Gram matrix cannot be factorized even after a shift of its diagonal; check its entries.")


def regularizations(gram: Float) -> Iterator[Float]:
    """What to add to the diagonal, smallest first: nothing, then what makes a singular matrix factorizable.

    Multiples of the diagonal; where they are of no use because small inputs carry the rounding of large ones (the
    centred inputs of a re-fitted bias), with the rounding of the largest entry in addition.
    """
    diagonal = np.diag(gram)
    for factor in (0.0, 2.0**12, 2.0**15, 2.0**18, 2.0**22, 2.0**26):
        yield np.asarray(factor * len(gram) * UNIT * diagonal)
    for factor in (2.0**4, 2.0**8, 2.0**12, 2.0**20, 2.0**32):
        yield np.asarray(factor * len(gram) * UNIT * (2.0**12 * diagonal + np.max(diagonal)))


def schedule(n: int) -> list[int]:
    """Depths, n first, at which a minorant is optimised anew; the depths between restrict the next larger one."""
    if n <= 160:
        stride = 1
    elif n <= 400:
        stride = 6
    elif n <= 800:
        stride = 24
    else:
        stride = n
    return sorted({n, *range(n - stride, 1, -stride), 1}, reverse=True)


def minorant_schedule(gram: Float, objective: Float, relative_gap: float = 0.2) -> Float:
    """Proven diagonal minorants of all leading blocks, row k for the first k variables."""
    n = gram.shape[0]
    rows = np.zeros((n + 1, n))
    depths = schedule(n)
    start: Float | None = None
    for position, depth in enumerate(depths):
        checkpoint()
        block = np.ascontiguousarray(gram[:depth, :depth])
        if depth > DOUBLE_SIZE:
            d = certified_minorant(block, ascend_newton(block, objective[:depth]))
        else:
            if start is None and depth >= SINGLE_START:
                start = ascend_newton(block, objective[:depth], steps=SINGLE_STEPS)
            d = maximize_minorant(block, objective[:depth], start, relative_gap if n < 250 else 0.3)
        following = depths[position + 1] if position + 1 < len(depths) else 0
        for k in range(depth, following, -1):
            rows[k, :k] = d[:k]
        start = d[:following]
    return rows


def _leading_inverses(inverse: Float) -> tuple[int, Float]:
    n = inverse.shape[0]
    count = int(min(n, max(COVARIANCE_BYTES // (8 * n * n), 0)))
    if count < min(n, 8):
        return n + 1, np.zeros((0, n, n))
    result = np.zeros((count, n, n))
    for i in range(count):
        checkpoint()
        k = n - count + 1 + i
        block = inverse[:k, :k]
        result[i, :k, :k] = block @ block.T
    return n - count + 1, result


def _residuals(gram: Float, shifts: Float, covariance: Float) -> tuple[Float, Float, float]:
    """Pivots rounded down, errors of the shifts, and √tr C⁻¹ of the unit-diagonal Gram matrix C.

    For any t, H_kk + 2 tᵀH_Fk + tᵀH_FF t exceeds the exact pivot by ρᵀH_FF⁻¹ρ, ρ = H_FF t + H_Fk, and
    ρᵀH_FF⁻¹ρ ≤ ‖S⁻¹ρ‖²·tr(C⁻¹) with S² the diagonal of H (docs/numerics.md).
    """
    n = gram.shape[0]
    diagonal = np.diag(gram)
    scale = np.sqrt(diagonal)
    spread = float(np.sqrt(2.0 * np.sum(np.diag(covariance) * diagonal)))
    columns = shifts.T
    product, error = precise_product(gram, columns)
    residual = np.triu(product + gram, 1)
    rounding = np.triu(error + 2.0 * UNIT * (np.abs(product) + np.abs(gram)), 1)
    size = np.linalg.norm((np.abs(residual) + rounding) / scale[:, None], axis=0)
    shift_error = size * spread
    products = columns * np.triu(gram, 1)
    pivots = diagonal + products.sum(axis=0)
    absolute = (
        gamma(n + 2) * (diagonal + np.abs(products).sum(axis=0))
        + (np.abs(columns) * (np.abs(residual) + rounding)).sum(axis=0)
        + shift_error**2
    )
    # Pivots from below, so that no partial cost is too large.
    safe = np.maximum(pivots - absolute, 1e-3 * UNIT * diagonal)
    return safe, shift_error, spread


def plain_product(left: Float, right: Float) -> tuple[Float, Float]:
    """A matrix product and an entrywise bound on its rounding error."""
    return left @ right, gamma(left.shape[1] + 2) * (np.abs(left) @ np.abs(right))


def precise_product(left: Float, right: Float) -> tuple[Float, Float]:
    """The same in extended precision where the matrices are small enough for that."""
    if left.shape[0] > _LONG_SIZE or np.finfo(np.longdouble).eps > 0.01 * np.finfo(np.float64).eps:
        return plain_product(left, right)
    product = left.astype(np.longdouble) @ right.astype(np.longdouble)
    bound = np.abs(left) @ np.abs(right)
    epsilon = (left.shape[1] + 2) * float(np.finfo(np.longdouble).eps)
    return product.astype(np.float64), 1.01 * epsilon * bound + UNIT * np.abs(product).astype(np.float64)


def _inverse_error(gram: Float, covariance: Float, covariances: Float, first: int, spread: float) -> float:
    n = gram.shape[0]
    scale = np.sqrt(np.diag(gram))
    worst = 0.0
    blocks = [(n, covariance)] + [(first + i, c) for i, c in enumerate(covariances)]
    for k, inverse in blocks:
        checkpoint()
        block, columns = gram[:k, :k], inverse[:k, :k]
        product, error = plain_product(block, columns)
        residual = np.abs(product - np.eye(k)) + error + 2.0 * UNIT
        size = np.linalg.norm(residual / scale[:k, None], axis=0)
        worst = max(worst, float(np.max(size * spread / np.sqrt(np.diag(columns)))))
    return worst
