"""Weights for a free codebook: weighted k-means, levels and codes in turns, and kicks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from layerbounds.arrays import Float, Int
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.kernels.quantization.rounding import beam, coordinate_descent
from layerbounds.problems.free_codebook import best_levels, nearest_of
from layerbounds.search.free_codebook.preparation import Preparation
from layerbounds.search.quantization.incumbents import beam_width

#: Inputs up to which codes move in pairs; turns of levels and codes, and the relative gain below which they end.
PAIRS, TURNS, PROGRESS = 1024, 60, 1e-9
#: Beam searches at the start, and partial assignments kept by one after a kick.
BEAMS, KICK_WIDTH = 8, 16
#: Noise of a kick of the levels relative to their gaps; a kick changes at most one code in so many.
NOISE, KICKED = 0.1, 16
#: A move after which the levels are hardly determined is not tried.
FLAT = 1e-9


class Incumbents:
    """The best weights of one channel so far.

    Levels for given codes are least squares, and codes for given levels coordinate descent on the true error. Kim et
    al. (SqueezeLLM, arXiv 2306.07629) stop after k-means with the diagonal of a Hessian.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,)
    count : int
        Levels.
    seed : list of int
    stop : callable
        Asked between steps whether to end.

    Attributes
    ----------
    weights : ndarray of shape (n,)
    error : float
    """

    def __init__(self, gram: Float, target: Float, count: int, seed: list[int], stop: Callable[[], bool]) -> None:
        self.gram, self.target, self.count = np.ascontiguousarray(gram), target, count
        self._pull, self._stop = self.gram @ target, stop
        self._random = np.random.default_rng(seed)
        self.weights = np.full(len(target), float(np.mean(target)))
        self.error = self.value(self.weights)

    def value(self, weights: Float) -> float:
        """(v − w)ᵀH(v − w) in float64."""
        deviation = weights - self.target
        return float(deviation @ (self.gram @ deviation))

    def offer(self, weights: Float) -> bool:
        """Keep allowed weights if they are better than the best so far."""
        error = self.value(weights)
        if not error < self.error:
            return False
        self.error, self.weights = error, weights
        return True

    def begin(self, preparation: Preparation, warm_start: Float | None) -> None:
        """Weighted k-means with several weights, rounding in the order of GPTQ, and what was given."""
        if warm_start is not None:
            self.improve(warm_start)
        for weights in (np.diag(self.gram), preparation.d, np.ones(len(self.target))):
            if np.any(weights > 0):
                levels = best_levels(self.target, weights, self.count)
                start = levels[nearest_of(levels, self.target)]
                self.offer(start)
                if self._stop():
                    return
                self.improve(start)
        self._preparation = preparation
        for _ in range(BEAMS):
            if self._stop() or not self.improve(self._beam(np.unique(self.weights), beam_width(len(self.target)))):
                break

    def _beam(self, levels: Float, width: int) -> Float:
        """Weights on these levels by a beam search in the order of GPTQ."""
        preparation = self._preparation
        order = preparation.order
        choice = np.zeros(len(order), dtype=np.int64)
        table, many = self._table(levels)
        target = np.ascontiguousarray(self.target[order])
        beam(width, preparation.pivots, preparation.shifts, target, table, many, choice)
        rounded = np.empty(len(order))
        rounded[order] = levels[choice]
        return rounded

    def improve(self, weights: Float) -> bool:
        """Levels and codes in turns, then single codes with all levels; whether the result is the best so far."""
        before = np.inf
        for _ in range(TURNS):
            weights = self._filled(weights)
            levels = np.unique(weights)
            choice = nearest_of(levels, weights)
            table, many = self._table(levels)
            coordinate_descent(self.gram, self.target, table, many, choice, len(choice) <= PAIRS, 50 * len(choice))
            weights = self.refit(levels, choice)
            error = self.value(weights)
            if not error < before * (1.0 - PROGRESS):
                break
            before = error
            if self._stop():
                break
        levels = np.unique(weights)
        choice = nearest_of(levels, weights)
        if self._descend(choice, levels):
            weights = self.refit(levels, choice)
        return self.offer(weights)

    def _descend(self, choice: Int, levels: Float) -> int:
        """Change single codes, all levels refitted each time, until none is better; changes ``choice``.

        With A the inputs of each level, G = AᵀHA, c its levels and h the slope at Ac, moving input i by τ from level a
        to b changes the least error by that of a quadratic in the other levels, whose matrix is G and two rank-one
        terms of e_b − e_a and AᵀHe_i (docs/free-codebooks.md). Returns the number of moves.
        """
        gram, n, k = self.gram, len(choice), len(levels)
        every, diagonal = np.arange(n), np.diag(self.gram)
        member = np.zeros((n, k))
        member[every, choice] = 1.0
        reach = member.T @ gram
        floor = -1e-12 * max(self.error, 0.0)
        moves = 0
        while moves < 20 * n and not self._stop():
            factor = cholesky(np.array([reach[:, choice == level].sum(axis=1) for level in range(k)]))
            if factor is None:
                break
            inverse = symmetric_inverse(factor)
            c = inverse @ np.bincount(choice, weights=self._pull, minlength=k)
            slope = c @ reach - self._pull
            spread = inverse @ reach
            own = np.diag(inverse)
            # Of each input and each level that it may move to.
            step = c[None, :] - c[choice][:, None]
            dd = own[None, :] + own[choice][:, None] - 2.0 * inverse[choice]
            dg = (spread - spread[choice, every]).T
            gg = np.sum(reach * spread, axis=0)[:, None]
            h = diagonal[:, None]
            alpha = slope[:, None] + h * step
            u, v = alpha * dd + step * dg, alpha * dg + step * gg
            determinant = dd * (gg - h) - (1.0 + dg) ** 2
            inner = (gg - h) * u**2 - 2.0 * (1.0 + dg) * u * v + dd * v**2
            alone = np.bincount(choice, minlength=k)[choice] == 1
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                change = 2.0 * slope[:, None] * step + h * step**2 - (alpha * u + step * v) + inner / determinant
            change[~(determinant < -FLAT) | alone[:, None]] = 0.0
            change[every, choice] = 0.0
            best = int(np.argmin(change))
            i, level = divmod(best, k)
            if not change[i, level] < floor:
                break
            reach[choice[i]] -= gram[i]
            reach[level] += gram[i]
            choice[i] = level
            moves += 1
        return moves

    def refit(self, levels: Float, choice: Int) -> Float:
        """The codes with levels of least squares."""
        used, labels = np.unique(choice, return_inverse=True)
        member = np.zeros((len(choice), len(used)))
        member[np.arange(len(choice)), labels] = 1.0
        matrix, right = member.T @ (self.gram @ member), member.T @ self._pull
        factor = cholesky(matrix)
        if factor is None:
            found = np.linalg.lstsq(matrix, right, rcond=None)[0]
        else:
            found = scipy.linalg.cho_solve((factor, True), right, check_finite=False)
        kept = levels[used]
        before, after = np.asarray(kept[labels]), np.asarray(found[labels], dtype=np.float64)
        return after if self.value(after) < self.value(before) else before

    def kick(self) -> bool:
        """Change the best weights at random and improve them; whether that is better."""
        levels, choice = np.unique(self.weights, return_inverse=True)
        random, kind = self._random, int(self._random.integers(3))
        if kind == 0 and len(levels) > 1:
            levels = levels + NOISE * float(np.mean(np.diff(levels))) * random.normal(size=len(levels))
            weights = levels[choice]
        elif kind == 1 and len(levels) > 1:
            many = int(random.integers(2, max(len(choice) // KICKED, 2) + 1))
            moved = random.choice(len(choice), min(many, len(choice)), replace=False)
            choice = choice.copy()
            choice[moved] = np.clip(choice[moved] + random.choice([-1, 1], len(moved)), 0, len(levels) - 1)
            weights = self.refit(levels, choice)
        else:
            # A level gives way to one at some weight's own target.
            levels[random.integers(len(levels))] = self.target[random.integers(len(choice))]
            levels = np.unique(levels)
            weights = levels[nearest_of(levels, self.target)]
        if random.integers(2):
            weights = self._beam(np.unique(weights), KICK_WIDTH)
        return self.improve(weights)

    def _filled(self, weights: Float) -> Float:
        """With a level more, where not all are used: a single weight that moves to where it is best."""
        missing = self.count - len(np.unique(weights))
        if missing <= 0:
            return weights
        step = -(self.gram @ (weights - self.target)) / np.diag(self.gram)
        # The best of them; the others follow in the next turns, where they still gain something.
        best = int(np.argmax(step**2 * np.diag(self.gram)))
        moved = weights.copy()
        moved[best] += step[best]
        return moved

    def _table(self, levels: Float) -> tuple[Float, Int]:
        n = len(self.target)
        return np.ascontiguousarray(np.broadcast_to(levels, (n, len(levels)))), np.full(n, len(levels), dtype=np.int64)
