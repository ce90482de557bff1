"""What the pruning heuristics share: their view of a channel, or of rows that share a mask, and the last step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float, Int
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.kernels.factorization import cholesky
from layerbounds.kernels.successive import damped
from layerbounds.problems.patterns import Structure


@dataclass(frozen=True, eq=False)
class PruningView:
    """What a heuristic sees of one output channel to prune, or of several with one mask.

    Live inputs only, in the layer's order. Weights have shape (n,); those of channels that share a mask (rows, n).

    Attributes
    ----------
    gram : ndarray of shape (n, n)
        Undamped.
    target : ndarray of shape (n,) or (rows, n)
        Unconstrained minimiser of the error.
    original : ndarray of shape (n,) or (rows, n)
        Dense weights: what kept weights are where ``refit`` is False.
    structure : Structure
        Units, groups and capacities.
    refit : bool
        Whether the problem lets kept weights change.
    rng : numpy.random.Generator
        The only source of randomness.
    """

    gram: Float
    target: Float
    original: Float
    structure: Structure
    refit: bool
    rng: np.random.Generator


def largest(view: PruningView, score: Float) -> Bool:
    """Mask, shape (n,), of the inputs whose units have the largest sums of squared scores, as each group may keep."""
    return view.structure.keep_largest(unit_sums(view.structure, score**2))


def unit_sums(structure: Structure, values: Float) -> Float:
    """Sums over the inputs of each unit, and over the rows, of values of shape (n,) or (rows, n)."""
    total = np.sum(np.atleast_2d(values), axis=0)
    return np.asarray(np.bincount(structure.unit, weights=total, minlength=len(structure.group)), dtype=np.float64)


def room(structure: Structure, kept: Bool) -> Int:
    """How many more units each group may keep beside those kept, shape (units,)."""
    return np.asarray(structure.capacity - np.bincount(structure.group[kept], minlength=len(structure.capacity)))


def refit_on(view: PruningView, mask: Bool) -> Float:
    """Weights of least error on a mask of shape (n,) (minimum norm where they are not unique)."""
    weights = np.zeros(view.target.shape)
    s = np.flatnonzero(mask)
    if len(s) == len(mask):
        return view.target.copy()
    if len(s):
        block = np.ascontiguousarray(view.gram[np.ix_(s, s)])
        right = view.gram[s] @ view.target.T
        factor = cholesky(block)
        if factor is not None:
            weights[..., s] = scipy.linalg.cho_solve((factor, True), right, check_finite=False).T
        else:
            weights[..., s] = scipy.linalg.lstsq(block, right, check_finite=False)[0].T
    return weights


def finish(view: PruningView, mask: Bool, refit: bool = True) -> Float:
    """Kept weights: refitted where problem and method want that, else the original ones."""
    return refit_on(view, mask) if view.refit and refit else np.where(mask, view.original, 0.0)


def finish_pass(view: PruningView, mask: Bool, weights: Float, refit: bool) -> Float:
    """What a method ends with that changes kept weights itself: those, where the problem allows it, or `finish`."""
    return np.where(mask, weights, 0.0) if view.refit and not refit else finish(view, mask, refit)


def damped_inverse(gram: Float, fraction: float) -> Float:
    """(H + λI)⁻¹ with λ a fraction of the mean diagonal, raised tenfold while the factorization breaks down."""
    while True:
        factor = cholesky(damped(gram, fraction))
        if factor is not None:
            return np.asarray(scipy.linalg.cho_solve((factor, True), np.eye(len(gram)), check_finite=False))
        fraction = max(10.0 * fraction, 1e-10)


def inverse_factor(gram: Float, fraction: float) -> Float:
    """Upper triangular U with UᵀU = (H + λI)⁻¹; λ as in `damped_inverse`, until that can be factorized, too."""
    while (lower := cholesky(damped_inverse(gram, fraction))) is None:
        fraction = max(10.0 * fraction, 1e-10)
    return np.ascontiguousarray(lower.T)


def single_inputs(view: PruningView, name: str) -> None:
    """Refuse patterns whose units hold several inputs."""
    if len(view.structure.group) != len(view.structure.unit):
        raise UnsupportedProblemError(
            f"heuristic {name!r} cannot treat block patterns; choose another one (`layerbounds heuristics`)."
        )
