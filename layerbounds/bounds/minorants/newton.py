"""Diagonal minorants of large Gram matrices: a barrier method in single precision, not proven here (docs/bounds.md).

Maximises Σ a_i d_i + μ logdet(H − D) + μ Σ log d_i for falling μ. With T = (H − D)⁻¹ Newton's step is
p_a/μ + p_c, (T∘T + diag d⁻²) [p_a, p_c] = [a, 1/d − diag T]: one factorization serves every μ. How far each of a row of
steps goes before it leaves the cone is estimated by Lanczos' method, for all of them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.minorants.lanczos import extreme_values
from layerbounds.bounds.minorants.newton_system import solve_squared
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, shrink_until
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.arithmetic import CPU, DOUBLE, STRIPE, Arithmetic

#: Newton steps, and the duality gap 2nμ relative to the value that ends them earlier.
STEPS, GAP = 12, 0.02
#: Starts d_i ∝ t_i r_i^p, t_i = 1/(H⁻¹)_ii the largest entry that d_i can have alone and r_i = a_i t_i.
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0)
#: Least r_i^p, and the share of the way to the boundary at which the ascent starts.
LEAST, INSIDE = 1e-3, 0.8
#: Multiplicative steps at most, their exponent, the factors that are tried and the gain below which they end.
PRODUCTS, EXPONENT, FACTORS, GAIN = 10, 0.8, tuple(np.geomspace(0.5, 20.0, 24)), 1.1
#: Factors of μ that are tried: to a centre where the point is far from one, and along the central path.
RISES, FALLS = tuple(np.geomspace(20.0, 1.0, 6)), tuple(np.geomspace(0.8, 0.02, 8))
#: A step is good if the eigenvalues of M⁻¹ diag(step) are between −DEEPEST and LONGEST; it is shortened to SHARE,
#: the last one to LAST_SHARE.
DEEPEST, LONGEST, SHARE, LAST_SHARE = 1.3, 2.0, 0.9, 0.97
#: An entry changes by this factor at most; entries below this share of the largest one are raised.
CHANGE, FLOOR = 20.0, 1e-9
#: Products with M⁻¹ for the estimates of eigenvalues.
LANCZOS = 8
#: What is tried of a diagonal before double precision takes over.
KEEP = (1.0, 1.0 - 1e-9, 1.0 - 1e-6, 1.0 - 1e-4, 0.999, 0.99)


def ascend_newton(
    gram: Float,
    objective: Float,
    start: Float | None = None,
    *,
    steps: int = STEPS,
    relative_gap: float = GAP,
    arithmetic: Arithmetic = CPU,
    stop: Callable[[], bool] | None = None,
) -> Float:
    """Approximately maximise Σ a_i d_i over the diagonals 0 ≺ D ≺ gram.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite but for inputs that are dead (zeros), which get d_i = 0.
    objective : ndarray of shape (n,)
        Coefficients a ≥ 0: the expected squared distance of each variable to its grid.
    start : ndarray of shape (n,), optional
        Where it is better than what is found without it, the ascent begins there.
    steps : int
        Newton steps at most, each an inverse and a factorization; before them a few inverses for the start.
    relative_gap : float
        Ends when the duality gap is below this share of the value.
    arithmetic : Arithmetic
        Where the single precision matrices live; double precision, where that is not enough, is the processor's.
    stop : callable, optional
        Asked before each step whether to end with what there is.

    Returns
    -------
    ndarray of shape (n,)
        Zeros where nothing was found. Below the Gram matrix to the digit, but for the caller to prove.
    """
    scale = np.sqrt(np.maximum(np.diag(gram), 0.0))
    live = scale > 0
    if not np.any(live):
        return np.zeros(len(gram))
    inverse_scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=live)
    a = np.maximum(objective, 0.0) * scale**2
    top = float(a.max())
    a = np.ones(len(gram)) if top == 0.0 else a / top + 1e-6
    a[~live] = 1e-6
    first = None if start is None else np.maximum(start, 0.0) * inverse_scale**2
    for place in (arithmetic, DOUBLE):
        d = _Ascent(gram, inverse_scale, a, place).run(first, steps, relative_gap, stop)
        if d is None:
            continue
        first = d
        d = d * scale**2
        for share in KEEP:
            if _is_below(gram, live, share * d):
                return np.asarray(share * d)
    if first is None:
        return np.zeros(len(gram))
    return shrink_until(lambda candidate: _is_below(gram, live, candidate), first * scale**2)


def _is_below(gram: Float, live: Bool, d: Float) -> bool:
    matrix = gram.copy() if np.all(live) else gram[np.ix_(live, live)]
    matrix[np.diag_indices(len(matrix))] -= d[live]
    return is_positive_semidefinite(matrix)


def choose_step(smallest: Float, longest: Float, last: bool) -> tuple[int, float]:
    """The step to take, of one for each factor of μ, and its length.

    Parameters
    ----------
    smallest, longest : ndarray of shape (steps,)
        Extreme eigenvalues of M⁻¹ times each step.
    last : bool
        Whether no step follows, which would have to start from there.
    """
    good = np.flatnonzero((longest <= LONGEST) & (smallest >= -DEEPEST))
    if last:
        j, share = len(longest) - 1, LAST_SHARE
    elif good.size:
        j, share = int(good[-1]), SHARE
    else:
        worst = np.maximum(longest / LONGEST, -smallest / DEEPEST)
        j, share = int(np.argmin(np.where(np.isnan(worst), np.inf, worst))), SHARE
    return j, min(1.0, share / longest[j]) if longest[j] > 0 else 1.0


def reached(factor: float, length: float) -> float:
    """The factor of μ after a step: a shortened one along the path does not reach the centre that it aims at."""
    return factor if factor >= 1.0 else 1.0 - length * (1.0 - factor)


class _Ascent:
    """The ascent on the Gram matrix scaled to a diagonal of ones.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    inverse_scale : ndarray of shape (n,)
        Inverse square roots of its diagonal, 0 where that is 0.
    objective : ndarray of shape (n,)
        Positive, the largest entry about 1.
    arithmetic : Arithmetic
    """

    def __init__(self, gram: Float, inverse_scale: Float, objective: Float, arithmetic: Arithmetic) -> None:
        n = len(gram)
        self._arithmetic = arithmetic
        # Zeros of which no page is touched: the matrix is written in stripes.
        self._gram = arithmetic.put(np.zeros((n, n), dtype=np.float32))
        for i in range(0, n, STRIPE):
            rows = gram[i : i + STRIPE] * inverse_scale[i : i + STRIPE, None]
            rows *= inverse_scale
            self._gram[i : i + STRIPE] = arithmetic.put(rows)
        self._gram.reshape(-1)[:: n + 1] = 1.0
        self._a = arithmetic.put(objective)
        self._probe = arithmetic.put(np.random.default_rng(0).normal(size=n))

    def run(
        self, start: Float | None, steps: int, relative_gap: float, stop: Callable[[], bool] | None
    ) -> Float | None:
        """The best diagonal met; None where the Gram matrix is singular in this precision."""
        found = self._started(start)
        if found is None:
            return None
        d, inverse = self._multiplied(*found, stop)
        del found
        best, most = d, self._value(d)
        n = len(self._probe)
        mu = 2.0 * most / n
        for step in range(steps):
            checkpoint()
            if inverse is None or (stop is not None and stop()):
                break
            following = self._newton(d, inverse, mu, np.inf if step == steps - 1 else relative_gap * self._value(d))
            if following is None:
                break
            d, inverse, mu, last = following
            value = self._value(d)
            if value > most:
                best, most = d, value
            if last:
                break
        return self._arithmetic.get(best)

    def _value(self, d: Any) -> float:
        return float((self._a * d).sum(0))

    def _inverse(self, d: Any, room: Any) -> Any | None:
        """(H − diag(d))⁻¹; the processor writes it where the matrix ``room`` is, so that two are alive at once."""
        if isinstance(room, np.ndarray):
            matrix = room
            matrix[:] = self._gram
        else:
            matrix = self._gram + 0.0
        matrix.reshape(-1)[:: len(self._probe) + 1] -= d
        return self._arithmetic.inverse(matrix)

    def _extremes(self, inverse: Any, steps: Any, products: int = LANCZOS) -> tuple[Float, Float]:
        return extreme_values(inverse, steps, self._probe, products, self._arithmetic)

    def _started(self, start: Float | None) -> tuple[Any, Any] | None:
        """The best of a family of diagonals, each lengthened to the boundary, and its inverse."""
        inverse = self._arithmetic.inverse(self._gram + 0.0)
        if inverse is None:
            return None
        alone = 1.0 / inverse.diagonal()
        worth = self._a * alone
        worth = worth / float(worth.max())
        family = self._columns(len(POWERS) + (start is not None))
        for j, power in enumerate(POWERS):
            family[:, j] = alone * (worth**power).clip(LEAST)
        if start is not None:
            given = self._arithmetic.put(start)
            family[:, -1] = given.clip(max(FLOOR * float(given.max()), 1e-30))
        _, longest = self._extremes(inverse, family, LANCZOS + 4)
        values = self._arithmetic.get((self._a[:, None] * family).sum(0)) / longest
        j = int(np.argmax(np.where(np.isfinite(values), values, 0.0)))
        share = INSIDE / float(longest[j])
        if j == len(POWERS):
            share = min(share / INSIDE * 0.95, 0.98)
        while np.isfinite(share) and share > 1e-12 / float(longest[j]):
            d = family[:, j] * share
            found = self._inverse(d, inverse)
            if found is not None:
                return d, found
            share *= 0.5
        return None

    def _columns(self, count: int) -> Any:
        return self._arithmetic.put(np.zeros((len(self._probe), count)))

    def _multiplied(self, d: Any, inverse: Any, stop: Callable[[], bool] | None) -> tuple[Any, Any | None]:
        """d_i ← c d_i (a_i/T_ii)^½ while that gains: few large entries among thousands are found quickly."""
        for _ in range(PRODUCTS):
            if stop is not None and stop():
                break
            ratio = self._a / inverse.diagonal()
            moved = d * (ratio / float(ratio.max())) ** EXPONENT
            moved = moved.clip(FLOOR * float(moved.max()))
            factors = self._arithmetic.put(np.array(FACTORS) * (self._value(d) / self._value(moved)))
            candidates = moved[:, None] * factors - d[:, None]
            _, longest = self._extremes(inverse, candidates)
            fitting = np.flatnonzero(longest <= SHARE)
            if fitting.size == 0 or FACTORS[fitting[-1]] < GAIN:
                break
            moved = d + candidates[:, int(fitting[-1])]
            found = self._inverse(moved, inverse)
            if found is None:
                return d, self._inverse(d, inverse)
            d, inverse = moved, found
        return d, inverse

    def _newton(self, d: Any, inverse: Any, mu: float, gap: float) -> tuple[Any, Any, float, bool] | None:
        """One step, the last one if the duality gap is below ``gap``.

        Returns
        -------
        diagonal, inverse, mu, last : tuple or None
            None where no step is possible.
        """
        n = len(self._probe)
        right = self._columns(2)
        right[:, 0], right[:, 1] = self._a, 1.0 / d - inverse.diagonal()
        solved = solve_squared(inverse, d**-2, right)
        if solved is None:
            return None
        # To first order the centre moves along p_a from that of μ to that of σμ by (1 − σ) p_a/μ.
        factors = np.array(RISES + FALLS)
        path = np.where(factors < 1.0, 2.0 - factors, 1.0 / factors)
        pulls = self._arithmetic.put(np.concatenate([path, 1.0 / np.array(FALLS)]) / mu)
        candidates = solved[:, :1] * pulls + solved[:, 1:]
        # μ(T + T diag(s) T) + diag(μ/d − μs/d²), s the step for μ, is feasible for the dual problem if semidefinite.
        whole = candidates[:, len(factors) :]
        dual = self._arithmetic.get(((whole > d[:, None]) * 1.0).sum(0)) == 0
        gaps = 2.0 * n - self._arithmetic.get((whole * right[:, 1:]).sum(0))
        candidates = candidates.clip((-(1.0 - 1.0 / CHANGE)) * d[:, None], (CHANGE - 1.0) * d[:, None])
        smallest, longest = self._extremes(inverse, candidates)
        dual &= smallest[len(factors) :] >= -1.0
        last = gap == np.inf or bool(np.any(dual & (gaps * mu * np.array(FALLS) <= gap)))
        smallest, longest = smallest[: len(factors)], longest[: len(factors)]
        j, length = choose_step(smallest, longest, last)
        while length > 1e-6:
            moved = d + candidates[:, j] * float(length)
            moved = moved.clip(FLOOR * float(moved.max()))
            found = self._inverse(moved, inverse)
            if found is not None:
                return moved, found, mu * reached(float(factors[j]), length), last
            length *= 0.5
        return None
