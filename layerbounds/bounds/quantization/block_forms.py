"""Blocks of inputs and integer forms in one bound at the root, for uniform grids in grid units.

For any z and multipliers ρ, and B block-diagonal with B + V diag(g) Vᵀ ⪯ H,

    f(q) ≥ f(z) + Σ_g min over the block's points of 2(h − Vρ)_gᵀ(q − z)_g + (q − z)_gᵀB_g(q − z)_g
                + Σ_j min over integers t of 2ρ_j(t − y_j) + g_j(t − y_j)²,   h = H(z − w), y = Vᵀz.

z and ρ, B, g and the forms are improved by turns: alternating directions, block coordinate ascent and ascent on single
weights inside one log-determinant barrier, and separation with its dual matrix (docs/block-relaxation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.blocks import BlockMinorant, improve_blocks, make_minorant
from layerbounds.bounds.quantization.block_boxes import BlockBoxes, BlockState
from layerbounds.bounds.quantization.block_relaxation import (
    FIRST_BARRIER,
    ITERATIONS,
    LAST_BARRIER,
    BlockRelaxation,
    evaluate_blocks,
    lifted,
)
from layerbounds.bounds.quantization.cuts import (
    by_columns,
    certified_weights,
    fractional_product,
    separate_at,
    weighted_square,
)
from layerbounds.bounds.quantization.split_relaxation import ADDED, FLOOR, KEPT, SplitWeights
from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.kernels.quantization.form_weights import ascend_weights
from layerbounds.kernels.quantization.relaxation import cells
from layerbounds.proofs import FormTerms

#: Refits of the weights; after every so many of them new forms are separated, until that share of all.
ROUNDS, SEPARATE_EVERY, SEPARATE_IN = 30, 2, 0.8
#: Share of the given weights to start from, and the first weight of a new form relative to the largest feasible one.
INSIDE, FIRST_WEIGHT = 0.9, 0.05
#: Factor of the forms' weights while rounding leaves no factorization, and how often it is tried.
STEP_BACK, MOST_STEPS_BACK = 0.98, 200


def refine_block_forms(
    gram: Float,
    covariance: Float,
    origin: Float,
    levels: Float,
    count: Int,
    split: SplitWeights,
    point: Float,
    members: Sequence[Int],
    rounds: int = ROUNDS,
    spent: Callable[[], float] = lambda: 0.0,
) -> BlockRelaxation | None:
    """Alternate between (z, ρ), the weights and new forms; returns the best dual point met.

    Parameters
    ----------
    gram, covariance : ndarray of shape (n, n)
        H, positive definite, and its inverse.
    origin : ndarray of shape (n,)
        w.
    levels : ndarray of shape (levels, n)
        0, 1, 2, … in every column, padded with the last level.
    count : ndarray of int64, shape (n,)
    split : SplitWeights
        Proven weights of the units and of forms, perhaps none, to start from.
    point : ndarray of shape (n,)
        First z.
    members : sequence of ndarray of int64
        Inputs of each block.
    rounds : int
        Refits of the weights at most.
    spent : callable
        Share of the time for all this that has passed: the barrier falls with it, and the work ends with it.

    Returns
    -------
    BlockRelaxation or None
        None where there is no positive definite minorant to start from, it was stopped before the first bound, or the
        blocks' points are too many to search.
    """
    try:
        fit = _Fit(gram, covariance, origin, levels, count, split, point, members)
    except _NothingToStartFromError:
        return None
    best: tuple[float, Float, Float, FormTerms] | None = None
    for number in range(rounds):
        share = spent()
        if share >= 1.0:
            break
        share = max(share, number / max(rounds - 1, 1))
        separate = number > 0 and number % SEPARATE_EVERY == 0 and share <= SEPARATE_IN
        boxes = fit.refit(FIRST_BARRIER * (LAST_BARRIER / FIRST_BARRIER) ** share, separate)
        if boxes is None:
            break
        value = fit.maximise(boxes)
        if value > (-np.inf if best is None else best[0]):
            terms = FormTerms(fit.forms, fit.weights.copy(), boxes.multipliers(fit.state, fit.z))
            best = value, fit.z.copy(), fit.minorant.matrix, terms
    if best is None:
        return None
    _, z, matrix, terms = best
    matrix, weights = certified_weights(gram, terms.forms, matrix, terms.weights)
    terms = FormTerms(terms.forms, weights, terms.multipliers)
    return evaluate_blocks(gram, origin, levels, count, z, members, matrix, terms)


class _NothingToStartFromError(Exception):
    """No positive definite minorant."""


class _Fit:
    """The weights, the point and the state of alternating directions, from one refit to the next."""

    def __init__(
        self,
        gram: Float,
        covariance: Float,
        origin: Float,
        levels: Float,
        count: Int,
        split: SplitWeights,
        point: Float,
        members: Sequence[Int],
    ) -> None:
        n = len(origin)
        self._gram, self._covariance, self._origin, self._members = gram, covariance, origin, members
        self._low, self._high = levels[0].copy(), levels[-1].copy()
        label = np.empty(n, dtype=np.int64)
        for g, m in enumerate(members):
            label[m] = g
        # Blocks say more than forms inside them.
        across = np.array([len(set(label[np.flatnonzero(v)])) > 1 for v in split.forms.T], dtype=np.bool_)
        self.forms, self.weights = split.forms[:, across], INSIDE * split.weights[across]
        below = gram - weighted_square(csr_array(self.forms), self.weights)
        found = make_minorant(below, members, np.diag(INSIDE * split.units)) if np.all(split.units > 0) else None
        if found is None:
            raise _NothingToStartFromError
        self.minorant: BlockMinorant = found
        self.z = np.clip(point, self._low, self._high)
        low, high = np.empty(n), np.empty(n)
        cells(levels, count, self.z, low, high)
        self._spreads = [np.diag(((self.z - low) * (high - self.z))[m]) for m in members]
        self._expected = fractional_product(self.z @ self.forms)
        boxes = BlockBoxes(gram, origin, members, self.minorant.matrix, self.forms, self.weights)
        if not boxes.usable:
            raise _NothingToStartFromError
        self.state: BlockState = boxes.start(self.z)

    def refit(self, barrier: float, separate: bool) -> BlockBoxes | None:
        """One pass over the blocks and the forms, new forms perhaps; None where a factorization fails."""
        square = weighted_square(csr_array(self.forms), self.weights)
        spreads = lifted(self._spreads)
        minorant = improve_blocks(self._gram - square, self._members, self.minorant, spreads, barrier)
        if minorant is None:
            return None
        self.minorant = minorant
        factor = cholesky(self._gram - minorant.matrix - square)
        if factor is None:
            return None
        inverse = symmetric_inverse(factor)
        expected = self._expected + FLOOR * float(np.mean(self._expected)) if len(self._expected) else self._expected
        total = sum(float(np.sum(a * b)) for a, b in zip(spreads, minorant.blocks, strict=True))
        weight = barrier * (total + float(expected @ self.weights)) / len(self.z)
        self.weights = self.weights.copy()
        ascend_weights(
            inverse, *by_columns(self.forms), self.weights, expected, weight,
            np.argsort(-expected * self.weights, kind="stable"),
        )  # fmt: skip
        if separate:
            self._separate(inverse, weight)
        for _ in range(MOST_STEPS_BACK):
            rest = self._gram - minorant.matrix - weighted_square(csr_array(self.forms), self.weights)
            if cholesky(rest) is not None:
                break
            self.weights = STEP_BACK * self.weights
        boxes = BlockBoxes(self._gram, self._origin, self._members, minorant.matrix, self.forms, self.weights)
        return boxes if boxes.usable else None

    def _separate(self, inverse: Float, weight: float) -> None:
        """New forms in, the least useful old ones out."""
        n, z, state = len(self.z), np.clip(self.z, self._low, self._high), self.state
        new = separate_at(weight * inverse, self._covariance, self.forms, z, int(ADDED * n))
        if not new.shape[1]:
            return
        use = self.weights * np.einsum("ij,ij->j", self.forms, inverse @ self.forms)
        kept = np.sort(np.argsort(-use, kind="stable")[: max(int(KEPT * n) - new.shape[1], 0)])
        reach = np.einsum("ij,ij->j", new, inverse @ new)
        self.weights = np.concatenate([self.weights[kept], FIRST_WEIGHT / reach])
        self.forms = np.hstack([self.forms[:, kept], new])
        self._expected = np.concatenate([self._expected[kept], fractional_product(z @ new)])
        state.y_forms = np.concatenate([state.y_forms[kept], z @ new])
        state.u_forms = np.concatenate([state.u_forms[kept], np.zeros(new.shape[1])])

    def maximise(self, boxes: BlockBoxes) -> float:
        """Alternating directions for these weights; returns the bound, and takes the spreads at z into account."""
        z = np.empty_like(self.z)
        boxes.iterate(self._low, self._high, self.state, z, ITERATIONS)
        value = boxes.bound(self._low, self._high, self.state, z, np.inf)
        self.z = z
        self._spreads = [
            0.5 * (old + new) for old, new in zip(self._spreads, boxes.spreads(self.state, z), strict=True)
        ]
        products = fractional_product(np.clip(z, self._low, self._high) @ self.forms)
        self._expected = 0.5 * (self._expected + products)
        return value
