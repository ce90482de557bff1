"""Filter pruning with a metric as the choice of units that rows share (docs/filters.md).

With kept channels re-fitted, tr(Q D H Dᵀ) is least at tr(M_TT (Q⁻¹)_TT⁻¹), M = WHWᵀ, T the dropped ones: what dropping
the inputs T costs a layer with the Gram matrix Q and weights N, NᵀN = M.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.masks.form import EXTENDED_TERMS
from layerbounds.bounds.objective import entry_sizes
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.patterns import Structure
from layerbounds.problems.shared_support import SharedSupport


def counting(metric: Float) -> Bool:
    """The output channels whose errors count: others are dropped first, at no cost."""
    return np.asarray(np.diag(metric) > 0.0)


def transposed_set(allowed: KeptRows, rows: Float) -> SharedSupport:
    """The choice of output channels as one of inputs.

    Parameters
    ----------
    allowed : KeptRows
    rows : ndarray of shape (any, channels)
        N, of the channels that count.
    """
    many = rows.shape[1]
    capacity = np.array([min(allowed.capacity, many)], dtype=np.int64)
    structure = Structure(np.arange(many), np.zeros(many, dtype=np.int64), capacity)
    return SharedSupport(structure, rows, True)


def factor(gram: Float, targets: Float) -> Float:
    """N with NᵀN close to WHWᵀ, as few rows as the rank asks for.

    Raises
    ------
    FloatingPointError
        If energies overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = targets @ gram @ targets.T
    if not np.all(np.isfinite(product)):
        raise FloatingPointError("the energies of the output channels overflow")
    product = 0.5 * (product + product.T)
    # A power of two for each channel brings its energy near 1: N is as exact for small ones as for large ones.
    exponent = -(np.frexp(np.maximum(np.diag(product), np.finfo(np.float64).tiny))[1] // 2)
    scaled = np.ldexp(product, exponent[:, None] + exponent)
    values, vectors = scipy.linalg.eigh(scaled)
    large = values > len(values) * UNIT * max(float(values[-1]), 0.0)
    half = np.sqrt(values[large])[:, None] * vectors[:, large].T
    return np.ascontiguousarray(np.ldexp(half, -exponent))


def factor_charge(gram: Float, targets: Float, metric: Float, rows: Float) -> float:
    """How far the least error of any choice can be from that with NᵀN instead of WHWᵀ.

    It is tr(M G) with 0 ⪯ G ⪯ Q, so that |g_rs| ≤ √(q_rr q_ss).

    Parameters
    ----------
    gram : ndarray of shape (n, n)
    targets : ndarray of shape (channels, n)
        Of the channels that count.
    metric : ndarray of shape (channels, channels)
    rows : ndarray of shape (any, channels)
        N.
    """
    channels, n = targets.shape
    wide = channels * (n + channels) * (n + len(rows)) <= 2 * EXTENDED_TERMS
    kind: Any
    kind, unit_error = (np.longdouble, float(np.finfo(np.longdouble).eps)) if wide else (np.float64, UNIT)
    w, half = targets.astype(kind), rows.astype(kind)
    off: Any = np.abs(w @ gram.astype(kind) @ w.T - half.T @ half)
    size = np.abs(targets) @ entry_sizes(gram) + np.sqrt(np.sum(rows**2, axis=0))
    root = np.sqrt(np.diag(metric))
    charge = float(root @ off.astype(np.float64) @ root)
    charge += 4.0 * (2 * n + len(rows) + 16) * unit_error * float(root @ size) ** 2
    return float(1.01 * charge) + float(np.finfo(np.float64).tiny)
