"""The best dual point of a free codebook (docs/free-codebooks.md).

With Q = D + D(H − D)⁻¹D and the points x in place of z,

    f(v) ≥ min over codebooks of Σ d_i (v_i − x_i)²  −  (x − w)ᵀQ(x − w),

a minimum of concave functions of x, one for each clustering. It has a kink wherever the best clustering changes, so it
is ascended by supergradients with a metric that dilates space along their differences (Shor's r-algorithm, Minimization
Methods for Non-Differentiable Functions, Springer 1985), which starts from that of Q. The supergradients met near the
maximum, combined to nearly zero, say how far weights lie from z on average: the coefficients of the next diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.optimize import nnls

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant, maximize_minorant
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.kernels.free_codebook.segments import least_segments
from layerbounds.problems.free_codebook import nearest_of

#: Dilation, first step relative to the root of the value, its growth and decay.
DILATION, STEP, GROWTH, DECAY = 2.5, 0.1, 1.2, 0.9
#: Evaluations in which the value must grow by a share, and the most of them, for n inputs.
PATIENCE, PROGRESS, EVALUATIONS = 60, 1e-4, 400
#: Clusterings within a share of the best value that are combined, and the most of them.
NEAR, MOST_NEAR = 0.1, 300
#: Least coefficient of the next diagonal relative to the mean, and rounds without a gain after which refits end.
FLOOR, STALLED = 0.05, 4
#: Seconds per cubed number of inputs before an ascent.
SET_UP_CUBIC = 2.5e-10
#: Layers of more inputs get their diagonals without second derivatives.
LARGE = 512


@dataclass(frozen=True, eq=False)
class CodebookRelaxation:
    """A dual point.

    Attributes
    ----------
    value : float
        Its bound, in float64.
    z, d : ndarray of shape (n,)
    """

    value: float
    z: Float
    d: Float


@dataclass(frozen=True, eq=False)
class _Piece:
    """One evaluation: the value at the points, a supergradient, and the weights of the best clustering."""

    value: float
    points: Float
    slope: Float
    weights: Float


class _Surface:
    """The bound as a function of the points x, for one diagonal.

    Attributes
    ----------
    usable : bool
        False where H − D is numerically not positive definite.
    """

    def __init__(self, gram: Float, target: Float, count: int, d: Float) -> None:
        self.target, self.d = target, d
        self._means = np.empty(min(count, len(target)))
        rest = gram.copy()
        rest[np.diag_indices(len(d))] -= d
        self._rest = rest
        factor = cholesky(rest) if np.all(d > 0) else None
        self.usable = factor is not None
        if factor is not None:
            self._inverse = symmetric_inverse(factor)
            self._metric = d[:, None] * self._inverse * d
            self._metric[np.diag_indices(len(d))] += d

    def evaluate(self, points: Float) -> _Piece:
        """The value and a supergradient."""
        order = np.argsort(points, kind="stable")
        cost, count = least_segments(points[order], self.d[order], len(self._means), self._means)
        levels = self._means[:count]
        weights = levels[nearest_of(levels, points)]
        move = points - self.target
        pull = self._metric @ move
        slope = 2.0 * self.d * (points - weights) - 2.0 * pull
        return _Piece(float(cost - move @ pull), points, slope, weights)

    def basis(self) -> Float | None:
        """Columns that are orthonormal for Q."""
        factor = cholesky(self._metric)
        if factor is None:
            return None
        return np.asfortranarray(scipy.linalg.solve_triangular(factor, np.eye(len(self.d)), lower=True, trans=1))

    def centre(self, points: Float) -> Float:
        """The centre z for the points x."""
        return np.asarray(self.target - self._inverse @ (self.d * (points - self.target)))

    def points(self, z: Float) -> Float:
        """The points x for a centre z."""
        return np.asarray(self.target - (self._rest @ (z - self.target)) / self.d)


def refine(
    gram: Float, target: Float, count: int, d: Float, rounds: int, late: Callable[[float], bool]
) -> CodebookRelaxation:
    """Alternate between the points and the diagonal; returns the best dual point met.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    count : int
        Levels.
    d : ndarray of shape (n,)
        A minorant.
    rounds : int
        Refits of the diagonal.
    late : callable
        Asked between steps whether one of so many seconds would end too late.
    """
    set_up = SET_UP_CUBIC * len(gram) ** 3

    def stop() -> bool:
        return late(0.0)

    # Powers of two: nothing is rounded.
    unit = 2.0 ** np.round(np.log2(np.mean(np.diag(gram))))
    length = 2.0 ** np.round(np.log2(np.max(np.abs(target)) or 1.0))
    gram, target, d = gram / unit, target / length, d / unit
    best = CodebookRelaxation(-np.inf, target, d)
    mean: Float | None = None
    gained, z = 0, target
    for number in range(rounds + 1):
        surface = _Surface(gram, target, count, d)
        if not surface.usable:
            break
        towards = surface.points(z) - target
        shares = (0.0, 0.3, 0.6, 1.0) if number else (0.0,)
        start = max((surface.evaluate(target + share * towards) for share in shares), key=lambda piece: piece.value)
        met = _ascend(surface, start, stop)
        top = max(met, key=lambda piece: piece.value)
        z = surface.centre(top.points)
        if top.value > best.value * (1.0 + PROGRESS if best.value > 0 else 1.0):
            gained = number
        if top.value > best.value:
            best = CodebookRelaxation(top.value, z, d)
        if number == rounds or number - gained >= STALLED or late(2.0 * set_up):
            break
        spread = _spread(surface, met, top)
        spread += FLOOR * float(np.mean(spread)) + np.finfo(np.float64).tiny
        mean = spread if mean is None else 0.5 * (mean + spread)
        d = next_diagonal(gram, mean, d, stop)
        if not np.any(d) or late(set_up):
            break
    return CodebookRelaxation(best.value * unit * length**2, best.z * length, best.d * unit)


def next_diagonal(gram: Float, coefficients: Float, start: Float | None, stop: Callable[[], bool] | None) -> Float:
    """A minorant of large Σ a_i d_i."""
    if len(gram) > LARGE:
        return certified_minorant(gram, ascend_newton(gram, coefficients, start, stop=stop))
    return maximize_minorant(gram, coefficients, start, relative_gap=0.2, stop=stop)


def _ascend(surface: _Surface, start: _Piece, stop: Callable[[], bool]) -> list[_Piece]:
    """The last evaluations of an ascent, the best one among them."""
    met, best = [start], start
    basis = surface.basis()
    here, since, reference = start, 0, start.value
    length = STEP * np.sqrt(abs(start.value))
    count, most = 0, EVALUATIONS + 2 * len(start.points)
    while basis is not None and count < most and since < PATIENCE and not stop():
        ahead = basis.T @ here.slope
        norm = float(np.linalg.norm(ahead))
        if not 0.0 < norm < np.inf or length == 0.0:
            break
        direction, steps, slope = basis @ (ahead / norm), 0, here.slope
        while True:
            here = surface.evaluate(here.points + length * direction)
            steps, since, count = steps + 1, since + 1, count + 1
            met.append(here)
            if here.value > best.value:
                best = here
            if not float(here.slope @ direction) > 0.0 or count >= most:
                break
            if steps % 3 == 0:
                length *= GROWTH
        if best.value > reference + PROGRESS * abs(reference):
            since, reference = 0, best.value
        if steps == 1:
            length *= DECAY
        turn = basis.T @ (here.slope - slope)
        size = float(np.linalg.norm(turn))
        if 0.0 < size < np.inf:
            turn /= size
            basis = scipy.linalg.blas.dger(1.0 / DILATION - 1.0, basis @ turn, turn, a=basis, overwrite_a=True)
        del met[: -4 * MOST_NEAR]
    return [*met, best]


def _spread(surface: _Surface, met: list[_Piece], top: _Piece) -> Float:
    """Mean squared distances of the weights from their mean, over the clusterings that balance each other."""
    near = [piece for piece in met if piece.value >= top.value - NEAR * abs(top.value)][-MOST_NEAR:]
    weights = np.array([piece.weights for piece in near])
    basis = surface.basis()
    share = np.full(len(near), 1.0 / len(near))
    if basis is not None:
        slopes = basis.T @ np.array([piece.slope for piece in near]).T
        size = float(np.linalg.norm(slopes)) / np.sqrt(len(near)) or 1.0
        rows = np.vstack([slopes / size, np.full(len(near), 10.0)])
        try:
            found, _ = nnls(rows, np.append(np.zeros(len(rows) - 1), 10.0))
        except RuntimeError:
            # Too many iterations: any shares will do.
            found = share
        if found.sum() > 0:
            share = found / found.sum()
    return np.asarray(share @ (weights - share @ weights) ** 2)
