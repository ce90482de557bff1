"""Block-diagonal minorants by Newton's method in single precision, not proven here (docs/bounds.md).

Maximises Σ_g ⟨A_g, B_g⟩ + μ logdet(H − B) + μ Σ_g logdet B_g for falling μ, as `ascend_newton` does for diagonals. With
T = (H − B)⁻¹ the Hessian takes a block-diagonal X to (T X T)_gg + B_g⁻¹ X_g B_g⁻¹; Newton's systems are solved by
conjugate gradients, whose products cost n²m for blocks of m inputs, with each block's own part as preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.lanczos import extreme_values
from layerbounds.bounds.minorants.newton import (
    CHANGE,
    EXPONENT,
    FACTORS,
    FALLS,
    GAIN,
    GAP,
    INSIDE,
    KEEP,
    LANCZOS,
    POWERS,
    RISES,
    SHARE,
    STEPS,
    choose_step,
    reached,
)
from layerbounds.bounds.minorants.newton import PRODUCTS as MULTIPLICATIONS
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite, shrink_until
from layerbounds.cancellation import checkpoint
from layerbounds.kernels.arithmetic import CPU, DOUBLE, Processor

#: Conjugate gradients: the residual that is small enough, relative, and the products that are spent at most.
TOLERANCE, PRODUCTS = 3e-2, 12
#: Blocks whose rows of T X T are computed together.
TOGETHER = 16
#: Weight of each direction relative to the mean, and least weight of a block in the family of starts.
SIDE, LEAST = 1e-3, 1e-2
#: Share of the way to the boundary of a start that is given.
KEPT = 0.95


def ascend_newton_blocks(
    gram: Float,
    members: Sequence[Int],
    gradients: Sequence[Float],
    start: Sequence[Float] | None = None,
    *,
    steps: int = STEPS,
    relative_gap: float = GAP,
    stop: Callable[[], bool] | None = None,
) -> list[Float] | None:
    """Approximately maximise Σ ⟨A_g, B_g⟩ over the block-diagonal matrices 0 ≺ B ≺ gram.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Positive definite.
    members : sequence of ndarray
        Inputs of each block; together all inputs.
    gradients : sequence of ndarray
        Positive semidefinite A_g.
    start : sequence of ndarray, optional
        Blocks to start from where they are better than what is found without them.
    steps : int
        Newton steps at most.
    relative_gap : float
        Ends when the duality gap is about below this share of the value.
    stop : callable, optional
        Asked before each step whether to end with what there is.

    Returns
    -------
    list of ndarray or None
        Blocks, together below the Gram matrix to the digit, but for the caller to prove; None where it is singular.
    """
    scale = np.sqrt(np.diag(gram))
    layout = _Layout.of(members)
    normal = [a * np.outer(scale[m], scale[m]) for m, a in zip(members, gradients, strict=True)]
    mean = sum(float(np.trace(a)) for a in normal) / len(gram)
    a = layout.padded(normal, 0.0) / (mean if mean > 0 else 1.0)
    a += SIDE * np.eye(layout.size)
    first = None
    if start is not None:
        first = layout.padded([b / np.outer(scale[m], scale[m]) for m, b in zip(members, start, strict=True)], 0.5)
    for place in (CPU, DOUBLE):
        found = _Ascent(layout.scaled(gram, scale), a, place).run(first, steps, relative_gap, stop)
        if found is None:
            continue
        first = found
        blocks = [found[g, : len(m), : len(m)] * np.outer(scale[m], scale[m]) for g, m in enumerate(members)]
        for share in KEEP:
            if _is_below(gram, members, blocks, share):
                return [share * b for b in blocks]
    if first is None:
        return None
    share = shrink_until(lambda x: _is_below(gram, members, blocks, float(x[0])), np.ones(1))[0]
    return [share * b for b in blocks] if share > 0 else None


def _is_below(gram: Float, members: Sequence[Int], blocks: Sequence[Float], share: float) -> bool:
    matrix = gram.copy()
    for m, b in zip(members, blocks, strict=True):
        matrix[np.ix_(m, m)] -= share * b
    return is_positive_semidefinite(matrix)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Blocks of one size, the smaller ones filled up with inputs that nothing else depends on."""

    rows: Int
    size: int

    @classmethod
    def of(cls, members: Sequence[Int]) -> _Layout:
        size = max(len(m) for m in members)
        rows = np.full((len(members), size), -1)
        for row, m in zip(rows, members, strict=True):
            row[: len(m)] = m
        return cls(rows.ravel(), size)

    def padded(self, blocks: Sequence[Float], filling: float) -> Float:
        full = np.repeat((filling * np.eye(self.size))[None], len(blocks), axis=0)
        for target, b in zip(full, blocks, strict=True):
            target[: len(b), : len(b)] = b
        return full

    def scaled(self, gram: Float, scale: Float) -> Float:
        inside = self.rows >= 0
        matrix = np.eye(len(self.rows), dtype=np.float64)
        at = self.rows[inside]
        matrix[np.ix_(inside, inside)] = gram[np.ix_(at, at)] / np.outer(scale[at], scale[at])
        return matrix


def _transposed(matrices: Any) -> Any:
    return np.swapaxes(matrices, -1, -2)


def _push(steps: Any, vectors: Any) -> Any:
    """Block-diagonal matrices of shape (blocks, m, m, k) times the columns of an array of shape (n, k)."""
    groups, size, _, count = steps.shape
    shaped = vectors.reshape(groups, size, count)
    return np.einsum("gabk,gbk->gak", steps, shaped).reshape(-1, count)


class _Ascent:
    """The ascent on a Gram matrix with a diagonal of ones, the inputs of each block being neighbours."""

    def __init__(self, gram: Float, gradients: Float, arithmetic: Processor) -> None:
        self._arithmetic = arithmetic
        self._gram, self._a = arithmetic.put(gram), arithmetic.put(gradients)
        self._groups, self._size = gradients.shape[:2]
        self._probe = arithmetic.put(np.random.default_rng(0).normal(size=len(gram)))

    def run(
        self, start: Float | None, steps: int, relative_gap: float, stop: Callable[[], bool] | None
    ) -> Float | None:
        """The best blocks met, shape (blocks, m, m); None where the matrix is singular in this precision."""
        found = self._started(start)
        if found is None:
            return None
        blocks, inverse = self._multiplied(*found)
        best, most = blocks, self._value(blocks)
        mu = 2.0 * most / len(self._gram)
        for step in range(steps):
            checkpoint()
            if stop is not None and stop():
                break
            last = step == steps - 1 or 2.0 * len(self._gram) * mu <= relative_gap * most
            following = self._newton(blocks, inverse, mu, last)
            if following is None:
                break
            blocks, inverse, mu = following
            if self._value(blocks) > most:
                best, most = blocks, self._value(blocks)
            if last:
                break
        return self._arithmetic.get(best)

    def _value(self, blocks: Any) -> float:
        return float((self._a * blocks).sum())

    def _diagonal(self, matrix: Any) -> Any:
        """Views of the diagonal blocks."""
        at = np.arange(self._groups)
        return matrix.reshape(self._groups, self._size, self._groups, self._size)[at, :, at, :]

    def _inverse(self, blocks: Any) -> Any | None:
        matrix = self._gram.copy()
        at = np.arange(self._groups)
        matrix.reshape(self._groups, self._size, self._groups, self._size)[at, :, at, :] -= blocks
        return self._arithmetic.inverse(matrix)

    def _started(self, start: Float | None) -> tuple[Any, Any] | None:
        inverse = self._arithmetic.inverse(self._gram.copy())
        if inverse is None:
            return None
        try:
            alone = np.linalg.inv(self._diagonal(inverse))
        except np.linalg.LinAlgError:
            return None
        alone = 0.5 * (alone + _transposed(alone))
        worth = (self._a * alone).sum(axis=(1, 2))
        weights = np.maximum((worth / worth.max())[:, None] ** np.array(POWERS, dtype=worth.dtype), LEAST)
        family = alone[..., None] * weights[:, None, None, :]
        if start is not None:
            family = np.concatenate([family, self._arithmetic.put(start)[..., None]], axis=-1)
        _, longest = extreme_values(inverse, family, self._probe, LANCZOS + 4, self._arithmetic, _push)
        values = np.einsum("gab,gabk->k", self._a, family) / longest
        j = int(np.argmax(np.where(np.isfinite(values), values, 0.0)))
        # A start that is given may be near the best one.
        share = (KEPT if j == len(POWERS) else INSIDE) / float(longest[j])
        while np.isfinite(share) and share * longest[j] > 1e-9:
            blocks = family[..., j] * share
            found = self._inverse(blocks)
            if found is not None:
                return blocks, found
            share *= 0.5
        return None

    def _multiplied(self, blocks: Any, inverse: Any) -> tuple[Any, Any]:
        """Blocks rescaled as `ascend_newton` rescales entries, while that gains."""
        for _ in range(MULTIPLICATIONS):
            ratio = (self._a * blocks).sum(axis=(1, 2)) / (self._diagonal(inverse) * blocks).sum(axis=(1, 2))
            moved = blocks * np.maximum((ratio / ratio.max()) ** EXPONENT, LEAST)[:, None, None]
            factors = np.array(FACTORS) * (self._value(blocks) / self._value(moved))
            candidates = moved[..., None] * factors.astype(moved.dtype) - blocks[..., None]
            _, longest = extreme_values(inverse, candidates, self._probe, LANCZOS, self._arithmetic, _push)
            fitting = np.flatnonzero(longest <= SHARE)
            if fitting.size == 0 or FACTORS[fitting[-1]] < GAIN:
                break
            moved = blocks + candidates[..., int(fitting[-1])]
            found = self._inverse(moved)
            if found is None:
                break
            blocks, inverse = moved, found
        return blocks, inverse

    def _newton(self, blocks: Any, inverse: Any, mu: float, last: bool) -> tuple[Any, Any, float] | None:
        try:
            half = np.linalg.cholesky(blocks)
            back = np.linalg.inv(half)
        except np.linalg.LinAlgError:
            return None
        inverted = _transposed(back) @ back
        right = np.stack([self._a, inverted - self._diagonal(inverse)])
        solved = self._solve(inverse, half, inverted, right)
        if solved is None:
            return None
        factors = np.array(RISES + FALLS)
        pulls = np.where(factors < 1.0, 2.0 - factors, 1.0 / factors) / mu
        steps = pulls.astype(solved.dtype)[:, None, None, None] * solved[0] + solved[1]
        # In coordinates that make B the identity no eigenvalue may fall to −1.
        values, vectors = np.linalg.eigh(back @ steps @ _transposed(back))
        values = np.clip(values, -(1.0 - 1.0 / CHANGE), CHANGE - 1.0)
        basis = half @ vectors
        steps = (basis * values[..., None, :]) @ _transposed(basis)
        smallest, longest = extreme_values(
            inverse, np.ascontiguousarray(np.moveaxis(steps, 0, -1)), self._probe, LANCZOS, self._arithmetic, _push
        )
        j, length = choose_step(smallest, longest, last)
        while length > 1e-6:
            moved = blocks + steps[j] * float(length)
            moved = 0.5 * (moved + _transposed(moved))
            found = self._inverse(moved)
            if found is not None:
                return moved, found, mu * reached(float(factors[j]), length)
            length *= 0.5
        return None

    def _solve(self, inverse: Any, half: Any, inverted: Any, right: Any) -> Any | None:
        """Conjugate gradients for two right sides of shape (2, blocks, m, m)."""
        try:
            values, vectors = np.linalg.eigh(_transposed(half) @ self._diagonal(inverse) @ half)
        except np.linalg.LinAlgError:
            return None
        basis = half @ vectors
        denominator = values[:, :, None] * values[:, None, :] + 1.0

        def precondition(x: Any) -> Any:
            return basis @ ((_transposed(basis) @ x @ basis) / denominator) @ _transposed(basis)

        found, residual = np.zeros_like(right), right.copy()
        direction = precondition(residual)
        size = (residual * direction).sum(axis=(1, 2, 3), keepdims=True)
        enough = TOLERANCE**2 * size + 1e-30
        for _ in range(PRODUCTS):
            product = self._sandwich(inverse, direction) + inverted @ direction @ inverted
            length = size / ((direction * product).sum(axis=(1, 2, 3), keepdims=True) + 1e-30)
            found += length * direction
            residual -= length * product
            preconditioned = precondition(residual)
            following = (residual * preconditioned).sum(axis=(1, 2, 3), keepdims=True)
            if np.all(following <= enough):
                break
            direction = preconditioned + (following / (size + 1e-30)) * direction
            size = following
        return found if np.all(np.isfinite(found)) else None

    def _sandwich(self, inverse: Any, blocks: Any) -> Any:
        """The diagonal blocks of T X T for X of shape (k, blocks, m, m)."""
        groups, size = self._groups, self._size
        result = np.empty_like(blocks)
        space = np.empty((min(TOGETHER, groups) * size, len(inverse)), dtype=blocks.dtype)

        def by_column(part: Any) -> Any:
            """A view of shape (groups, rows, m): BLAS reads and writes it as it lies."""
            return part.reshape(-1, groups, size).swapaxes(0, 1)

        for i in range(0, groups, TOGETHER):
            j = min(i + TOGETHER, groups)
            rows = inverse[i * size : j * size]
            pushed = space[: len(rows)]
            left, right = (part.reshape(j - i, size, -1) for part in (pushed, rows))
            for k, x in enumerate(blocks):
                np.matmul(by_column(rows), x, out=by_column(pushed))
                np.matmul(left, _transposed(right), out=result[k, i:j])
        return result
