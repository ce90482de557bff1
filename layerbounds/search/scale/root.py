"""A bound over all scales without any search, for what other solvers worked on."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.scale.projection import counted_from, project
from layerbounds.kernels.compilation import working_time
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import ScaleDual
from layerbounds.search.scale.envelope import scale_envelope
from layerbounds.search.scale.group_envelope import GroupEnvelope


def scale_dual(task: Task[ScaledLevels], weights: Float | None, seconds: float) -> ScaleDual | None:
    """Dual points that grow for some seconds, around the scales of given weights; None where there are none."""
    allowed, began = task.allowed, working_time()
    known = allowed.nearest(task.target) if weights is None else weights
    fit = allowed.fit(known)
    deviation = np.atleast_2d(known - task.target)
    error = max(float(np.sum((deviation @ task.gram) * deviation)), float(np.finfo(np.float64).tiny))
    scale = np.ones(allowed.groups) if fit is None else np.abs(fit.scale)
    gram, targets, limit = task.gram, task.targets, allowed.limit
    dropped: tuple[int, ...] = ()
    group = allowed.group
    if allowed.zero == "real" and allowed.rows > 1:
        # Rows that share a real zero point are not bounded: their codes count from different ones.
        return None
    if allowed.zero == "real":
        dropped = counted_from(gram, group)
        found = project(gram, group, dropped)
        if found is None or not len(found[1]):
            return None
        gram, left = found
        targets = (targets - targets[:, np.array(dropped)[group]])[:, left]
        limit, group = 2.0 * limit, group[left]

    def stop() -> bool:
        return working_time() - began > seconds

    if allowed.groups == 1:
        return scale_envelope(gram, targets, allowed.boxes(), float(scale[0]), error, stop, limit, dropped)[1]
    envelope = GroupEnvelope(gram, targets, allowed.boxes(), group, scale, error, limit, dropped)
    envelope.grow(stop)
    return envelope.dual()
