"""Pruning of whole output channels, with or without a metric that binds them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import check_positive, errors, is_semidefinite
from layerbounds_verify.choices import charge, masks, sorted_rows
from layerbounds_verify.exact import RefusedError
from layerbounds_verify.of_rows import lower_of_masks, lower_of_rows
from layerbounds_verify.reader import Structure
from layerbounds_verify.work import Work


def allow(work: Work, weights: Any) -> None:
    """Refuse weights of too many channels; note the metric."""
    problem, tensors = work.problem, work.certificate.tensors
    kept = np.any(weights != 0.0, axis=1, keepdims=True)
    if np.count_nonzero(kept) > problem["kept"]:
        raise RefusedError(f"more output channels are kept than the {problem['kept']} that may be")
    if not problem["refit"]:
        work.refuse_changes(weights, kept)
    if "problem.metrics" in tensors:
        work.metric = tensors["problem.metrics"][work.certificate.group_of(work.rows[0])]
        check_positive(work.metric, "output metric")
        if work.metric.shape != (len(work.rows), len(work.rows)) or work.constant:
            raise RefusedError("its output metric is not one of its channels, or these have constants")


def lower(work: Work, claim: Fraction) -> Fraction:
    """What the proof gives for all choices of channels."""
    kept, refit, original = (
        work.problem["kept"],
        work.problem["refit"],
        work.certificate.weight[work.rows][:, work.live],
    )
    if work.metric is None:
        if work.kind != "dual":
            raise RefusedError("its proof is not about the choice of output channels")
        drop = errors(work.gram, work.target, np.zeros_like(work.target))
        return sorted_rows(drop, [0] * len(drop) if refit else errors(work.gram, work.target, original), kept)
    if bool(work.said.get("units")) == refit:
        raise RefusedError(
            "its proof is about masks, in a problem that may change weights"
            if refit
            else "its proof is not about the choice of output channels"
        )
    if not refit:
        rows = len(work.rows)
        form = masks(work.metric, work.gram, original, work.target, np.arange(rows))
        s = Structure(np.arange(rows), np.zeros(rows, dtype=int), np.array([kept]))
        return lower_of_masks(work, form, s, claim)
    live = np.diag(work.metric) > 0.0
    metric, n = np.ascontiguousarray(work.metric[np.ix_(live, live)]), work.part("rows")
    if n.shape[1] != len(metric) or not is_semidefinite(metric):
        raise RefusedError("its metric is not positive definite, or its rows are not of as many channels as count")
    s = Structure(np.arange(len(metric)), np.zeros(len(metric), dtype=int), np.array([min(kept, len(metric))]))
    less = charge(work.gram, work.target[live], metric, n)
    other = replace(work, gram=metric, target=n, structure=s, values=None, other=True)
    return lower_of_rows(other, claim + less) - less
