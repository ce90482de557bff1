"""Certified minima over choices of whole output channels (docs/filters.md)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.filters.transposed import counting, factor_charge, transposed_set
from layerbounds.bounds.masks.clusters import blocks_bound
from layerbounds.bounds.masks.dual import mask_bound
from layerbounds.bounds.masks.form import MaskForm, row_form
from layerbounds.bounds.objective import objective_rows
from layerbounds.bounds.shared.least import blocks
from layerbounds.exceptions import CertificationError
from layerbounds.kernels import exact
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.proofs import FilterDual, MaskBlocksDual, MaskDual


def masks(gram: Float, target: Float, allowed: KeptRows, dual: MaskDual, metric: Float | None = None) -> float:
    """With a metric, where kept output channels stay as they are."""
    form = _form(gram, target, allowed, metric)
    return mask_bound(form, np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64))


def mask_blocks(
    gram: Float, target: Float, allowed: KeptRows, dual: MaskBlocksDual, metric: Float | None = None
) -> float:
    """The same from blocks."""
    return blocks_bound(_form(gram, target, allowed, metric), dual)


def _form(gram: Float, target: Float, allowed: KeptRows, metric: Float | None) -> MaskForm:
    if allowed.refit or metric is None:
        raise CertificationError("the backend returned a dual point of masks for another kind of problem.")
    return row_form(gram, np.atleast_2d(target), allowed.original, metric, allowed.capacity)


def channels(gram: Float, target: Float, allowed: KeptRows, dual: FilterDual, metric: Float | None = None) -> float:
    """Without a metric by sorting; with one from a dual point of the problem of shared masks that it makes."""
    targets = np.atleast_2d(target)
    if metric is None:
        return sorted_bound(gram, targets, allowed)
    if dual.rows is None or dual.dual is None or not allowed.refit:
        raise CertificationError("the backend returned a dual point of another kind of problem.")
    live = counting(metric)
    rows = np.asarray(dual.rows, dtype=np.float64)
    if rows.shape[1] != np.count_nonzero(live) or not len(rows):
        raise CertificationError("the backend returned a dual point with another number of output channels.")
    part = np.ascontiguousarray(metric[np.ix_(live, live)])
    bound = blocks(part, rows, transposed_set(allowed, rows), dual.dual)
    return float(np.nextafter(bound - factor_charge(gram, targets[live], part, rows), -np.inf))


def sorted_bound(gram: Float, targets: Float, allowed: KeptRows) -> float:
    """The errors of the dropped output channels less the largest savings: the least error itself, but for rounding."""
    zero = np.zeros_like(targets)
    dropped = list(map(Fraction, objective_rows(gram, targets, zero)[0].tolist()))
    kept = [Fraction(0)] * len(targets)
    if not allowed.refit:
        kept = list(map(Fraction, objective_rows(gram, targets, allowed.original)[0].tolist()))
    savings = sorted((d - k for d, k in zip(dropped, kept, strict=True)), reverse=True)
    most = sum((s for s in savings[: allowed.capacity] if s > 0), Fraction(0))
    return exact.float_below(sum(dropped, Fraction(0)) - most)


LEAST = {(KeptRows, MaskDual): masks, (KeptRows, MaskBlocksDual): mask_blocks, (KeptRows, FilterDual): channels}
