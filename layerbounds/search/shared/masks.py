"""One mask for several rows whose kept weights stay as they are."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.masks.form import unit_form
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, MaskDual, RawSolve
from layerbounds.search.pruning.mask_run import Masks, first_masks, run_masks


def search_shared_mask(task: Task[SharedSupport], control: Control) -> RawSolve:
    """Solve a set of rows of at least one live input."""
    original, unit = task.allowed.original, task.allowed.structure.unit

    def weights(kept: Bool) -> Float:
        return np.where(kept[unit], original, 0.0).reshape(task.target.shape)

    form = unit_form(task.gram, task.targets, original, task.allowed.structure)
    return run_masks(Masks(task, form, first_masks(task), weights, MaskDual, lambda found: found), control)
