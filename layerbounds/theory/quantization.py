"""Expected squared error of symmetric uniform quantization (Kuzmin et al. 2023, section 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.problems.grids import MAX_BITS
from layerbounds.theory.distributions import Distribution, Empirical
from layerbounds.theory.families import as_distribution
from layerbounds.theory.quadrature import TOLERANCE

#: Ratio of neighbouring scales in the search for the optimal one, and how many local minima are refined.
STEP, MINIMA = 1.15, 3
#: Tolerance of that scan.
ROUGH = 1e-4


@dataclass(frozen=True)
class QuantizationError:
    """Expected error of rounding to the levels scale·{−2^(b−1), …, 2^(b−1) − 1}.

    Attributes
    ----------
    bits : int
    scale : float
        Step size s.
    rounding : float
        E[(x − Q(x))²; x between the extreme levels].
    clipping : float
        The same beyond them.
    zeros : float
        P(Q(x) = 0), the natural sparsity of the quantized values.
    power : float
        E[x²].

    Examples
    --------
    >>> error = lb.theory.quantization_error(lb.theory.normal(), 4)
    >>> round(error.rounding + error.clipping, 4)
    0.0119
    """

    bits: int
    scale: float
    rounding: float
    clipping: float
    zeros: float
    power: float

    @property
    def total(self) -> float:
        """E[(x − Q(x))²]."""
        return self.rounding + self.clipping

    @property
    def snr_db(self) -> float:
        """10·log10(E[x²]/E[(x − Q(x))²])."""
        return decibels(self.power, self.total)


def decibels(power: float, error: float) -> float:
    """Signal-to-noise ratio in dB: infinite without error, undefined without a signal."""
    if power == 0:
        return math.nan
    return 10.0 * math.log10(power / error) if error > 0 else math.inf


def quantization_error(
    distribution: Any, bits: int, scale: float | None = None, *, limit: float | None = None
) -> QuantizationError:
    """Expected squared error of quantization at a given or at the optimal range.

    Parameters
    ----------
    distribution : Distribution, scipy.stats frozen continuous distribution, or array_like of samples
    bits : int
        2 to 8.
    scale : float, optional
        Step size; default: the one of smallest error.
    limit : float, optional
        Instead of ``scale``: scale = limit/(2^(b−1) − ½), the convention of `layerbounds.uniform_grid`, by which no
        |x| ≤ limit on the positive side is more than half a step from its level.

    Returns
    -------
    QuantizationError

    Raises
    ------
    InputError

    Examples
    --------
    >>> round(lb.theory.quantization_error(lb.theory.normal(), 4, limit=3.0).scale, 4)
    0.4
    """
    values = as_distribution(distribution)
    half = _half(bits)
    if scale is not None and limit is not None:
        raise InputError("pass either scale or limit, and not both.")
    if limit is not None:
        scale = limit / (half - 0.5)
    if scale is None:
        scale = optimal_scale(values, bits)
    if not (scale > 0 and math.isfinite(scale)):
        raise InputError(f"the step size is {scale}; pass a positive number.")
    codes, low, high = _cells(half, scale)
    errors = values.partial(2, low, high, scale * codes)
    rest = values.partial(0, np.array([-0.5 * scale]), np.array([0.5 * scale]), np.zeros(1))
    return QuantizationError(
        bits=int(bits),
        scale=float(scale),
        rounding=float(errors[1:-1].sum()),
        clipping=float(errors[0] + errors[-1]),
        zeros=float(rest[0]),
        power=values.power,
    )


def optimal_scale(distribution: Any, bits: int) -> float:
    """Step size of the smallest expected error: a scan over all magnitudes, then the root of the derivative.

    Parameters
    ----------
    distribution : as in `quantization_error`
    bits : int
        2 to 8.

    Examples
    --------
    >>> round(lb.theory.optimal_scale(lb.theory.normal(), 4), 4)
    0.3386
    """
    values = as_distribution(distribution)
    half = _half(bits)
    deviation = math.sqrt(values.power)
    if deviation == 0:
        return 1.0
    support = max(abs(v) for v in values.support)
    top = support if math.isfinite(support) else values.absolute_quantile(1.0 - 1e-12)
    low, high = deviation / (8.0 * half), 2.2 * top
    count = max(int(math.log(high / low) / math.log(STEP)), 8)
    scales = np.geomspace(low, high, count)
    errors = np.array([_total(values, half, s, ROUGH) for s in scales])
    inner = [i for i in range(1, count - 1) if errors[i] <= errors[i - 1] and errors[i] <= errors[i + 1]] or [
        min(max(int(np.argmin(errors)), 1), count - 2)
    ]
    best, chosen = math.inf, float(scales[int(np.argmin(errors))])
    for i in sorted(inner, key=lambda j: float(errors[j]))[:MINIMA]:
        candidate = _refine(values, half, float(scales[i - 1]), float(scales[i + 1]))
        error = _total(values, half, candidate)
        if error < best:
            best, chosen = error, candidate
    return chosen


def _refine(values: Distribution, half: int, low: float, high: float) -> float:
    """A local minimum of the error between two scales."""
    from scipy.optimize import brentq, minimize_scalar

    if not isinstance(values, Empirical):
        ends = _slope(values, half, low), _slope(values, half, high)
        if ends[0] < 0 < ends[1]:
            return float(brentq(lambda s: _slope(values, half, s), low, high, xtol=1e-300, rtol=1e-14))
    found = minimize_scalar(
        lambda s: _total(values, half, s), bounds=(low, high), method="bounded", options={"xatol": 1e-10 * low}
    )
    return float(found.x)


def _total(values: Distribution, half: int, scale: float, tolerance: float = TOLERANCE) -> float:
    codes, low, high = _cells(half, scale)
    return float(values.partial(2, low, high, scale * codes, tolerance).sum())


def _slope(values: Distribution, half: int, scale: float) -> float:
    """Derivative of the error with respect to the scale: nearest levels do not change to first order."""
    codes, low, high = _cells(half, scale)
    return float(-2.0 * (codes * values.partial(1, low, high, scale * codes)).sum())


def _cells(half: int, scale: float) -> tuple[Float, Float, Float]:
    """Codes and ends of the intervals that are mapped to one level; the clipped ones are apart, first and last."""
    codes = np.arange(-half, half, dtype=np.float64)
    inner = scale * (codes[:-1] + 0.5)
    edges = np.concatenate([[-np.inf, -half * scale], inner, [(half - 1) * scale, np.inf]])
    return np.concatenate([codes[:1], codes, codes[-1:]]), edges[:-1], edges[1:]


def _half(bits: int) -> int:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 2 <= bits <= MAX_BITS:
        raise InputError(f"bits is {bits!r}; choose an integer from 2 to {MAX_BITS}.")
    return int(2 ** (bits - 1))
