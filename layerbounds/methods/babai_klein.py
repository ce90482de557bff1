"""Babai's nearest plane and Klein's randomized version of it; the best of K samples stays."""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.methods import klein_rounding
from layerbounds.kernels.successive import factors_in_order, rounding_order
from layerbounds.methods.base import ChannelView, check_damp


def sampling_ratio(n: int, samples: int) -> float:
    """The ρ of K = (eρ)^(2n/ρ), the largest solution: Liu, Ling & Stehlé, IEEE Trans. Inf. Theory 57(9), 2011."""
    # K counts Babai's point too.
    goal = math.log(samples + 1) / (2 * n)

    def excess(log_ratio: float) -> float:
        return math.log1p(log_ratio) - log_ratio - math.log(goal)

    # (1 + log ρ)/ρ falls from 1 at ρ = 1; more samples than e^(2n) need no smaller ρ.
    return math.exp(scipy.optimize.brentq(excess, 0.0, 200.0)) if goal < 1 else 1.0


def babai_klein(
    view: ChannelView, samples: int = 5, damp: float = 0.01, act_order: bool = True, ratio: float | None = None
) -> Float:
    """Draw K randomized nearest-plane points beside Babai's own one and keep the best.

    Klein, "Finding the closest lattice vector when it's unusually close" (SODA 2000), with clipping to the levels as
    in Wang et al., "OJBKQ: Objective-Joint Babai-Klein Quantization" (arXiv 2602.08376), whose K is 5. The
    temperature is that of Liu, Ling & Stehlé (2011): A = log ρ / min_k r_kk², with the smallest pivot in units of the
    gap between levels and K = (eρ)^(2n/ρ).

    Parameters
    ----------
    view : ChannelView
    samples : int
        Random points beside Babai's; 0 gives Babai's point.
    damp : float
        Fraction of the mean diagonal added before the factorization; raised tenfold while that breaks down.
    act_order : bool
        Round the inputs of largest energy first.
    ratio : float, optional
        ρ > 1 instead of the one that follows from K; smaller is more random.
    """
    check_damp(damp)
    if samples < 0:
        raise InputError(f"samples is {samples}; pass a number ≥ 0.")
    if ratio is not None and not ratio > 1:
        raise InputError(f"ratio is {ratio}; pass a number > 1.")
    n = len(view.target)
    order = rounding_order(view.gram, act_order)
    pivots, shifts = view.once(("factors", damp, act_order, False), lambda: factors_in_order(view.gram, order, damp))
    levels, count, target = np.ascontiguousarray(view.levels[order]), view.count[order], view.target[order]
    gaps = np.diff(levels, axis=1)
    gap = np.min(np.where(gaps > 0, gaps, np.inf), axis=1, initial=np.inf)
    smallest = float(np.min(pivots * np.where(np.isfinite(gap), gap, 1.0) ** 2))
    log_ratio = math.log(sampling_ratio(n, samples) if ratio is None else ratio) if samples else 0.0
    best, best_error = view.target, np.inf
    for sample in range(samples + 1):
        # The first point is Babai's: infinite inverse temperature.
        sharpness = log_ratio / max(smallest, 1e-300) if sample else np.inf
        uniform = view.rng.random(n) if sample else np.zeros(n)
        choice = np.zeros(n, dtype=np.int64)
        klein_rounding(shifts, pivots, target, levels, count, min(sharpness, 1e300), uniform, choice)
        point = np.empty(n)
        point[order] = levels[np.arange(n), choice]
        deviation = point - view.target
        error = float(deviation @ (view.gram @ deviation))
        if error < best_error:
            best, best_error = point, error
    return np.asarray(best)
