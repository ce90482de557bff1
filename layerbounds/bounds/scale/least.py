"""Certified minima over all scales (docs/scales.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.objective import objective_interval
from layerbounds.bounds.scale.dual import Rays, scale_bound
from layerbounds.bounds.scale.leaf import leaf_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.proofs import Leaf, ScaleDual


def over_scales(gram: Float, target: Float, allowed: ScaledLevels, dual: ScaleDual) -> float:
    """From dual points that bound a range of scales each."""
    return scale_bound(gram, target, rays_of(allowed, dual), dual)


def rays_of(allowed: ScaledLevels, dual: ScaleDual) -> Rays:
    """The scales and codes that are allowed.

    Raises
    ------
    CertificationError
        If the dual point is not of this kind of zero points.
    """
    if (allowed.zero == "real") != bool(dual.dropped):
        raise CertificationError(
            "the backend returned an invalid dual point: real zero points leave out one input each."
        )
    return Rays(allowed.boxes(), allowed.group, allowed.limit, allowed.powers_of_two)


def visited(gram: Float, target: Float, allowed: ScaledLevels, leaf: Leaf) -> float:
    """The least error of the codes of some weights, at any scales and, where these are real numbers, zero points."""
    weights = np.asarray(leaf.weights, dtype=np.float64)
    fit = allowed.fit(weights)
    if fit is None or weights.ndim != 1:
        raise CertificationError("the backend returned weights that no scale explains.")
    error = objective_interval(gram, target, weights)[0]
    if allowed.powers_of_two or not np.any(weights):
        # Powers of two are not rounded; without any weights there is nothing to scale.
        return error
    members = allowed.group[:, None] == np.arange(allowed.groups)
    columns = [members * (fit.codes - fit.zero_point[allowed.group])[:, None]]
    if allowed.zero == "real":
        # Codes that are all equal say nothing that the zero point does not.
        first = np.array([fit.codes[allowed.group == g].min(initial=0.0) for g in range(allowed.groups)])
        columns = [members * (fit.codes - first[allowed.group])[:, None], members * 1.0]
    directions = np.concatenate(columns, axis=1)
    used = np.abs(directions).max(axis=0) > 0.0
    return leaf_bound(gram, target, weights, directions[:, used], error)


LEAST = {(ScaledLevels, ScaleDual): over_scales, (ScaledLevels, Leaf): visited}
