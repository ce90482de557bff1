"""How much rounding can have hidden from the search over all scales (derivation: docs/numerics.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.kernels.factorization import UNIT, gamma
from layerbounds.search.quantization.allowance import form_error
from layerbounds.search.quantization.preparation import Preparation
from layerbounds.search.scale.rays import RayTree

#: Where the computed inverse is not known better than this, its diagonal says nothing.
WORST_INVERSE = 0.1
#: Up to this the trace of the inverse is at most twice the computed one, on which all other bounds rest: in
#: unit-diagonal form the residual of the inverse is at most this over √2 in the Frobenius norm.
WORST_TRACE = 0.7


def spread(prep: Preparation) -> Float:
    """Upper bounds on the diagonal of the inverse, in the order of the search; infinite where it is too inexact.

    Weights of an error below C differ from the target by at most √(C·(H⁻¹)_ii) each.
    """
    if not prep.covariance_error < WORST_INVERSE or np.any(prep.shift):
        return np.full(prep.size, np.inf)
    return np.asarray(np.diag(prep.covariance) * (1.0 + 2.5 * prep.covariance_error))


def farthest(prep: Preparation, target: Float, cut: float, limit: float) -> Float:
    """The largest |v_i| of weights whose error is below the cut, in the order of the search."""
    around = spread(prep)
    if not np.all(np.isfinite(around)):
        return np.full(len(target), limit)
    return np.asarray(np.minimum(limit, np.abs(target) + np.sqrt(cut * around)))


def float_charge(prep: Preparation, target: Float, cut: float, limit: float) -> float:
    """What single roundings v_i = fl(s·q_i) can lower an error just below ``cut``, in the units of the Gram matrix.

    ‖v − sq‖_H ≤ ρ = u·Σ √H_ii·|v_i|, so f(v) < (√cut − ρ)² only if f(sq) < cut.
    """
    reach = farthest(prep, target, cut, limit)
    rho = 2.0 * UNIT * float(np.sqrt(np.diag(prep.gram)) @ reach)
    return 2.0 * float(np.sqrt(cut)) * rho


def shift_charge(prep: Preparation, target: Float, largest: float) -> float:
    """What the shift of a singular Gram matrix adds to weights of at most a given size, in its units."""
    if not np.any(prep.shift):
        return 0.0
    return 1.0001 * float(prep.shift @ (largest + np.abs(target)) ** 2)


def ray_allowance(tree: RayTree, cut: float, energy: float) -> float:
    """Bound on how far computed values of a cell lie above the exact ones, for every point below the cut.

    Parameters
    ----------
    tree : RayTree
        After the cell was searched.
    cut, energy : float
        C and f(0) in units of (the scale at t = 1)².

    Returns
    -------
    float
        In the same units; infinite where the inverse of the Gram matrix is not known well enough.
    """
    ray, prep, n = tree.ray, tree.ray.prep, tree.ray.size
    if not prep.covariance_error < WORST_TRACE:
        return np.inf
    # Rounding can make the cut of an ill-conditioned cell negative.
    cut = max(cut, 0.0)
    size = np.abs(ray.target)
    energy = max(energy, 0.0) + gamma(4 * n + 16) * float(size @ (np.abs(prep.gram) @ size))
    half, last, first = tree.half, tree.middle + tree.half, tree.middle - tree.half
    covariance = np.diag(prep.covariance)
    norms = np.sqrt(np.diag(prep.gram))
    # √F at the ends of a node's interval, for a completion that is below the cut somewhere in it; from the root on.
    wide = np.maximum(tree.wide[1:], tree.wide[:-1])[::-1]
    # Poor tilts lower what is left for the distance to the centre: ‖q − z‖² ≤ F − (psi + floors).
    hollow = float(np.sqrt(tree.deficit))
    roots = float(np.sqrt(cut)) * last + float(np.sqrt(energy)) * wide + hollow
    root = float(np.sqrt(cut) * last + 2.0 * np.sqrt(energy) * half) + hollow
    z, slope = tree.root_centre
    extent = last * (np.abs(ray.target) + np.sqrt(cut * covariance)) + root * np.sqrt(covariance)
    extent += np.abs(z) + half * np.abs(slope).max(axis=0) + last * np.abs(ray.target)
    moves = np.abs(np.diagonal(slope[1:]))
    # How far the centres are off in the norm of H after each step.
    steps = 8.0 * UNIT * float(norms @ extent) + (prep.shift_error * (tree.reach + half * moves))[::-1]
    # With the joint minorant of forms and variables, the forms' values at the centre count as its coordinates do.
    forms = form_error(tree.cuts, extent, n + 4.0)
    distance = forms + 32.0 * UNIT * float(norms @ extent) + tree.root_error + np.cumsum(steps)
    magnitude = 4.0 * root**2 + 2.0 * tree.tilt_size + tree.root_size
    partial = 16.0 * UNIT * (n + 8) * magnitude + 64.0 * UNIT * float(tree.extreme[0])
    error = 2.0 * (float(np.max(2.0 * roots * distance + distance**2)) + partial)
    return error / first**2
