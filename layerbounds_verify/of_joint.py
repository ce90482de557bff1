"""Pruning with quantization: weights that are kept are levels."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds_verify import of_pruning
from layerbounds_verify.of_pruning import lower as lower
from layerbounds_verify.reader import levels
from layerbounds_verify.work import Work


def allow(work: Work, weights: Any) -> None:
    """Refuse weights that are neither levels nor zero, or that do not fit the pattern."""
    table = levels(work.certificate, work.rows[0])
    work.allow_levels(weights, np.sort(np.concatenate([table, np.zeros((len(table), 1))], axis=1), axis=1))
    of_pruning.allow(work, weights)
